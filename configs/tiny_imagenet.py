"""Tiny ImageNet, or some of its classes, with boxes, from a directory in the data set's own layout.

    python train.py --config=configs/tiny_imagenet.py:method=sdecor --workdir=runs/tiny_imagenet_sdecor \
        --config.data.path=tiny-imagenet-200

The small CNN at 32×32 trains on two CPU cores. Change size and model by fields. The directory's val is our test split;
our validation split is part of its train.

Measured on 20 of the 200 classes, 9,000 training images, five seeds (docs/evidence/first_studies.md, `confirmation`),
for ce and for method=sdecor,form=density: accuracy 60.5 % and 59.9 %, saliency in the box 59.5 % and 60.8 % (chance
51 %), Gini 0.381 and 0.410. The paper's form was not measured for this many epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.photograph_consistency(config)
    config.data.name = "tiny_imagenet"
    config.data.canvas = 32
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.train.epochs = 24.0
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
