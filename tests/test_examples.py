"""Tests that the scripts of examples/ are short and run to the end with the promised results."""

import functools
import importlib.util
import pathlib
import re

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

import sdecor
from sdecor.data import scenes

FOLDER = pathlib.Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
TRAINING = ["train_linen", "train_nnx", "train_equinox"]
TERMS = ("classification", "consistency", "decorrelation")


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """Reduce the data set to one chunk per split, and use JAX's default settings."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr(scenes, "SPLIT_SIZES", dict.fromkeys(scenes.SPLIT_SIZES, scenes.CHUNK))
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


def test_all_are_listed_and_short():
    assert {path.stem for path in SCRIPTS} == {*TRAINING, "explain_nnx", "export_and_open"}
    listed = (FOLDER / "README.md").read_text()
    for path in SCRIPTS:
        lines = path.read_text().splitlines()
        assert len(lines) <= 60, path.name
        assert f"python examples/{path.name}" in "\n".join(lines[:5]) and f"({path.name})" in listed


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name == "train_equinox" else ()) for name in TRAINING]
)
def test_training_learns(name, capsys):
    if name == "train_equinox":
        pytest.importorskip("equinox", reason="equinox is not installed")
    load(name).main(steps=12)
    printed = capsys.readouterr().out
    first, last = (
        {name: float(value) for name, value in re.findall(r"(\w+) (\d\S*?)(?:,|$)", line)}
        for line in re.findall("^step [0-9]+: (.*)$", printed, re.MULTILINE)
    )
    assert tuple(first) == tuple(last) == TERMS
    assert np.isfinite([*first.values(), *last.values()]).all() and first["consistency"] > 0
    assert last["classification"] < first["classification"] - 0.1
    assert 0 <= float(re.search(r"validation accuracy: (\S+)", printed)[1]) <= 1


def test_nnx_keeps_the_statistics_of_the_clean_images():
    example = load("train_nnx")
    model = example.CNN(example.nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    expected = example.nnx.clone(model)
    expected(images, jax.random.key(1))
    optimizer = example.nnx.Optimizer(model, example.optax.adam(2e-3), wrt=example.nnx.Param)
    example.step(model, optimizer, images, np.zeros(64, np.int32), jax.random.key(0))
    found, expected = (jax.tree.leaves(example.nnx.state(each, example.nnx.BatchStat)) for each in (model, expected))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_explaining_draws_and_scores(tmp_path, capsys):
    load("explain_nnx").main(tmp_path / "maps.png", steps=2)
    plt.close("all")
    shown = plt.imread(tmp_path / "maps.png")
    assert shown.ndim == 3 and shown.std() > 0.1
    shares = [float(x) for x in re.findall(r"(0\.\d+)", capsys.readouterr().out)]  # four methods, with chance levels
    assert len(shares) == 8 and len({*shares[::2]}) == 4 and all(0.1 < chance < 0.25 for chance in shares[1::2])


def test_exported_maps_open_in_xarray_and_here(tmp_path):
    path = str(tmp_path / "maps.zarr")
    example = load("export_and_open")
    example.main(path)
    opened, stored = sdecor.export.open(path), xarray.open_zarr(path)
    assert opened.complete and list(opened.methods) == sorted(example.METHODS)
    labels = sdecor.data.create_dataset("digit_scenes").source("val").labels
    np.testing.assert_array_equal(stored["label"], labels)
    for method in example.METHODS:
        name = stored.attrs["methods"][method]
        assert stored[name].dims == ("example", "y", "x") and stored[name].shape == (scenes.CHUNK, 32, 32)
        maps = stored[name].astype("float32") * stored[f"{name}_scale"]
        np.testing.assert_array_equal(maps, opened.attribution(method))
        assert np.isfinite(maps).all() and float(maps.max()) > 0
