"""Data sets, the input pipeline and augmentation on the device."""

from sdecor.data.augment import (
    augment as augment,
    center_crop as center_crop,
    denormalise as denormalise,
    normalise as normalise,
)
from sdecor.data.batches import evaluation_batches as evaluation_batches
from sdecor.data.dataset import Dataset as Dataset, create_dataset as create_dataset
from sdecor.data.loader import Loader as Loader, create_loader as create_loader
from sdecor.data.memory import load_in_memory as load_in_memory
from sdecor.data.splits import Source as Source
