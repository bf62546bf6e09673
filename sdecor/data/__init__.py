"""Data sets, the input pipeline and augmentation on the device."""

from sdecor.data.augment import augment, center_crop, denormalise, normalise
from sdecor.data.batches import evaluation_batches
from sdecor.data.dataset import Dataset, create_dataset
from sdecor.data.loader import Loader, create_loader
from sdecor.data.memory import load_in_memory
from sdecor.data.splits import Source

__all__ = [
    "Dataset",
    "Loader",
    "Source",
    "augment",
    "center_crop",
    "create_dataset",
    "create_loader",
    "denormalise",
    "evaluation_batches",
    "load_in_memory",
    "normalise",
]
