"""Tests of attention maps: NumPy in float64, ways to write attention, grids and added tokens, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_transformer as tiny

from sdecor.attribution import attention_relevance, attention_rollout, legrad

close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
METHODS = (attention_rollout, attention_relevance, legrad)
PARAMS, IMAGE, TARGET = tiny.weights(), jnp.asarray(tiny.image(), jnp.float32), 1
rng = np.random.default_rng(4)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def head(tokens):
    y = tiny.normalised(tokens, PARAMS["norm/scale"], PARAMS["norm/bias"])[0]
    return y @ PARAMS["head"][:, TARGET] + PARAMS["head_bias"][0, TARGET]


def embedded():
    tokens = np.concatenate([PARAMS["token"], tiny.patches_of(tiny.image()) @ PARAMS["patches"]])
    return tokens + PARAMS["positions"]


def blocks(changes=(0.0, 0.0)):
    found, x = [], embedded()
    for i, change in enumerate(changes):
        found.append(tiny.Block(PARAMS, i, x, change))
        x = found[-1].result
    return found


def slopes(score):
    """Return the derivative of `score(change [H, T, T])` at 0 by central differences."""
    gradient = np.zeros((tiny.HEADS, 5, 5))
    for place in np.ndindex(gradient.shape):
        change = np.zeros_like(gradient)
        change[place] = 1e-5
        gradient[place] = (score(change) - score(-change)) / 2e-5
    return gradient


def expected_rollout():
    rollout = np.eye(5)
    for block in blocks():
        rollout = (block.p.mean(0) + np.eye(5)) / 2 @ rollout
    return rollout[0, 1:]


def expected_relevance():
    relevance = np.eye(5)
    for i, block in enumerate(blocks()):
        gradient = slopes(lambda d, i=i: head(blocks([d if i == j else 0.0 for j in range(2)])[-1].result))
        relevance = relevance + (gradient * block.p).clip(0).mean(0) @ relevance
    return relevance[0, 1:]


def expected_legrad():
    mean = np.zeros(5)
    for i, block in enumerate(blocks()):
        gradient = slopes(lambda d, i=i, block=block: head(tiny.Block(PARAMS, i, block.x, d).result))
        mean += gradient.clip(0).mean((0, 1)) / 2
    return mean[1:]


def test_methods_equal_their_formulas_in_float64():
    run = jax.jit(lambda x: [method(partial(tiny.apply, PARAMS), x, TARGET, upsample=None) for method in METHODS])
    for found, expected in zip(run(IMAGE), (expected_rollout(), expected_relevance(), expected_legrad()), strict=True):
        assert found.shape == (2, 2, 1) and (expected > 0).any()
        close(found.ravel(), expected, atol=1e-5 * expected.max())


def shared_values(q, k, v):
    """Attention whose heads share the values; the weights have the heads behind the queries."""
    weights = jax.nn.softmax(jnp.einsum("qhd,khd->qhk", q, k))
    return jnp.einsum("qhk,kd->qhd", weights, v[:, 0])


def shared_by_hand(q, k, v):
    return tiny.by_hand(q, k, jnp.broadcast_to(v[:, :1], v.shape))


def test_attention_is_found_in_every_form():
    def explained(**way):
        return attention_relevance(partial(tiny.apply, PARAMS, blocks=1, **way), IMAGE, TARGET)

    ways = [{}, *tiny.WAYS.values(), {"attention": shared_values}, {"attention": shared_by_hand}]
    expected, *found, shared, by_hand = jax.jit(lambda: [explained(**way) for way in ways])()
    assert expected.shape == (8, 8, 1) and not np.allclose(shared, expected, rtol=0.01)
    for values in found:
        close(values, expected, atol=1e-4 * float(expected.max()))
    close(shared, by_hand, atol=1e-5)


KERNEL = jnp.asarray(rng.normal(size=(4, 4, 3, 8)) / 7, jnp.float32)
MIXING = jnp.asarray(rng.normal(size=(3, 8, 8)) / 3, jnp.float32)
EXTRA = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
HEAD = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)


def patches(image):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image[None], KERNEL, (4, 4), "VALID", dimension_numbers=numbers)[0]


def attended(tokens, queries=None):
    q, k, v = (x @ w for x, w in zip((tokens if queries is None else queries, tokens, tokens), MIXING, strict=True))
    return jax.nn.softmax(q @ k.T / 3) @ v


def with_tokens(image, before=1, after=0, read="class"):
    """A block over a class token, patches and registers; the head reads the class token, the mean, or a pooling."""
    x = jnp.concatenate([EXTRA[:before], patches(image).reshape(-1, 8), EXTRA[:after]])
    x = x + attended(x)
    x = x + jnp.tanh(x @ MIXING[0])
    if read == "pooling":
        return attended(x, EXTRA[:1])[0] @ HEAD
    return (x[0] if read == "class" else x.mean(0)) @ HEAD


@pytest.mark.parametrize(("before", "after", "read"), [(1, 2, "class"), (0, 0, "mean"), (3, 0, "pooling")])
def test_added_tokens_and_grids_that_are_not_square(before, after, read):
    image, fn = (
        jnp.asarray(rng.normal(size=(8, 12, 3)), jnp.float32),
        partial(with_tokens, before=before, after=after, read=read),
    )

    def cut(values):
        return values[before : before + 6].reshape(2, 3, 1)

    def explained(reshape, upsample=None):
        return [method(fn, image, 0, upsample=upsample, reshape=reshape) for method in METHODS]

    found, expected, whole, large = jax.jit(
        lambda: [explained(None), explained(cut), explained(lambda values: values[None]), explained(None, "nearest")]
    )()
    for values, other, upsampled in zip(found, expected, large, strict=True):
        assert values.shape == (2, 3, 1) and (values > 0).any()
        close(values, other)
        close(upsampled, np.repeat(np.repeat(values, 4, 0), 4, 1))
    close(whole[0].sum(), 1.0)  # the row of a rollout


def test_rollout_is_the_same_for_all_classes_and_without_a_gradient():
    image = jnp.asarray(rng.normal(size=(8, 12, 3)), jnp.float32)
    rollout = jax.jit(lambda y, w: attention_rollout(lambda x: with_tokens(x) * w, image, y))
    ones, zeros = jnp.ones(2), jnp.zeros(2)
    close(rollout(0, ones), rollout(1, ones))
    assert jnp.isfinite(rollout(0, zeros)).all() and (rollout(0, zeros) > 0).any()


def windows(image):
    x = patches(image)
    x = x.reshape(2, 2, 2, 2, 8).transpose(0, 2, 1, 3, 4).reshape(4, 4, 8)
    y = jax.vmap(attended)(x)
    x, y = (z.reshape(2, 2, 2, 2, 8).transpose(0, 2, 1, 3, 4).reshape(4, 4, 8) for z in (x, y))
    return (x + y).mean((0, 1)) @ HEAD


def reduced(image):
    x = patches(image).reshape(16, 8)
    q, k = x @ MIXING[0], x.reshape(4, 4, 8).mean(1)
    return (x + jax.nn.softmax(q @ k.T) @ k).mean(0) @ HEAD


def of_channels(image):
    x = patches(image).reshape(16, 8)
    return (x + (jax.nn.softmax(x.T @ x) @ x.T).T).mean(0) @ HEAD


def merged(image):
    x = patches(image).reshape(4, 4, 8).mean(1)
    return (x + attended(x)).mean(0) @ HEAD


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (windows, "4 queries and 4 keys.* not over windows"),
        (reduced, "16 queries and 4 keys.*reduced number of keys"),
        (of_channels, "8 queries and 8 keys.* channels"),
        (merged, "over 4 tokens, not over the 4×4 positions.*Pass reshape"),
        (lambda image: jax.nn.softmax(patches(image).mean((0, 1)) @ HEAD), "no attention.*grad_cam"),
    ],
)
def test_refused(method, fn, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: method(fn, x, 0), jnp.ones((16, 16, 3)))


def test_a_score_of_several_outputs_is_explained_like_the_same_logit():
    """What else the network returns, its tokens and another attention after the blocks, has no part in the map."""
    image = jnp.asarray(rng.normal(size=(8, 12, 3)), jnp.float32)

    def fn(image):
        x = jnp.concatenate([EXTRA[:1], patches(image).reshape(-1, 8)])
        x = x + attended(x)
        other = attended(x[1:3])
        return {"tokens": x, "scores": (other, (x + jnp.tanh(x @ MIXING[0]))[0] @ HEAD)}

    def maps(fn, target):
        return [method(fn, image, target, upsample=None) for method in METHODS]

    chosen = lambda output: output["scores"][1][1]  # noqa: E731
    found, expected = jax.jit(lambda: (maps(fn, chosen), maps(lambda x: fn(x)["scores"][1], 1)))()
    for values, other in zip(found, expected, strict=True):
        assert (values > 0).any()
        close(values, other)


def test_series_of_tokens():
    """A series is its own tokens; with a token added to it, its place must be given by `reshape`."""
    tokens = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)

    def fn(x, added=0):
        x = jnp.concatenate([EXTRA[:added], x])
        x = x + attended(x)
        return x.mean(0) @ HEAD

    def expected(x):
        change = jax.grad(
            lambda d: (
                (x + (jax.nn.softmax((x @ MIXING[0]) @ (x @ MIXING[1]).T / 3) + d) @ (x @ MIXING[2])).mean(0)
                @ HEAD[:, 1]
            )
        )
        return jax.nn.relu(change(jnp.zeros((6, 6)))).mean(0)

    whole, cut, wanted = jax.jit(
        lambda: (
            legrad(fn, tokens, 1),
            legrad(partial(fn, added=1), tokens, 1, reshape=lambda values: values[1:]),
            expected(tokens),
        )
    )()
    close(whole[:, 0], wanted)
    assert cut.shape == (6, 1)
    with pytest.raises(ValueError, match="over 7 tokens, and the input has 6 positions: pass reshape"):
        legrad(partial(fn, added=1), tokens, 1)
    with pytest.raises(ValueError, match="needs an input with positions"):
        legrad(fn, tokens.ravel(), 1)


def test_bad_options():
    image = jnp.ones((8, 12, 3))
    with pytest.raises(ValueError, match="upsample"):
        jax.eval_shape(lambda x: legrad(with_tokens, x, 0, upsample="cubic"), image)
    with pytest.raises(ValueError, match=r"reshape returned shape \(7, 1\)"):
        jax.eval_shape(lambda x: legrad(with_tokens, x, 0, reshape=lambda values: values), image)
    with pytest.raises(ValueError, match="only a pooling.*attention_relevance"):
        jax.eval_shape(
            lambda x: legrad(lambda x: attended(patches(x).reshape(-1, 8), EXTRA[:1])[0] @ HEAD, x, 0), image
        )
    with pytest.raises(ValueError, match="no residual sum follows.*attention_relevance"):
        jax.eval_shape(lambda x: legrad(lambda x: attended(patches(x).reshape(-1, 8)).mean(0) @ HEAD, x, 0), image)
