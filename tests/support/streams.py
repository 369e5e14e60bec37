"""Frames without video files."""

from fractions import Fraction

import numpy as np

from vicort.runtime.core import Frame


def frames(
    count: int, fps: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0, start: int = 0
) -> list[Frame]:
    """Random pictures at even times; picture i of a seed is always the same."""
    return [
        Frame(
            np.random.default_rng((seed, i)).integers(0, 256, (*size, 3), np.uint8),
            Fraction(i, fps),
            i,
        )
        for i in range(start, start + count)
    ]
