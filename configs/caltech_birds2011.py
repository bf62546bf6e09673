"""Caltech-UCSD Birds 2011: 200 species, 224×224, with object masks and boxes.

    python train.py --config=configs/caltech_birds2011.py:method=sdecor --workdir=runs/caltech_birds2011_sdecor

The data set is prepared once where TensorFlow and a network are (docs/data.md) and read without them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the run, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.photographs(config)
    config.data.name = "caltech_birds2011"
    return default.choose(config, arg, forms=default.PHOTOGRAPHS)
