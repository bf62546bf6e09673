"""Your own images in folders: root/<split>/<class>/*.{jpg,png} (docs/data.md).

    python train.py --config=configs/folder.py:method=sdecor --workdir=runs/folder_sdecor \
        --config.data.path=IMAGES

The small CNN at 32×32 trains on two CPU cores. Change canvas, model and other fields on the command line.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.photograph_consistency(config)
    config.data.name = "folder"
    config.data.canvas = 32
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.train.epochs = 20.0
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS)
