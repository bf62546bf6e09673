"""SVHN (cropped digits, without the extra set) with ResNet-18 (CIFAR stem).

    python train.py --config=configs/svhn_cropped.py:method=sdecor --workdir=runs/svhn_cropped_sdecor

Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.small_photographs(config)
    config.data.name = "svhn_cropped"
    config.augment.flip = False
    config.optim.warmup_epochs = 3.0
    config.train.epochs = 60.0
    config.train.eval_every_epochs = 3.0
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
