"""Reels of the synthetic world that no file was made for."""

from __future__ import annotations

import numpy as np

from vicort.export.tiny.painter import Painter
from vicort.export.tiny.reels import Reel, labels
from vicort.export.tiny.video import letterbox
from vicort.export.tiny.world import StreamPlan, ThingStream, make_stream

MIXED = StreamPlan(
    stay=(0.8, 3.0), gap=(0.0, 1.5), touching=0.3, beside=0.4, again=0.2, growing=0.3, covered=0.2
)


def reel_of(
    stream: ThingStream, step: float = 0.5, drawn: bool = False, shift: tuple = (0.5, 0.5)
) -> Reel:
    """Frames every `step` seconds, drawn in the default look, or else numbered: every pixel of a
    unit is its number."""
    count = 2 * int(stream.duration / step / 2 + 1)
    times = [index * step for index in range(count)]
    if drawn:
        painter = Painter(stream, round(112 * stream.aspect), 112)
        frames = np.stack([letterbox(painter.frame(time), shift) for time in times])
        units = frames.reshape(-1, 2, 112, 112, 3)
    else:
        units = np.empty((count // 2, 2, 112, 112, 3), np.uint8)
        units[:] = np.arange(count // 2, dtype=np.uint8)[:, None, None, None, None]
    there = labels(stream, times)
    return Reel(units, there, np.reshape(times, (-1, 2)), stream.things, stream.aspect, shift)


def mixed_reel(seed: int, objects: int = 5, aspect: float = 1.0, **options) -> Reel:
    return reel_of(make_stream(seed, objects, aspect, 2.0, 2.0, MIXED), **options)
