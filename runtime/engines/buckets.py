"""Dynamic sizes are padded to buckets, because every new shape costs an engine a compilation or a
CUDA graph."""

from __future__ import annotations

import math


def padded_rows(count: int) -> int:
    """Rows of a language graph run that holds `count` rows: at most 15 rows, or a sixteenth, are
    padding."""
    return _bucket(count, 16, 16)


def padded_slots(count: int) -> int:
    """Length of a table that holds `count` slots: at most 7 slots, or an eighth, are padding."""
    return _bucket(count, 8, 8)


def padded_ends(count: int) -> int:
    """Rows of a run after which the next token is looked at: the next power of 2."""
    return 1 << (count - 1).bit_length()


def _bucket(count: int, step: int, steps_an_octave: int) -> int:
    """The smallest multiple of `step` that is not below `count`; the step doubles with each octave
    after the first two."""
    while count > 2 * steps_an_octave * step:
        step *= 2
    return max(math.ceil(count / step), 1) * step
