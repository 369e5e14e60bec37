"""Keys and values as int8 vectors with scales."""

import ml_dtypes
import numpy as np
import pytest

from vicort.runtime.devices.int8_vectors import quantised


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e5])
def test_no_element_is_off_by_more_than_half_a_step(dtype, size):
    vectors = (np.random.default_rng(0).normal(size=(5, 3, 64)) * size).astype(dtype)
    numbers, scales = quantised(vectors)
    assert (numbers.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (5, 3))
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(scales, np.abs(wide).max(-1) / 127, rtol=1e-6)
    off = np.abs(numbers * scales[..., None].astype(np.float64) - wide)
    assert (off <= scales[..., None] * 0.5001).all()
    assert (np.abs(numbers).max(-1) == 127).all()


def test_halves_go_to_the_even_number():
    numbers, _ = quantised(np.array([[127, 0.5, 1.5, -0.5, -2.5]], np.float32))
    assert numbers.tolist() == [[127, 0, 2, 0, -2]]


def test_zeros_and_the_smallest_numbers_are_zeros():
    tiny = np.full(4, 1e-40, np.float32)
    numbers, scales = quantised(np.stack([np.zeros(4, np.float32), tiny]))
    assert not numbers.any()
    assert not scales.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible_in_its_vector_and_in_no_other(value):
    vectors = np.ones((2, 4), np.float32)
    vectors[0, 1] = value
    numbers, scales = quantised(vectors)
    with np.errstate(invalid="ignore"):
        product = numbers * scales[:, None]
    assert np.isnan(product[0]).all()
    np.testing.assert_allclose(product[1], 1)
