"""Fashion-MNIST, 28×28 gray, with the small CNN.

    python train.py --config=configs/fashion_mnist.py:method=sdecor --workdir=runs/fashion_mnist_sdecor

Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    config.data.name = "fashion_mnist"
    config.data.channels = 1
    config.data.mean = (0.2860,)
    config.data.std = (0.3530,)
    config.augment.flip = True
    config.augment.crop_padding = 2
    config.train.epochs = 20.0
    return default.choose(config, arg)
