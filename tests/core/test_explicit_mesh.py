"""Tests of arrays on a mesh with Explicit axes, as from `jax.make_mesh`: results equal those of one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_strict
from jax.sharding import NamedSharding, PartitionSpec

from sdecor import attribution, losses, metrics

N, KEY = 8, jax.random.key(0)
_RNG = np.random.default_rng(0)
IMAGES = _RNG.normal(size=(N, 12, 12, 3)).astype(np.float32)
LABELS = np.arange(N, dtype=np.int32) % test_strict.CLASSES
FEATURES = _RNG.normal(size=(2 * N, 6)).astype(np.float32)
BATCH = PartitionSpec("batch")


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    made = jax.make_mesh((4,), ("batch",))
    assert made.axis_types == (jax.sharding.AxisType.Explicit,)
    return made


def results(images: jax.Array, labels: jax.Array, features: jax.Array) -> dict[str, jax.Array]:
    explain = partial(attribution.explain, test_strict.fn, images, labels)
    forms = {form: losses.decorrelation(features, form=form) for form in losses.FORMS}
    return forms | {
        "gradient": explain(),
        "in groups": explain(chunk_size=3),
        "slope": jax.grad(losses.decorrelation)(features),
        "deletion": metrics.deletion(test_strict.fn, images, images[..., 0], labels, key=KEY, steps=3),
    }


def test_values_are_those_of_one_device_and_lie_where_the_examples_do(mesh):
    expected = jax.jit(results)(IMAGES, LABELS, FEATURES)
    sharded = [jax.device_put(array, NamedSharding(mesh, BATCH)) for array in (IMAGES, LABELS, FEATURES)]
    with jax.set_mesh(mesh):
        found = jax.jit(results)(*sharded)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        assert jax.typeof(found[name]).sharding.spec[:1] == (BATCH[:1] if values.shape else ()), name


def test_outside_of_a_mesh_context_and_of_jit_too(mesh):
    sharded = [jax.device_put(array, NamedSharding(mesh, BATCH)) for array in (IMAGES, LABELS)]
    maps = attribution.explain(test_strict.fn, *sharded)
    np.testing.assert_allclose(maps, jax.jit(results)(IMAGES, LABELS, FEATURES)["gradient"], rtol=1e-4, atol=1e-6)
    assert (maps + sharded[0]).sharding.spec[:1] == BATCH[:1]  # maps can be added to their images


@pytest.mark.full
def test_every_method_and_metric_can_be_traced(mesh):
    images, maps, features = (
        jax.device_put(array, NamedSharding(mesh, BATCH)) for array in (IMAGES, IMAGES[..., 0], FEATURES)
    )
    four = [jax.device_put(array[:4], NamedSharding(mesh, BATCH)) for array in (IMAGES, IMAGES[..., 0])]
    for method in attribution.METHODS:
        explained = test_strict.explained_by(method)
        run = lambda x, m=method, f=explained: attribution.explain(f, x, LABELS, method=m, key=KEY)  # noqa: E731
        assert jax.eval_shape(run, images).shape[:3] == maps.shape, method
    for function in (losses.variance_hinge, losses.feature_scale, losses.whitening_residual, metrics.feature_moments):
        jax.eval_shape(function, features)
    for name, metric in metrics.METRICS.items():
        jax.eval_shape(test_strict.call(name, metric.function), *four)


def test_parameters_on_the_mesh_are_passed_as_a_partial(mesh):
    images = jax.device_put(IMAGES, NamedSharding(mesh, BATCH))
    with jax.set_mesh(mesh):
        params = jax.device_put(test_strict.PARAMS, NamedSharding(mesh, PartitionSpec()))
        closed_over = partial(test_strict.network, params)
        with pytest.raises(ValueError) as error:
            attribution.explain(closed_over, images, LABELS)
        assert "jax.tree_util.Partial(function, arrays)" in "".join(error.value.__notes__)
        passed = jax.tree_util.Partial(test_strict.network, params)
        maps = attribution.explain(passed, images, LABELS)
    np.testing.assert_allclose(maps, attribution.explain(test_strict.fn, IMAGES, LABELS), rtol=1e-4, atol=1e-6)
    assert jnp.isfinite(maps).all()
