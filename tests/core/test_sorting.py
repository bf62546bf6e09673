"""Tests of sorting rows, ranks and k-th values against NumPy and SciPy."""

import jax
import numpy as np
import pytest
from scipy import stats

from sdecor.core import arrays

RNG = np.random.default_rng(0)
ASCENDING = np.array([-np.inf, -3.4e38, -1.0, -1e-37, 0.0, 1e-37, 1.0, 1 + 1e-7, 3.4e38, np.inf], np.float32)


def test_keys_have_the_order_of_the_values_and_give_them_back():
    keys = np.asarray(jax.jit(arrays.order_keys)(ASCENDING))
    assert (np.diff(keys.astype(np.int64)) > 0).all() and keys[-1] < arrays.LAST
    np.testing.assert_array_equal(arrays.key_values(keys), ASCENDING)
    assert arrays.order_keys(np.float32(-0.0)) == arrays.order_keys(np.float32(0.0))


@pytest.mark.parametrize("count", [1, 2, 37, 128, 129, 300])
def test_rows_are_sorted(count):
    keys = RNG.integers(-9, 9, (4, count)).astype(np.int32)
    keys[0, 0], keys[1, 0] = np.iinfo(np.int32).min, arrays.LAST
    np.testing.assert_array_equal(jax.jit(arrays.sort_rows)(keys), np.sort(keys, axis=1))


def test_sorting_can_be_mapped_and_runs_on_several_devices():
    keys = RNG.integers(-99, 99, (2, 3, 150)).astype(np.int32)
    expected = np.sort(keys, axis=-1)
    np.testing.assert_array_equal(jax.vmap(arrays.sort_rows)(keys), expected)
    np.testing.assert_array_equal(jax.pmap(arrays.sort_rows)(keys), expected)


def test_average_ranks_against_scipy():
    values = RNG.normal(size=(3, 50)).astype(np.float32)
    values[1:] = values[1:].round()
    np.testing.assert_array_equal(jax.jit(arrays.average_ranks)(values), stats.rankdata(values, axis=1) - 1)


def test_kth_largest_is_that_of_a_sort():
    keys = RNG.integers(-(2**31), 2**31, (6, 40)).astype(np.int32)
    keys[3:] = keys[3:] % 7 - 3
    keys[0, :2] = np.iinfo(np.int32).min, arrays.LAST
    k = np.array([1, 40, 17, 1, 40, 17])
    expected = np.sort(keys, axis=1)[np.arange(6), 40 - k]
    for search in (arrays.kth_largest, arrays._search_digits):  # the second is what a TPU runs
        np.testing.assert_array_equal(jax.jit(search)(keys, k), expected)
    np.testing.assert_array_equal(jax.jit(arrays.kth_smallest)(keys, 41 - k), expected)


def test_signed_and_unsigned_integers_have_one_order():
    numbers = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    keys = np.asarray(arrays.signed(numbers))
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    np.testing.assert_array_equal(arrays.unsigned(keys), numbers)


def test_ends_of_runs():
    ordered = np.array([[1, 1, 2, 3, 3], [4, 4, 4, 4, 4]])
    ends = [[False, True, True, False, True], [False, False, False, False, True]]
    np.testing.assert_array_equal(arrays.ends_of_runs(ordered), ends)
