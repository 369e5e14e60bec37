"""Which frames of a source go on, decided from their timestamps alone."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from vicort.runtime.core import Frame, Motion
from vicort.runtime.errors import ConfigError


def as_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as the fraction that was meant: 29.97 is 2997/100, not the nearest binary
    number.

    Raises ConfigError unless it is a number above 0.
    """
    if (isinstance(fps, float) and not math.isfinite(fps)) or fps <= 0:
        raise ConfigError(
            f"{fps} frames a second: it must be a number above 0, or `source` for every frame "
            "(try `--fps 2`)"
        )
    return Fraction(str(fps)) if isinstance(fps, float) else Fraction(fps)


class Sampler:
    """Takes the first frame at or after each tick; the ticks are at first time + k/fps for k = 0,
    1, 2, …

    Exact: ticks never drift. A source slower than fps passes whole; ticks that fall into a gap are
    skipped, not made up for. Times, in seconds, must rise.
    """

    def __init__(self, fps: float | Fraction | None) -> None:
        """fps: frames a second to take; None takes every frame."""
        self._fps = None if fps is None else as_rate(fps)
        self._first: Fraction | None = None
        self._skipped: Motion | None = None  # of the frames since the last one that was accepted
        self._due = Fraction(0)  # time of the next tick; without meaning before the first frame

    def wants(self, time: Fraction) -> bool:
        """Whether `accepts` would accept a frame of that time; changes nothing."""
        return self._fps is None or self._first is None or time >= self._due

    def accepts(self, time: Fraction) -> bool:
        """Whether the frame of that time goes on; if so, the next tick is the first one after
        it."""
        if not self.wants(time):
            return False
        if self._fps is not None:
            self._first = time if self._first is None else self._first
            passed = math.floor((time - self._first) * self._fps)  # ticks since the first
            self._due = self._first + (passed + 1) / self._fps
        return True

    def sample(self, frame: Frame) -> Frame | None:
        """The frame if it is accepted, else None.

        An accepted frame carries the motion of the frames that were skipped before it, too.
        """
        if frame.motion:
            frame = replace(frame, motion=frame.motion.after(self._skipped))
        if not self.accepts(frame.time):
            self._skipped = frame.motion
            return None
        self._skipped = None
        return frame
