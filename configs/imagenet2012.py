"""ImageNet (ILSVRC 2012) with ResNet-50, 90 epochs at batch 1024; images stream through Grain.

    python train.py --config=configs/imagenet2012.py:method=sdecor --workdir=runs/imagenet2012_sdecor

Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
Its validation split is our test split; our validation split is part of its train split.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.large_photographs(config)
    config.data.name = "imagenet2012"
    config.data.canvas_fit = "crop"
    config.data.val_fraction = 0.01
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.loader = "grain"
    config.data.workers = 16
    config.augment.resized_crop = (0.08, 1.0)
    config.optim.lr = 0.4
    config.train.batch_size = 1024
    config.train.epochs = 90.0
    config.train.eval_every_epochs = 2.0
    config.train.checkpoint_every_steps = 2000
    config.train.label_smoothing = 0.1
    config.evaluation.batch_size = 256
    config.evaluation.curve_images = 5000
    config.log.every_steps = 100
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
