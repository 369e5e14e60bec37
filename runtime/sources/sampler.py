"""Samples frames of a source by their timestamps alone."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from vicort.runtime.core import Frame, Motion
from vicort.runtime.errors import ConfigError


def as_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as an exact fraction: 29.97 becomes 2997/100, not the nearest binary
    number. Raises ConfigError unless fps is a finite number above 0.
    """
    if (isinstance(fps, float) and not math.isfinite(fps)) or fps <= 0:
        raise ConfigError(
            f"{fps} frames per second: give a number above 0, or `source` for every frame (try "
            "`--fps 2`)"
        )
    return Fraction(str(fps)) if isinstance(fps, float) else Fraction(fps)


class Sampler:
    """Accepts the first frame at or after each tick. The ticks are at first time + k/fps for
    k = 0, 1, 2, …

    The ticks are exact and do not drift. All frames of a source slower than fps are accepted. Ticks
    inside a gap are skipped. Times are in seconds and must rise.
    """

    def __init__(self, fps: float | Fraction | None) -> None:
        """fps: frames per second to accept; None accepts every frame."""
        self._fps = None if fps is None else as_rate(fps)
        self._first: Fraction | None = None
        self._skipped: Motion | None = None  # of the frames since the last accepted one
        self._due = Fraction(0)  # time of the next tick; undefined before the first frame

    def wants(self, time: Fraction) -> bool:
        """Whether `accepts` would accept a frame at this time. Changes no state."""
        return self._fps is None or self._first is None or time >= self._due

    def accepts(self, time: Fraction) -> bool:
        """Whether the frame at this time is accepted. If so, the next tick is the first one after
        it."""
        if not self.wants(time):
            return False
        if self._fps is not None:
            self._first = time if self._first is None else self._first
            passed = math.floor((time - self._first) * self._fps)  # ticks since the first
            self._due = self._first + (passed + 1) / self._fps
        return True

    def sample(self, frame: Frame) -> Frame | None:
        """The frame if it is accepted, otherwise None.

        An accepted frame also carries the motion of the frames that were skipped before it.
        """
        if frame.motion:
            frame = replace(frame, motion=frame.motion.after(self._skipped))
        if not self.accepts(frame.time):
            self._skipped = frame.motion
            return None
        self._skipped = None
        return frame
