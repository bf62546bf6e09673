"""Data sets, the input pipeline, and augmentation on the device.

Files:
  dataset               data sets by name: classes, splits, mean and std
  splits                validation examples taken from train; a small part of a split
  tfds_source           prepared TFDS data sets, read without TensorFlow
  image_folders         images in folders, and Tiny ImageNet
  embedded              data sets that are drawn here on first use
  digit_scenes, scenes  digits on photographs: the TFDS builder, and the drawing of its images
  xai_tris, tetrominoes tetrominoes on noise: the same
  series                multivariate time series with known relevant times, drawn in memory
  draws                 random numbers of the drawn data sets
  decoded               the arrays of digit_scenes, kept beside its records
  decode                bytes to images, object masks and boxes
  reading               errors that name the file; examples that are left out
  batches               order of examples, and batches as NumPy arrays
  loader                training batches, by one of the next two files
  memory, streaming     a split decoded once into memory; a split read and decoded by Grain
  workers               worker processes of a stream, and their shared memory
  augment               augmentation, crops and normalisation on the device
"""

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
from sdecor.data.reading import Skipping as Skipping
from sdecor.data.splits import Source as Source
