"""Tests of the communication on paper of benchmarks/scaling.py against the collectives of a compiled step."""

import importlib.util
import pathlib

import jax
import pytest

from sdecor.training import build, compiled, preview

PATH = pathlib.Path(__file__).parents[1] / "benchmarks/scaling.py"


@pytest.fixture(scope="module")
def scaling():
    specification = importlib.util.spec_from_file_location("scaling", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("images", "side"), [(4, "Gram"), (16, "features")])
def test_the_paper_agrees_with_a_compiled_step(scaling, images, side):
    """Scalars, such as the loss and the accuracy, are not on the paper."""
    config = scaling.create_config("cnn", "decor", images * jax.device_count())
    config.model.widths, config.model.dtype = (8, 64), "float32"
    facts = build.assume_facts(config, 3, image_shape=(8, 8))
    program = build.create_program(config, facts)
    state = build.state_shapes(config, program.model, program.image_shape, jax.random.key(0))
    step = preview.lower_shapes([config], facts, None, None).compile()
    moved = sum(found["bytes"] for found in compiled.count_collectives(step.as_text()).values())
    channels = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats)) // 2
    sizes = scaling.Sizes(compiled.parameter_count(state), channels, 64, 0.0)
    each = {"method": "decor", "images": images, "devices": jax.device_count()}
    assert (images * jax.device_count() < 64) == (side == "Gram")
    assert 0 <= moved - scaling.paper_data(sizes, each, watched=True) <= 100
