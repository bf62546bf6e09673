"""Tests of inputs of any rank, of several inputs, and of tokens behind an embedding."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.attribution import METHODS, baseline_image, explain
from sdecor.attribution.perturbation import _enlargement, _mask
from sdecor.core.arrays import blur

KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def drawn(*shape):
    return jnp.asarray(_RNG.normal(size=shape), jnp.float32)


IMAGE, TABLE = drawn(3, 4, 2), 10 * drawn(3, 5)
FIRST, SECOND = drawn(13, 7), drawn(7, 4)


def joined(vector):
    return jax.nn.relu(vector @ FIRST) @ SECOND


def network(inputs):
    """Return logits of two inputs, an image `[4, 2]` and features `[5]`."""
    return joined(jnp.concatenate([inputs["image"].ravel(), inputs["table"]]))


AS_A_VECTOR = (
    "gradient input_x_gradient integrated_gradients guided_integrated_gradients guided_backpropagation deconvnet "
    "deeplift lrp expected_gradients"
).split()


@pytest.mark.full
def test_several_inputs_are_explained_like_one_vector():
    labels, baseline = jnp.array([0, 3, 1]), {"image": IMAGE[::-1], "table": TABLE[0]}
    together = jnp.concatenate([IMAGE.reshape(3, 8), TABLE], 1)

    def maps(fn, inputs, baseline):
        found = {}
        for name in AS_A_VECTOR:
            known = inspect.signature(METHODS[name]).parameters
            options = {"steps": 3} if "steps" in known else {}
            options |= {"baseline": baseline} if "baseline" in known else {}
            options |= {"samples": 4, "baselines": inputs} if "samples" in known else {}
            found[name] = explain(fn, inputs, labels, method=name, key=KEY, chunk_size=2, **options)
        return found

    baseline["table"] = jnp.broadcast_to(baseline["table"], TABLE.shape)
    of_vector = jnp.concatenate([baseline["image"].reshape(3, 8), baseline["table"]], 1)
    found = jax.jit(partial(maps, network))({"image": IMAGE, "table": TABLE}, baseline)
    expected = jax.jit(partial(maps, joined))(together, of_vector)
    for name, values in expected.items():
        close(found[name]["image"], values[:, :8].reshape(IMAGE.shape), err_msg=name)
        close(found[name]["table"], values[:, 8:], err_msg=name)
        assert jnp.abs(values).max() > 0


def test_noise_is_relative_to_the_range_of_each_input():
    """The gradient of Σ x² at a noisy copy is 2 (x + noise), so its variance is 4 σ²."""
    square = lambda inputs: sum(jnp.sum(x**2) for x in inputs)[None]  # noqa: E731
    inputs = (IMAGE, TABLE)
    found = jax.jit(lambda x: explain(square, x, 0, method="vargrad", key=KEY, samples=300, scale=0.1))(inputs)
    for own, variance in zip(inputs, found, strict=True):
        spread = np.asarray(own.reshape(3, -1).max(1) - own.reshape(3, -1).min(1)) * 0.1
        np.testing.assert_allclose(variance.reshape(3, -1).mean(1), 4 * spread**2, rtol=0.2)


def test_completeness_errors_and_images_that_are_not_finite():
    inputs = {"image": IMAGE.at[1, 0, 0].set(jnp.nan), "table": TABLE}
    baseline = {"image": "zero", "table": jnp.ones(5)}
    options = {"method": "deeplift", "baseline": baseline, "with_error": True}
    maps, errors = jax.jit(lambda inputs: explain(network, inputs, 2, **options))(inputs)
    assert jnp.isnan(maps["table"][1]).all() and jnp.isnan(errors[1])
    rise = jax.vmap(network)(inputs)[:, 2] - network({"image": jnp.zeros((4, 2)), "table": jnp.ones(5)})[2]
    close((maps["image"].sum((1, 2)) + maps["table"].sum(1))[::2], rise[::2])
    close(errors[::2], 0, atol=1e-4)


def test_tokens_are_explained_behind_their_embedding():
    tokens, table = jnp.array([[1, 0, 3], [2, 2, 1]]), drawn(4, 6)
    rest = lambda embedded: jnp.tanh(embedded.sum(0)) @ drawn_head  # noqa: E731
    drawn_head = drawn(6, 3)
    found = explain((lambda tokens: table[tokens], rest), tokens, "predicted", method="input_x_gradient")
    close(found, explain(rest, table[tokens], "predicted", method="input_x_gradient"))
    assert found.shape == (2, 3, 6)
    with pytest.raises(ValueError, match=r"images has dtype int32: .* pair \(embed, rest\)"):
        explain(lambda tokens: rest(table[tokens]), tokens, 0)
    with pytest.raises(ValueError, match="pass the network of one example, or a pair of functions"):
        explain((rest,), tokens, 0)


@pytest.mark.parametrize(
    ("shape", "window", "stride"), [((7, 2), 3, 2), ((4, 3, 5, 1), (2, 3, 2), (1, 2, 2))], ids=["series", "volume"]
)
def test_occlusion_of_series_and_volumes_by_a_loop(shape, window, stride):
    x, weights = drawn(*shape), drawn(*shape)
    score = lambda x: jnp.sum(weights * x**2)[None]  # noqa: E731
    options = {"method": "occlusion", "window": window, "stride": stride}
    found = jax.jit(lambda x: explain(score, x[None], 0, **options)[0])(x)
    sides = shape[:-1]
    windows, strides = (np.broadcast_to(each, len(sides)) for each in (window, stride))
    total, times = np.zeros(sides), np.zeros(sides)
    counts = [-(-(side - size) // step) + 1 for side, size, step in zip(sides, windows, strides, strict=True)]
    value = np.asarray(weights * x**2, np.float64).sum(-1)
    for corner in itertools.product(*map(range, counts)):
        each = zip(corner, strides, windows, strict=True)
        place = tuple(slice(i * step, i * step + size) for i, step, size in each)
        total[place] += value[place].sum()
        times[place] += 1
    close(found[..., 0], total / times)


def test_masks_of_volumes():
    sides, cells = (5, 6, 7), (2, 3, 2)
    draws = jax.random.uniform(KEY, (12 + 3,))
    axes = [_enlargement(*each) for each in zip(draws[12:], sides, cells, strict=True)]
    expected = np.einsum("abc,ia,jb,kc->ijk", (draws[:12] < 0.5).reshape(cells), *axes)
    close(_mask(KEY, sides, cells, 0.5), expected)
    series = explain(
        lambda x: 50 * x[jnp.array([4, 0]), 0], jnp.ones((1, 9, 1)), 0, method="rise", key=KEY, samples=300
    )
    assert int(jnp.argmax(series[0, :, 0])) in (3, 4, 5)


def test_blur_along_every_axis():
    x = np.asarray(drawn(2, 4, 5, 6, 3), np.float64)
    expected = x
    for axis in (1, 2, 3):
        place = np.arange(x.shape[axis])
        weights = np.exp(-0.5 * ((place[:, None] - place) / 1.5) ** 2)
        expected = np.moveaxis(np.tensordot(weights / weights.sum(1)[:, None], expected, (1, axis)), 0, axis)
    close(blur(jnp.asarray(x, jnp.float32), 1.5), expected)
    assert baseline_image("blur", jnp.ones((6, 2))).shape == (6, 2)


def convolutional(axes, first):
    """Return features `[*grid, D]` and logits of a network with one convolution and mean pooling."""
    letters = "XYZ"[:axes]
    numbers = (
        (f"NC{letters}", f"{letters}IO", f"NC{letters}") if first else (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    )
    kernel, head = drawn(*[3] * axes, 2, 4), drawn(4, 3)

    def maps(x):
        x = jnp.moveaxis(x, -1, 0) if first else x
        return jax.nn.relu(
            jax.lax.conv_general_dilated(x[None], kernel, (2,) * axes, "SAME", dimension_numbers=numbers)
        )

    def batched(x):
        return jax.vmap(lambda each: maps(each)[0])(x[None])  # as users call an Equinox module

    places = range(2, 2 + axes) if first else range(1, 1 + axes)
    fn = lambda x: batched(x).mean(tuple(places))[0] @ head  # noqa: E731
    features = lambda x: jnp.moveaxis(maps(x)[0], 0, -1) if first else maps(x)[0]  # noqa: E731
    return fn, features, head


@pytest.mark.parametrize(("axes", "first"), [(1, False), (1, True), (2, True), (3, False)])
def test_class_activation_maps_of_series_volumes_and_channels_first(axes, first):
    """With mean pooling, Grad-CAM is CAM: the features weighted by the class's row of the head."""
    fn, features, head = convolutional(axes, first)
    x = drawn(*(8, 6, 4)[:axes], 2)
    found = jax.jit(lambda x: explain(fn, x, 1, method="grad_cam", relu=False, upsample=None))(x[None])[0]
    expected = features(x) @ head[:, 1:2]
    close(found, expected / expected.size)
    full = jax.eval_shape(lambda x: explain(fn, x, 1, method="grad_cam"), x[None])
    assert full.shape == (1, *x.shape[:-1], 1)


