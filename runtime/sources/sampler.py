"""Samples frames of a source by their timestamps alone."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from fractions import Fraction
from numbers import Rational, Real
from typing import Literal

from vicort.runtime.core import Frame, Motion
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

# intervals between frames whose mean is the source's interval
WINDOW = 16
# slots: from this interval on, each frame is the nearest one to some tick
NEAR = 2 / 3
# a source whose interval is within a tenth of a slot has about the rate that is asked for
SAME = 0.1
# slots: a longer interval counts as this long, so that one gap does not hide a high rate
GAP = 2.0
# slots: places closer than this are equal
EQUAL = 1e-6
MAX_RATE = 10**9  # frames a second; the least rate is one frame in as many seconds
# ticks a second of usual clocks, whose timestamps are rounded to a tick
CLOCKS = (1000, 90_000, 1_000_000)


def as_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as an exact fraction: 29.97 becomes 2997/100, not the nearest binary
    number. Raises ConfigError unless fps is a number from 1 / MAX_RATE to MAX_RATE.
    """
    wrong = isinstance(fps, bool) or not isinstance(fps, Real)
    if wrong or not 0 < fps <= MAX_RATE or fps * MAX_RATE < 1:
        raise ConfigError(
            f"{shown(fps)} frames per second: give a number above 0 and at most {MAX_RATE}, or "
            "`source` for every frame (try `--fps 2`)"
        )
    if isinstance(fps, Rational):  # those of NumPy would overflow
        return Fraction(int(fps.numerator), int(fps.denominator))
    return Fraction(str(fps))


def known_rate(fps: float | Fraction | Literal["source"] | None) -> Fraction | None:
    """As `as_rate`; None for "source", whose rate is not known before, and for None."""
    return None if fps is None or fps == "source" else as_rate(fps)


