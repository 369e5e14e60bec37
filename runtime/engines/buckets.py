"""Sizes that vary come in steps, so that engines meet few shapes: each new one costs a compilation
here, a CUDA graph there."""

from __future__ import annotations

import math


def padded_rows(count: int) -> int:
    """Rows of a run of the language graph that holds `count`: at most 15 are padding, or a
    sixteenth."""
    return _bucket(count, 16, 16)


def padded_slots(count: int) -> int:
    """Length of a table that holds `count` slots: at most 7 are padding, or an eighth."""
    return _bucket(count, 8, 8)


def _bucket(count: int, step: int, steps_an_octave: int) -> int:
    """The smallest multiple of `step` that holds `count`; the step doubles with each octave beyond
    the first two."""
    while count > 2 * steps_an_octave * step:
        step *= 2
    return max(math.ceil(count / step), 1) * step
