"""Which frames the public loaders of benchmarks take: they see a video or a clip of it to its end
first, and then choose."""

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

    def chosen(self, times: Sequence[Fraction], start: Fraction, asked: Fraction) -> list[int]:
        """Indices of the frames that are taken for a question, rising.

        times: of all frames of the video. start: where its clip starts; asked: where it ends. All
        in seconds.
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

    def chosen(self, times: Sequence[Fraction], start: Fraction, asked: Fraction) -> list[int]:
        seconds, clip = asked - start, _clip(times, start, asked)
        rate = next(fps for limit, fps in self.rates if limit is None or seconds <= limit)
        length = _length([times[index] for index in clip], seconds)
        count = max(int(length * rate), self.least)
        return _spread(clip, min(count, self.most, len(clip)))


@dataclass(frozen=True)
class SpreadCount:
    """The same number of frames of every clip, spread evenly: at most `count`, and two less than
    the clip has (OVO-Bench, models/QWen2VL.py), rounded to an even number as qwen_vl_utils does."""

    count: int
    words: str

    def chosen(self, times: Sequence[Fraction], start: Fraction, asked: Fraction) -> list[int]:
        clip = _clip(times, start, asked)
        return _spread(clip, UNIT_FRAMES * round(min(self.count, len(clip) - 2) / 2))


@dataclass(frozen=True)
class WholeVideo:
    """Frames of the whole video at a rate, of which a question sees the first ones, as many as the
    rate gives until its time (ReKV, video_qa/rekv_stream_vqa.py)."""

    rate: Fraction  # frames a second
    words: str

    def chosen(self, times: Sequence[Fraction], start: Fraction, asked: Fraction) -> list[int]:
        """A video of one frame a second, as .npy files are, is spread over; of another one each
        frame is taken whose number is a multiple. start: takes no part."""
        total = len(times)
        native = 1 if total < 2 else round((total - 1) / (times[-1] - times[0]))
        if native <= 1:
            taken = np.linspace(0, total - 1, int(total * self.rate), dtype=int).tolist()
        else:
            taken = list(range(0, total, int(native / self.rate)))
        return taken[: int(asked * self.rate)]


def _clip(times: Sequence[Fraction], start: Fraction, asked: Fraction) -> list[int]:
    """Indices of the frames from `start` to before the question, as a file that is cut there has
    them."""
    return [index for index, time in enumerate(times) if start <= time < asked]


def _spread(clip: Sequence[int], count: int) -> list[int]:
    """`count` frames of a clip, less one if it is odd; all of them where there are too few."""
    count -= count % UNIT_FRAMES
    if count < UNIT_FRAMES:
        return list(clip[:UNIT_FRAMES])
    return [clip[int(place)] for place in np.rint(_linspace(len(clip) - 1, count))]


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
