"""Steps in which sizes grow: little padding, few sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.engines.buckets import padded_rows, padded_slots

SIZES = [(padded_rows, 16, 16), (padded_slots, 8, 8)]


@pytest.mark.parametrize(("padded", "step", "share"), SIZES)
@given(count=st.integers(0, 100_000))
def test_padding_is_a_bounded_share_and_a_padded_size_is_its_own(padded, step, share, count):
    size = padded(count)
    assert size >= max(count, 1)
    assert size % step == 0
    assert size - count <= max(step, count / share)
    assert padded(size) == size


@pytest.mark.parametrize(("padded", "step", "share"), SIZES)
def test_sizes_are_few(padded, step, share):
    assert len({padded(count) for count in range(32_768)}) <= 14 * share
