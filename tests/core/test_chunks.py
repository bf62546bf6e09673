"""Tests of running sums and moments in chunks: values against float64 NumPy, bounded memory, default chunk size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.core import chunks

COUNT = 13


@pytest.fixture
def terms():
    return np.random.default_rng(0).normal(size=(COUNT, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("at_once", [None, 1, 2, 5, 12, 13, 14, 100])
def test_sums_and_moments_equal_numpy(terms, at_once):
    table = jnp.asarray(terms)
    total = jax.jit(lambda: chunks.sum_over(lambda i: table[i], COUNT, at_once=at_once))()
    mean, variance = jax.jit(lambda: chunks.moments_over(lambda i: table[i], COUNT, at_once=at_once))()
    exact = terms.astype(np.float64)
    np.testing.assert_allclose(total, exact.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_terms(terms, count):
    table = jnp.asarray(terms)
    np.testing.assert_allclose(
        chunks.sum_over(lambda i: table[i], count, at_once=3), terms[:count].sum(0), rtol=1e-5, atol=1e-6
    )
    _, variance = chunks.moments_over(lambda i: table[i], count, at_once=3)
    np.testing.assert_allclose(variance, terms[:count].var(0), rtol=1e-4, atol=1e-7)


def test_every_term_is_evaluated_and_counted_once():
    """The last group of 3 is padded; the padding's values, even NaN, must not count."""
    evaluated = chunks.sum_over(lambda i: jax.nn.one_hot(i, 7), 7, at_once=3)
    np.testing.assert_array_equal(evaluated, 1)
    seen = chunks.sum_over(lambda i: jnp.where(i == 6, jnp.nan, 1.0), 7, at_once=3)
    assert jnp.isnan(seen)
    assert chunks.sum_over(lambda i: i, 7, at_once=3) == 21


def test_sums_of_trees(terms):
    table = jnp.asarray(terms)
    found = chunks.sum_over(lambda i: {"x": table[i], "index": (i, 2.0 * i)}, COUNT, at_once=4)
    np.testing.assert_allclose(found["x"], terms.sum(0), rtol=1e-5, atol=1e-6)
    assert found["index"][0] == 78 and found["index"][0].dtype == jnp.int32
    assert found["index"][1] == 156


def test_variance_of_nearly_equal_terms():
    """A mean of 10⁴ times the spread costs no digits, unlike with the difference of two sums of squares."""
    offsets = np.random.default_rng(1).normal(size=50)
    values = (1e4 + offsets).astype(np.float32)
    for at_once in (1, 7, 50):
        _, variance = chunks.moments_over(lambda i: jnp.asarray(values)[i], 50, at_once=at_once)
        np.testing.assert_allclose(variance, values.astype(np.float64).var(), rtol=2e-3)
        _, none = chunks.moments_over(lambda i: jnp.float32(0.1) + 0 * i, 50, at_once=at_once)
        np.testing.assert_allclose(none, 0, atol=1e-14)


def test_sums_lift_over_examples(terms):
    table = jnp.asarray(terms)
    scaled = jax.vmap(lambda scale: chunks.sum_over(lambda i: scale * table[i], COUNT, at_once=4))
    np.testing.assert_allclose(
        scaled(jnp.array([1.0, -2.0])), np.array([1, -2])[:, None, None] * terms.sum(0), rtol=1e-5, atol=1e-5
    )


def temporary_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("run", [chunks.sum_over, chunks.moments_over])
def test_memory_is_bounded_by_the_terms_at_once_and_not_by_their_number(run):
    def needed(count, at_once):
        return temporary_bytes(
            lambda x: run(lambda i: jnp.sort(jnp.sin(x * i))[:9], count, at_once=at_once), jnp.ones(10_000)
        )

    assert needed(1000, 2) < 1.1 * needed(16, 2)
    assert needed(1024, 64) > 8 * needed(1024, 2)


@pytest.mark.parametrize("at_once", [None, 2, 13])
def test_narrow_floats_are_summed_in_float32(at_once):
    """Summed in bfloat16, 2,000 terms of 1 would give 256, since 256 + 1 = 256 there."""

    def term(i):
        return jnp.ones(2, jnp.bfloat16) + (i % 2).astype(jnp.bfloat16)

    total = jax.jit(lambda: chunks.sum_over(term, 2000, at_once=at_once))()
    mean, variance = jax.jit(lambda: chunks.moments_over(term, 2000, at_once=at_once))()
    assert total.dtype == mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_array_equal(total, 3000)
    np.testing.assert_allclose(mean, 1.5, rtol=1e-6)
    np.testing.assert_allclose(variance, 0.25, rtol=1e-5)