class Sampler:
    """Takes one frame for each tick: the nearest one, decided when the frame comes.

    The ticks are exact and do not drift: they are at first time + k/fps for k = 0, 1, 2, …, and
    the slot of tick k reaches half of 1/fps to both sides. A frame is taken for the next tick that
    has none, unless it comes too early for it:

    - by half of the source's interval or more: then the frame after it will be at least as near;
    - by half a slot or more, where the source's interval is longer than 2/3 of a slot;
    - by a whole slot or more, where the source has about the rate asked for (within a tenth). Such
      a source keeps all its frames, however they jitter.

    A frame that was left out is taken after all where it stays: where no frame is near the next
    tick, it is what the screen showed then. That is known when a later frame comes (`stays`), or
    when it is asked for a time at which the tick has passed for good (`stayed_by`).

    The source's interval is the mean of the newest ones. After its first interval alone, one of
    more than half a slot is taken for a source of the rate asked for. Ticks that pass without a
    frame are counted in `missed`. Times are in seconds and must rise.
    """

    def __init__(self, fps: float | Fraction | None) -> None:
        """fps: frames per second to accept; None accepts every frame."""
        self.missed = 0  # ticks without a frame before the newest accepted one
        self._fps = None if fps is None else as_rate(fps)
        self._first: Fraction | None = None
        # Places are in slots after the first frame. They are computed from exact times each, so
        # that no error adds up.
        self._next = 0  # number of the next tick that has no frame
        self._newest = 0.0  # place of the newest frame that was seen
        self._taken = 0.0  # place of the newest frame that was accepted
        self._intervals: deque[float] = deque(maxlen=WINDOW)  # in slots, newest last
        self._early = 0.0  # how early a frame may come for its tick
        self._late = 0.5  # from how late on it belongs to a later tick
        self._left_out: Fraction | None = None  # time of the newest frame, if it was left out
        self._kept: Frame | None = None  # that frame, if it was given to `sample`
        self._skipped: Motion | None = None  # of the frames since the last accepted one

    def wants(self, time: Fraction) -> bool:
        """Whether `accepts` would accept a frame at this time.

        Ask about every frame of the source: the sampler learns its interval. To ask again about the
        same frame changes nothing.
        """
        if self._fps is None or self._first is None:
            return True
        place = self._place(time)
        if place > self._newest + EQUAL:
            self._learn(time, place - self._newest)
            self._newest = place
        wanted = place > max(self._taken, self._next - self._early) + EQUAL
        if not wanted and place >= self._newest and time != self._left_out:
            self._left_out, self._kept = time, None
        return wanted

    def accepts(self, time: Fraction) -> bool:
        """Whether the frame at this time is accepted. If so, its tick is taken."""
        if not self.wants(time):
            return False
        if self._first is None:
            self._first = time
        place = self._place(time)
        tick = self._next
        if self._is_late(place):
            tick = max(tick, math.floor(place + 0.5))
        self.missed = tick - self._next
        self._next, self._taken = tick + 1, place
        self._left_out = self._kept = None
        return True

    def has_missed(self, time: Fraction) -> bool:
        """Whether a tick has passed without a frame at this time, whatever comes after it, and the
        newest accepted frame was on the screen then."""
        return self._left_out is None and self._is_late(self._place(time), 1.0)

    def stays(self, until: Fraction) -> bool:
        """Whether the newest frame was left out, and is taken after all because the next one is at
        this time. If so, that next one is wanted, too."""
        if self._left_out is None or until <= self._left_out or not self.wants(until):
            return False
        return self._is_late(self._place(until))

    def stayed(self, until: Fraction) -> Frame | None:
        """The frame that was left out, if it was given to `sample` and stays until a frame at this
        time. Its tick is taken then."""
        return self._take_kept() if self.stays(until) else None

    def stayed_by(self, time: Fraction) -> Frame | None:
        """The frame that was left out, if it was given to `sample` and was on the screen at a tick
        that has passed at this time, whatever comes after it. Its tick is taken then."""
        return self._take_kept() if self._is_late(self._place(time), 1.0) else None

    def sample(self, frame: Frame) -> Frame | None:
        """The frame if it is accepted, otherwise None.

        An accepted frame also carries the motion of the frames that were left out before it.
        """
        if frame.motion:
            frame = replace(frame, motion=frame.motion.after(self._skipped))
        if self.accepts(frame.time):
            self._skipped = None
            return frame
        self._skipped = frame.motion
        if frame.time == self._left_out:
            self._kept = frame
        return None

    def take_left_out(self) -> None:
        """Take the newest frame, which was left out, for the next tick."""
        if self._left_out is not None:
            self._taken = self._place(self._left_out)
            self._next += 1
            self.missed = 0
            self._left_out = self._kept = self._skipped = None

    def _take_kept(self) -> Frame | None:
        if frame := self._kept:
            self.take_left_out()
        return frame

    def _is_late(self, place: float, late: float | None = None) -> bool:
        """Whether a frame there would leave the next tick without one. late: from how many slots
        after that tick on; None = as the source is. A frame that is as near to one tick as to the
        next leaves none of them to a frame that was left out."""
        late = self._late if late is None else late
        equal = EQUAL if self._left_out is not None else -EQUAL
        return self._first is not None and place - self._next > late + equal

    def _place(self, time: Fraction) -> float:
        """Slots from the first frame to this time."""
        return (
            0.0
            if self._fps is None or self._first is None
            else float((time - self._first) * self._fps)
        )

    def _learn(self, time: Fraction, interval: float) -> None:
        """Learn from a frame at this time, that many slots after the one before."""
        self._intervals.append(min(interval, GAP))
        mean = sum(self._intervals) / len(self._intervals)
        alone = len(self._intervals) == 1
        near = self._is_near(time, interval) if alone else mean >= NEAR
        same = not alone and abs(mean - 1) <= SAME
        self._early = 1.0 if same else 0.5 if near else mean / 2
        self._late = 1.0 if same or not near else 0.5

    def _is_near(self, time: Fraction, interval: float) -> bool:
        """Whether one interval, which ends at this time, is of a source of the rate asked for."""
        return interval > 0.5 + _rounding(time) * float(self._fps or 0) + EQUAL


def _rounding(time: Fraction) -> float:
    """Seconds by which a timestamp may have been rounded."""
    return next((1 / ticks for ticks in CLOCKS if ticks % time.denominator == 0), 0.0)
