"""Oxford-IIIT Pet: 37 breeds, 224×224, with trimaps as object masks.

    python train.py --config=configs/oxford_iiit_pet.py:method=sdecor --workdir=runs/oxford_iiit_pet_sdecor
    python train.py --config=configs/oxford_iiit_pet.py:method=sdecor,init_from=resnet50.safetensors --workdir=…

The second command fine-tunes pretrained weights (docs/pretrained.md), by values that were not measured.
Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    default.large_photographs(config)
    config.data.name = "oxford_iiit_pet"
    return default.choose(config, arg, forms=default.PHOTOGRAPH_FORMS, fine_tuned=True)
