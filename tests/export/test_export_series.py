"""Tests of exports of series: shapes and names of the arrays, and their conversion."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdecor import export

RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=(12, 3)).astype(np.float32)


class Series:
    """Three series of 4 times and 3 channels, with masks of single values."""

    labels = np.arange(3, dtype=np.int32)
    values = RNG.normal(size=(3, 4, 3)).astype(np.float32)
    masks = (RNG.random((3, 4, 3)) < 0.3).astype(np.uint8)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": self.values[index], "label": self.labels[index], "object": self.masks[index]}

    def name(self, index):
        return f"series {index}"


def network(x):
    return jnp.ravel(x) @ HEAD


@pytest.mark.parametrize("reduce", [None, "abs_sum"])
def test_maps_of_series_are_stored_and_converted(tmp_path, reduce):
    source, path = Series(), tmp_path / "maps.zarr"
    assert export.export(network, source, path, target="label", reduce=reduce, progress=False).complete
    held = export.open(path)
    slopes = np.stack([HEAD[:, label].reshape(4, 3) for label in source.labels])
    expected = slopes if reduce is None else np.abs(slopes).sum(-1)
    np.testing.assert_allclose(held.attribution("gradient", np.arange(3)), expected, rtol=1e-6)
    spec = held.arrays["gradient"]
    assert spec.dims == (("time", "channel") if reduce is None else ("time",))
    assert held.attributes["image_shape"] == [4, 3]
    export.to_npz(held, tmp_path / "maps.npz", source=source)
    arrays = np.load(tmp_path / "maps.npz")
    first = expected.swapaxes(1, 2) if reduce is None else expected[:, None]
    np.testing.assert_allclose(arrays["a_batch"], first, rtol=1e-6)
    np.testing.assert_array_equal(arrays["x_batch"], source.values.swapaxes(1, 2))
    np.testing.assert_array_equal(arrays["s_batch"], source.masks.swapaxes(1, 2))
    (picture,) = export.overlays(held, source, tmp_path / "pictures", examples=[1])
    from PIL import Image

    width, height = Image.open(picture).size
    assert width * 3 == height * 4  # time from left to right, three channels
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 3\): ViRelAy's files are of images"):
        export.to_hdf5(held, tmp_path / "virelay", source=source)
    if reduce is None:
        return
    with pytest.raises(ValueError, match=r"images of shape \(1, 3\).*other inputs, such as series \[T, C\], likewise"):
        export.export(network, iter([{"image": source.values[0][:1]}]), tmp_path / "no.zarr", progress=False)
