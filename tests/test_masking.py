"""Tests of masks: exactly k positions, random ties, and the fills."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sdecor import masking

SHAPE = (6, 10, 7)
least_salient = jax.jit(masking.least_salient)
fill = jax.jit(masking.fill, static_argnames="how")


def saliency_of(kind: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = {
        "zero": np.zeros(shape),
        "constant": np.full(shape, 0.3),
        "two values": rng.integers(0, 2, shape),
        "mostly zero": np.where(rng.random(shape) < 0.7, 0.0, rng.random(shape)),
        "signed zeros": np.where(rng.random(shape) < 0.5, -0.0, 0.0),
        "random": rng.random(shape),
        "signed": rng.normal(size=shape),
        "few levels": rng.integers(-3, 4, shape),
        "tiny and huge": rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape),
        "infinite": np.where(rng.random(shape) < 0.3, np.inf, -rng.random(shape)),
    }
    return values[kind].astype(np.float32)


KINDS = ("zero", "constant", "two values", "mostly zero", "signed zeros", "random", "signed", "few levels",
         "tiny and huge", "infinite")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("highest", [False, True])
def test_exactly_k_positions_of_lowest_saliency_are_masked(key, kind, highest):
    saliency = saliency_of(kind)
    for fraction in (0.0, 1 / 70, 0.1, 0.29, 0.5, 0.501, 0.7, 69 / 70, 0.999):
        k = int(fraction * 70 + 1e-3)
        mask = np.asarray(least_salient(key, saliency, fraction=jnp.float32(fraction), highest=highest))
        assert mask.dtype == bool and mask.shape == SHAPE
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), k)
        must, may = oracles.least_salient(-saliency if highest else saliency, k)
        assert mask[must].all() and not mask[~(must | may)].any()


def test_blocks_of_lowest_mean_saliency_are_masked_whole(key):
    saliency = saliency_of("signed", (3, 12, 8))
    means = saliency.reshape(3, 3, 4, 2, 4).astype(np.float64).mean((2, 4))
    mask = np.asarray(masking.least_salient(key, saliency, fraction=0.5, block=4))
    must, _ = oracles.least_salient(means, 3)
    must |= means == np.sort(means.reshape(3, -1))[:, 2, None, None]
    np.testing.assert_array_equal(mask, must.repeat(4, axis=1).repeat(4, axis=2))
    row = masking.least_salient(key, saliency[:, 0], fraction=0.5, block=2)  # series
    assert np.asarray(row).reshape(3, 4, 2).all(-1).sum(1).tolist() == [2, 2, 2]


def test_wrong_blocks_are_named(key):
    with pytest.raises(ValueError, match=r"block = 3 does not divide the positions \(10, 7\)"):
        masking.least_salient(key, saliency_of("random"), fraction=0.5, block=3)
    with pytest.raises(ValueError, match="block = 0"):
        masking.least_salient(key, saliency_of("random"), fraction=0.5, block=0)


def test_nan_ranks_above_every_number(key):
    saliency = saliency_of("random").copy()
    saliency[:, :3] = np.nan
    saliency[:, 3] = np.inf
    mask = np.asarray(least_salient(key, saliency, fraction=0.6))
    np.testing.assert_array_equal(mask.sum(axis=(1, 2)), 42)
    assert mask[:, 4:].all() and not mask[:, :4].any()


@pytest.mark.parametrize("size", [(10, 10), (20, 50), (3, 100)])
def test_number_masked_is_the_same_for_numbers_and_traced_values(key, size):
    saliency = jnp.zeros((1, *size))
    count = jax.jit(lambda f: jnp.sum(masking.least_salient(key, saliency, fraction=f)))
    for percent in range(0, 100, 7):
        exact = percent * size[0] * size[1] // 100
        assert masking._number_masked(percent / 100, size[0] * size[1]) == exact
        assert count(jnp.float32(percent / 100)) == exact


@pytest.mark.parametrize("positions", [200 * 200, 300 * 300, 1000 * 1000])
def test_number_masked_is_exact_in_large_images(positions):
    fractions = np.arange(100) / 100
    traced = jax.vmap(partial(masking._number_masked, positions=positions))(jnp.float32(fractions))
    np.testing.assert_array_equal(traced, np.arange(100) * positions // 100)


@pytest.mark.parametrize("positions", [1024, 224 * 224, 3000 * 1000])
def test_number_masked_is_exact_for_fractions_of_four_digits(positions):
    numerators = np.arange(10_000)
    exact = (numerators * positions + 10) // 10_000  # floor(fraction · positions + 1e-3) in integers
    traced = jax.jit(partial(masking._number_masked, positions=positions))(jnp.float32(numerators / 10_000))
    np.testing.assert_array_equal(traced, exact)
    for i in np.concatenate([numerators[::97], np.flatnonzero(numerators * positions % 10_000 == 9990)[:100]]):
        assert masking._number_masked(int(i) / 10_000, positions) == exact[i]


def test_ties_are_broken_uniformly():
    trials, k = 3000, 12
    saliency = np.zeros((trials, 5, 8), np.float32)
    saliency[:, 0, :4] = -1.0  # always masked
    saliency[:, 4, :] = 1.0  # never masked
    mask = np.asarray(least_salient(jax.random.key(3), saliency, fraction=k / 40 + 1e-4))
    counts = mask.sum(axis=0)
    assert (counts[0, :4] == trials).all() and (counts[4] == 0).all()
    tied = np.concatenate([counts[0, 4:], counts[1:4].ravel()])
    share = (k - 4) / len(tied)
    statistic = np.sum((tied - trials * share) ** 2) / (trials * share * (1 - share)) * (len(tied) - 1) / len(tied)
    assert statistic < 2 * len(tied)  # chi-squared with 27 degrees of freedom exceeds 56 once in a thousand


def test_masks_of_tied_images_differ_between_examples_and_keys(key):
    zeros = np.zeros((4, 8, 8), np.float32)
    first, second = (np.asarray(least_salient(k, zeros, fraction=0.5)) for k in (key, jax.random.key(1)))
    assert (first[0] != first[1]).any() and (first != second).any()
    np.testing.assert_array_equal(first, least_salient(key, zeros, fraction=0.5))


@pytest.mark.parametrize("kind", ["random", "mostly zero", "zero"])
def test_an_example_does_not_depend_on_its_batch(key, kind):
    keys, saliency = jax.random.split(key, 6), saliency_of(kind)
    saliency[0] = np.arange(70).reshape(10, 7)  # the first image has no ties
    images = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
    whole = least_salient(keys, saliency, fraction=0.5)
    filled = fill(keys, images, whole)
    order = np.array([3, 0, 5])
    np.testing.assert_array_equal(least_salient(keys[order], saliency[order], fraction=0.5), whole[order])
    np.testing.assert_array_equal(fill(keys[order], images[order], whole[order]), filled[order])


def test_devices_and_vmap_give_the_same_masks_and_fills(key):
    keys = jax.random.split(key, 8)
    saliency = saliency_of("mostly zero", (8, 4, 5))
    images = np.random.default_rng(0).normal(size=(8, 4, 5, 3)).astype(np.float32)

    def masked(keys: jax.Array, saliency: jax.Array, images: jax.Array, fraction: jax.Array) -> tuple:
        mask = masking.least_salient(keys, saliency, fraction=fraction)
        return mask, masking.fill(keys, images, mask)

    expected = jax.jit(masked)(keys, saliency, images, 0.4)
    split = keys.reshape(4, 2), saliency.reshape(4, 2, 4, 5), images.reshape(4, 2, 4, 5, 3), 0.4
    for lift in (partial(jax.pmap, devices=jax.devices()[:4]), lambda f, in_axes: jax.jit(jax.vmap(f, in_axes))):
        mask, filled = lift(masked, in_axes=(0, 0, 0, None))(*split)
        np.testing.assert_array_equal(mask.reshape(8, 4, 5), expected[0])
        np.testing.assert_allclose(filled.reshape(8, 4, 5, 3), expected[1], atol=1e-6)


@pytest.mark.parametrize("how", masking.FILLS)
def test_no_gradient_flows_through_mask_or_fill(key, how):
    images = jax.random.normal(key, (2, 4, 5, 3))

    def total(images: jax.Array, saliency: jax.Array) -> jax.Array:
        mask = masking.least_salient(key, saliency, fraction=0.5)
        return jnp.sum(masking.fill(key, images, mask, how=how) ** 2) + jnp.sum(jnp.where(mask, 1.0, 0.0))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(images, images[..., 0] ** 2)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5])
def test_wrong_fractions_are_named(key, bad):
    with pytest.raises(ValueError, match="fraction"):
        masking.least_salient(key, jnp.zeros((1, 4, 4)), fraction=bad)


# Order and ranking


def test_alternate_masks_the_highest_on_odd_steps(key):
    saliency = jnp.arange(16.0).reshape(1, 4, 4)
    mask = jax.jit(
        lambda step: masking.least_salient(
            key, saliency, fraction=0.25, highest=masking.masks_highest("alternate", step)
        )
    )
    for step in range(3):
        np.testing.assert_array_equal(np.flatnonzero(mask(step)), np.arange(4) + (12 if step % 2 else 0))
    assert masking.masks_highest("highest", 0) is True and masking.masks_highest("lowest", 1) is False
    with pytest.raises(ValueError, match="order = 'random'.*lowest.*highest.*alternate"):
        masking.masks_highest("random", 0)


def test_rank_saliency_means_magnitudes_or_signed_values():
    gradient = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(masking.rank_saliency(gradient), np.abs(gradient).mean(-1), rtol=1e-6)
    np.testing.assert_allclose(masking.rank_saliency(gradient, rank_by="signed"), gradient.mean(-1), atol=1e-7)
    half = masking.rank_saliency(jnp.asarray(gradient, jnp.bfloat16))
    assert half.dtype == jnp.float32
    with pytest.raises(ValueError, match="rank_by = 'square'.*abs.*signed"):
        masking.rank_saliency(gradient, rank_by="square")


# Fills


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(*SHAPE, 3)) * [0.5, 1, 2] + [0, 5, -3]).astype(np.float32)


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(1).random(SHAPE) < 0.5


@pytest.mark.parametrize("how", masking.FILLS)
def test_unmasked_positions_are_left_alone(key, images, mask, how):
    filled = np.asarray(fill(key, images, mask, how=how))
    assert filled.dtype == np.float32 and filled.shape == images.shape
    np.testing.assert_array_equal(filled[~mask], images[~mask])
    assert (filled[mask] != images[mask]).all()


def test_deterministic_fills_equal_their_definitions(key, images, mask):
    np.testing.assert_array_equal(fill(key, images, mask, how="zero")[mask], 0.0)
    means = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    np.testing.assert_allclose(fill(key, images, mask, how="mean")[mask], means[mask], rtol=1e-5)
    for sigma in (0.7, 3.0):
        blurred = np.stack([oracles.gaussian_blur(image, sigma) for image in images])
        filled = fill(key, images, mask, how="blur", blur_sigma=sigma)
        np.testing.assert_allclose(filled[mask], blurred[mask], rtol=1e-4, atol=1e-5)


def test_blur_keeps_a_flat_image_and_narrow_is_the_identity(key, images, mask):
    flat = np.full((1, 5, 9, 3), 2.5, np.float32)
    np.testing.assert_allclose(fill(key, flat, np.ones((1, 5, 9), bool), how="blur"), flat, rtol=1e-6)
    np.testing.assert_allclose(fill(key, images, mask, how="blur", blur_sigma=0.05), images, rtol=1e-6)


def test_uniform_fill_spans_each_channels_range_independently(key):
    rng = np.random.default_rng(0)
    images = (rng.random(size=(2, 60, 50, 3)) * [1, 4, 0] + [0, -7, 3]).astype(np.float32)
    filled = np.asarray(fill(key, images, np.ones(images.shape[:3], bool)))
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    assert (filled >= low).all() and (filled <= high).all()
    np.testing.assert_array_equal(filled[..., 2], 3.0)
    share = ((filled - low) / np.maximum(high - low, 1e-9))[..., :2].reshape(2, 3000, 2)
    np.testing.assert_allclose(np.histogram(share, bins=10, range=(0, 1))[0] / share.size, 0.1, atol=0.015)
    draws = np.concatenate([share[0], share[1]], axis=1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.08  # between channels and examples
    assert abs(np.corrcoef(share[0, 1:, 0], share[0, :-1, 0])[0, 1]) < 0.08  # between neighbours


def test_bfloat16_images_stay_bfloat16(key, images, mask):
    half = jnp.asarray(images, jnp.bfloat16)
    for how in masking.FILLS:
        assert fill(key, half, mask, how=how).dtype == jnp.bfloat16


def test_wrong_fills_are_named(key, images, mask):
    with pytest.raises(ValueError, match="how = 'blurr'.*did you mean 'blur'.*uniform"):
        masking.fill(key, images, mask, how="blurr")
    with pytest.raises(ValueError, match="blur_sigma"):
        masking.fill(key, images, mask, how="blur", blur_sigma=0.0)
    with pytest.raises(AssertionError):
        masking.fill(key, images, mask[:, :5])


def test_several_batches_at_once_are_masked_as_each_alone(key):
    """Under `vmap`, batches may differ in their fraction and in whether they have ties."""
    saliency = jax.random.normal(key, (3, 4, 5, 6)).at[1].set(0.0)
    keys, fractions = jax.random.split(key, 3), jnp.array([0.5, 0.3, 0.0])
    many = jax.vmap(lambda key, x, share: least_salient(key, x, fraction=share))
    one = [least_salient(keys[i], saliency[i], fraction=fractions[i]) for i in range(3)]
    np.testing.assert_array_equal(many(keys, saliency, fractions), np.stack(one))
    shared = jax.vmap(lambda x: least_salient(key, x, fraction=0.5))(saliency)
    np.testing.assert_array_equal(shared[1], least_salient(key, saliency[1], fraction=0.5))
