"""Tests of validating counts and ranges."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.core.checks import check_count, check_range

NO_NUMBERS = ["4", None, True, np.bool_(True), np.ones(2), [1], 1 + 2j, float("nan")]


@pytest.mark.parametrize("value", [4, np.int64(4), np.uint8(4), jnp.int32(4)], ids=repr)
def test_counts_may_be_of_numpy(value):
    check_count("steps", value, 1, 4)
    check_range("steps", value, 1, 4)


@pytest.mark.parametrize("value", [0, 5, 4.0, 4.5, np.float32(4), jnp.float32(4), *NO_NUMBERS], ids=repr)
def test_what_is_no_count_is_named(value):
    with pytest.raises(ValueError, match=r"^steps = .* a whole number, 1 to 4$"):
        check_count("steps", value, 1, 4)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), jnp.bfloat16(0.5), 1], ids=repr)
def test_numbers_in_range(value):
    check_range("share", value, 0, 1, low_open=True)


@pytest.mark.parametrize("value", [0, -0.1, 1.1, *NO_NUMBERS], ids=repr)
def test_numbers_out_of_range_are_named(value):
    with pytest.raises(ValueError, match=r"^share = .* a number in \(0, 1\]$"):
        check_range("share", value, 0, 1, low_open=True)
