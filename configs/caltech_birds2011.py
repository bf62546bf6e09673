"""Caltech-UCSD Birds 2011: 200 species, 224×224, with object masks and boxes.

    python train.py --config=configs/caltech_birds2011.py:method=sdecor --workdir=runs/caltech_birds2011_sdecor

The data set is prepared once where TensorFlow and a network are (docs/data.md) and read without them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the run, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    config.data.name = "caltech_birds2011"
    config.data.canvas = 256
    config.augment.size = 224
    config.augment.resized_crop = (0.25, 1.0)
    config.augment.flip = True
    config.model.name = "resnet50"
    config.model.stem = "imagenet"
    config.model.dtype = "bfloat16"
    config.optim.name = "sgd"
    config.optim.lr = 0.05
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 5.0
    config.train.batch_size = 64
    config.train.epochs = 200.0
    config.train.eval_every_epochs = 5.0
    config.evaluation.batch_size = 64
    return default.choose(config, arg)
