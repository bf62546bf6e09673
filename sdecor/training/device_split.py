"""A training split that lies on the devices, so that only the indices of a batch travel.

Images of bytes lie there as words of four bytes, other data as they are stored. A TPU reads single rows of words. To
read rows of bytes, it first makes words of the whole split, at every step: for 50,000 images of 32×32 that was four
fifths of the step of a small network.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdecor.core import parallel
from sdecor.core.barrier import barrier
from sdecor.training import compiled

_WORD = np.dtype(np.uint32)


def check_fits(examples: int, image_shape: Sequence[int], device: jax.Device, dtype: str = "uint8") -> None:
    """Raise ValueError if a split of images of `image_shape` and their labels is larger than a device's memory.

    The devices of a CPU share the memory of the machine.
    """
    needed, memory = split_bytes(examples, image_shape, dtype), memory_of(device)
    if memory is not None and needed > memory:
        size = "×".join(map(str, image_shape))
        raise ValueError(
            f"config.data.loader = 'device': the training split takes {compiled.show_bytes(needed)} ({examples:,} "
            f"images of {size}), and a device ({device.device_kind}) has {compiled.show_bytes(memory)}: use 'auto', "
            "'memory' or 'grain', or lower config.data.canvas"
        )


def split_bytes(examples: int, image_shape: Sequence[int], dtype: str = "uint8") -> int:
    """Return the bytes of a split on a device."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes(examples, image_shape, dtype).values())


def memory_of(device: jax.Device) -> float | None:
    """Return the memory of a device in bytes, for a device of a CPU its part of the machine's; None if unknown."""
    if device.platform != "cpu":
        return compiled.memory_of_device(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()


def shapes(examples: int, image_shape: Sequence[int], dtype: str = "uint8") -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of `create`."""
    image = jax.ShapeDtypeStruct((examples, *image_shape), dtype)
    if image.dtype == np.uint8:
        image = jax.ShapeDtypeStruct((examples, -(-math.prod(image_shape) // _WORD.itemsize)), _WORD)
    return {"image": image, "label": jax.ShapeDtypeStruct((examples,), np.int32)}


def create(source: Any) -> dict[str, jax.Array]:
    """Copy the images and labels of a `MemorySource` to each local device, an image of bytes as a row of words."""
    images = source.images
    if images.dtype == np.uint8:
        rows = images.reshape(len(images), -1)
        if missing := -rows.shape[1] % _WORD.itemsize:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        images = np.ascontiguousarray(rows).view("<u4").astype(_WORD, copy=False)  # XLA's order of bytes
    return parallel.replicate({"image": images, "label": source.labels})


def look_up(
    split: dict[str, jax.Array], batch: dict[str, jax.Array], image_shape: Sequence[int]
) -> dict[str, jax.Array]:
    """Return the images and labels of a split for a batch of `index` and `position`, of any leading axes."""
    index = batch["index"]
    images, labels = (split[name].at[index].get(mode="promise_in_bounds") for name in ("image", "label"))
    if images.dtype == _WORD:
        pixels = jax.lax.bitcast_convert_type(images, np.uint8).reshape(*index.shape, -1)
        images = pixels[..., : math.prod(image_shape)].reshape(*index.shape, *image_shape)
    return {"image": images, "label": labels, "position": batch["position"]}


def reading(step: Callable, image_shape: Sequence[int], device: jax.Device) -> Callable:
    """Return a step whose argument `hyper` is `(hyper, split)`, and whose batch holds indices into the split.

    On a CPU its results are those of a batch that the host provides, bit for bit.
    """

    def read(state: Any, batch: Any, given: Any, key: jax.Array) -> tuple[Any, Any]:
        hyper, split = given
        found = look_up(split, batch, image_shape)
        return step(state, barrier(found) if device.platform == "cpu" else found, hyper, key)

    return read
