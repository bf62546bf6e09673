"""CIFAR-100 with ResNet-18 (CIFAR stem), the usual 200 epochs of SGD on an accelerator.

    python train.py --config=configs/cifar100.py:method=sdecor --workdir=runs/cifar100_sdecor

Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.small_photographs(config)
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
