"""CIFAR-10 with ResNet-18 (CIFAR stem), the usual 200 epochs of SGD on an accelerator.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10_sdecor

Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
On a desktop: --config=configs/cifar10.py:method=sdecor,model=cnn,runlocal
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.small_photographs(config)
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
