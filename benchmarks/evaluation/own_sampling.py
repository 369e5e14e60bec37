"""Which frames of a clip the public loaders of benchmarks take: they see the clip to its end first,
and then choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from vicort.runtime.core import UNIT_FRAMES


class OwnSampling(Protocol):
    @property
    def words(self) -> str:
        """What the report says of it."""
        ...

    def chosen(self, times: Sequence[Fraction], seconds: Fraction) -> list[int]:
        """Indices of the frames that are taken, rising.

        times: of all frames of the clip, in seconds. seconds: from the clip's start to the
        question.
        """
        ...


@dataclass(frozen=True)
class SpreadAtRate:
    """As many frames as a rate gives, an even number, spread evenly over the clip, its first and
    last frame included (qwen_vl_utils 0.0.8, `smart_nframes`)."""

    # (seconds that a clip may have, frames a second), rising; None = any length
    rates: tuple[tuple[int | None, Fraction], ...]
    most: int
    words: str
    least: int = 4  # FPS_MIN_FRAMES

    def chosen(self, times: Sequence[Fraction], seconds: Fraction) -> list[int]:
        rate = next(fps for limit, fps in self.rates if limit is None or seconds <= limit)
        count = max(int(_length(times, seconds) * rate), self.least)
        return _spread(len(times), min(count, self.most, len(times)))


@dataclass(frozen=True)
class SpreadCount:
    """The same number of frames of every clip, spread evenly: at most `count`, and two less than
    the clip has (OVO-Bench, models/QWen2VL.py), rounded to an even number as qwen_vl_utils does."""

    count: int
    words: str

    def chosen(self, times: Sequence[Fraction], seconds: Fraction) -> list[int]:
        return _spread(len(times), UNIT_FRAMES * round(min(self.count, len(times) - 2) / 2))


def _spread(total: int, count: int) -> list[int]:
    """`count` indices of `total`, less one if it is odd; all of them where there are too few."""
    count -= count % UNIT_FRAMES
    if count < UNIT_FRAMES:
        return list(range(min(total, UNIT_FRAMES)))
    return [int(index) for index in np.rint(_linspace(total - 1, count))]


def _linspace(last: int, count: int) -> np.ndarray:
    """From 0 to `last`, as torch.linspace computes it in fp32 on a CPU with FMA: from both ends to
    the middle, with one rounding each."""
    step = float(np.float32(last) / np.float32(count - 1))
    index = np.arange(count)
    up, down = index * step, last - index[::-1] * step
    return np.where(index < count // 2, up, down).astype(np.float32)


def _length(times: Sequence[Fraction], seconds: Fraction) -> Fraction:
    """Seconds of a clip: until the question, or until the video's end where that comes first."""
    if len(times) < 2:
        return seconds
    interval = (times[-1] - times[0]) / (len(times) - 1)
    real = interval * len(times)
    return min(seconds, real) if seconds > real + interval else seconds
