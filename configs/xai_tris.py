"""XAI-TRIS: tetrominoes on noise with known important pixels, drawn on first use. Minutes on two CPU cores.

    python train.py --config=configs/xai_tris.py:method=sdecor --workdir=runs/xai_tris_sdecor

`--config.data.name=xai_tris/SCENARIO_BACKGROUND_SIZE` chooses linear, multiplicative, translations_rotations or xor; on
white, correlated or natural background; of 8x8 or 64x64 pixels (docs/data.md). The weights are those of scenes and were
not chosen for this data.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    config.data.name = "xai_tris/translations_rotations_correlated_8x8"
    config.data.channels = 1
    config.model.stem_stride = 1  # at 8×8 pixels, maps of one position would be left of the default's stride 2
    config.train.epochs = 30.0
    config.train.eval_every_epochs = 5.0
    return default.choose(config, arg)