def test_dtypes_stay_with_64_bits(terms):
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            term = jnp.asarray(terms, dtype).__getitem__
            total, (mean, variance) = chunks.sum_over(term, 13, at_once=2), chunks.moments_over(term, 13, at_once=2)
            assert total.dtype == mean.dtype == variance.dtype == dtype
            np.testing.assert_allclose(variance, terms.var(0, np.float64), rtol=1e-5)
        assert chunks.sum_over(lambda i: i, 5, at_once=2).dtype == jnp.int32


def test_examples_of_a_sharded_batch_stay_on_their_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = jax.device_put(jnp.arange(64.0).reshape(32, 2), sharded)
    run = jax.jit(lambda x: chunks.map_examples(lambda row: jnp.tanh(row).sum(), (x,), 8), out_shardings=sharded)
    program = run.lower(x).compile()
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(program(x), np.tanh(np.arange(64.0).reshape(32, 2)).sum(1), rtol=1e-6)


@pytest.mark.parametrize("at_once", [None, 1, 2, 4, 5, 6, 100])
def test_map_examples_equals_vmap(at_once):
    def one(x, own):
        drawn = jax.random.normal(own["key"])
        return {"y": jnp.tanh(x) * own["scale"] + drawn, "i": own["index"] + 1, "key": own["key"]}

    own = {"scale": jnp.arange(6.0), "index": jnp.arange(6), "key": jax.random.split(jax.random.key(0), 6)}
    arguments = jnp.arange(18.0).reshape(6, 3), own
    found = jax.jit(lambda *a: chunks.map_examples(one, a, at_once))(*arguments)
    expected = jax.vmap(one)(*arguments)
    found, expected = ({**tree, "key": jax.random.key_data(tree["key"])} for tree in (found, expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("n", "chunk_size", "expected"),
    [
        (8, None, (8, 1)),
        (8, 1, (1, 1)),
        (8, 8, (8, 1)),
        (8, 15, (8, 1)),
        (8, 16, (8, 2)),
        (3, 64, (3, 21)),
        (0, 4, (1, 4)),
    ],
)
def test_divide(n, chunk_size, expected):
    assert chunks.divide(n, chunk_size) == expected


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="chunk_size = "):
        chunks.divide(4, wrong)
    with pytest.raises(ValueError, match="count = "):
        chunks.sum_over(lambda i: i, 0)


def test_default_chunk_size_shrinks_with_the_function(monkeypatch):
    monkeypatch.setattr(chunks, "_memory", lambda device: 4 * 2**20)  # the default takes a quarter

    def chain(length):
        def fn(x):
            for _ in range(length):
                x = jax.checkpoint(jnp.tanh)(x) if length % 2 else jax.jit(jnp.tanh)(x)
            return x

        return fn

    x = jax.ShapeDtypeStruct((4096,), jnp.float32)  # 16 KiB per array: 64 fit
    assert chunks.default_chunk_size(chain(2), x) == 32
    assert chunks.default_chunk_size(chain(3), x) == 16  # rounded down to a power of two
    assert chunks.default_chunk_size(chain(64), x) == 1
    assert chunks.default_chunk_size(chain(200), x) == 1
    assert jax.jit(lambda x: x * chunks.default_chunk_size(chain(2), x))(jnp.ones(4096))[0] == 32
    assert chunks.default_chunk_size(lambda x: x[:1] + 1, x) == 64  # a larger one gains nothing on a CPU


def test_default_chunk_size_counts_every_round_of_a_loop_and_one_branch(monkeypatch):
    monkeypatch.setattr(chunks, "_memory", lambda device: 4 * 2**20)

    def loop(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, length=8)[0]

    def branches(x):
        return jax.lax.cond(x[0] > 0, jnp.tanh, lambda x: jnp.sin(jnp.sin(x)), x)

    x = jax.ShapeDtypeStruct((4096,), jnp.float32)
    assert chunks.default_chunk_size(loop, x) == 8
    assert chunks.default_chunk_size(branches, x) in (16, 32)