def test_channels_first_images_are_refused_by_cams():
    fn, *_ = convolutional(2, True)
    swapped = lambda image: fn(jnp.moveaxis(image, 0, -1))  # noqa: E731
    with pytest.raises(ValueError, match=r"pass images with channels last; .*moveaxis\(x, -1, 0\)"):
        explain(swapped, drawn(1, 2, 16, 16), 0, method="grad_cam")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (TABLE, {"method": "occlusion"}, r"occlusion needs an input with positions, .* has shape \(5,\)"),
        (TABLE, {"method": "blur_integrated_gradients"}, "blur_integrated_gradients needs an input with positions"),
        (TABLE, {"method": "integrated_gradients", "baseline": "mean"}, r"'mean' is taken over positions"),
        ({"a": TABLE, "b": TABLE}, {"method": "rise", "key": KEY}, "rise needs .* is a tree of arrays"),
        ({"a": TABLE, "b": TABLE}, {"method": "grad_cam"}, "a class activation map needs an input with positions"),
        ((TABLE, TABLE[:2]), {}, r"arrays of shape \(3, 5\), \(2, 5\): pass as many examples"),
        ((), {}, "images holds no array"),
        (TABLE[0], {}, r"images has shape \(5,\): pass a batch"),
        ({"a": TABLE}, {"method": "deeplift", "baseline": (0.0,)}, "baseline has the structure"),
        (drawn(2, 6, 2), {"method": "occlusion", "window": (2, 2)}, "one for each of the 1 axes of positions"),
    ],
)
def test_errors_about_inputs(images, options, message):
    total = lambda x: jnp.stack([sum(leaf.sum() for leaf in jax.tree.leaves(x))] * 2)  # noqa: E731
    with pytest.raises(ValueError, match=message):
        explain(total, images, 0, **options)


def test_a_network_that_does_not_take_one_example_gets_a_note():
    with pytest.raises(Exception) as error:
        explain(lambda x: x @ jnp.ones((7, 2)), TABLE, 0)
    assert "explain calls fn with one example, here of shape (5,)" in "".join(error.value.__notes__)
