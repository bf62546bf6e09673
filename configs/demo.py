"""The runs of `make demo`: the default on digit_scenes, with shorter training, in minutes on two CPU cores.

    python train.py --config=configs/demo.py:method=sdecor --workdir=runs/demo/sdecor

Measured (seed 0, two idle CPU cores; `make demo` trains all three). Test accuracy 80.3 % for ce, 81.1 % for sdecor and
80.7 % for sdecor with form=density. Saliency on the object 29.4 %, 30.6 % and 37.2 % (chance 15.8 %).
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    config.train.epochs = 6.0
    config.evaluation.curve_images = 500
    return default.choose(config, arg)
