"""Rising frame times, from timestamps that may be missing, repeat or jump."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from vicort.runtime.sources.source import Warn

# seconds: a jump back of this length or more is a clock reset, a shorter one is disorder
RESET = Fraction(1)
# frames: the same, in containers in which timestamps may jump
RESET_FRAMES = 4
# seconds: where timestamps may jump, a jump ahead of more than this is one, as for FFmpeg
JUMP = Fraction(10)
# seconds: how exact a playlist says when timestamps jump
BREAK_SLACK = Fraction(1)
# seconds: the tick of MPEG's clock, used between frames whose timestamps are out of order
MIN_STEP = Fraction(1, 90_000)


class Clock:
    """Exact times in seconds since the start of a recording.

    Gaps are kept. Where timestamps jump, time goes on as if the next frame came one step later.
    They jump where they go back by a second or more, or to where they began; in containers that
    allow it (MPEG-TS, HLS) also where they go back by four frames, or ahead by more than ten
    seconds, or by four frames where a playlist says that they may. Smaller steps back are disorder.
    Each kind of repair is reported by one warning.
    """

    def __init__(
        self,
        step: Fraction,
        warn: Warn,
        *,
        may_jump: bool = False,
        breaks: Sequence[Fraction] = (),
    ) -> None:
        """step: seconds between two frames if a timestamp is missing. may_jump: whether the
        container allows timestamps to jump. breaks: seconds at which it declares jumps."""
        self._step = step
        self._warn = warn
        self._may_jump = may_jump
        self._breaks = breaks
        self._reset = min(RESET, RESET_FRAMES * step) if may_jump else RESET
        # added to every timestamp: minus the start, plus the jumps
        self._offset = Fraction(0)
        self._last: Fraction | None = None
        self._first_stamp: Fraction | None = None
        self.repairs: Counter[str] = Counter()  # frames whose time was repaired, by kind

    def time(
        self,
        stamp: Fraction | None,
        start: Fraction | None = None,
        step: Fraction | None = None,
    ) -> Fraction:
        """The time of the next frame: its timestamp if that is valid, and always later than the
        previous frame.

        start: the timestamp that has time 0, used for the first frame; None = its own. step: from
        the previous frame to this one if its timestamp is missing; None = as in the constructor.
        """
        if self._last is None:
            self._first_stamp = stamp or Fraction(0)
            self._offset = -min(self._first_stamp, self._first_stamp if start is None else start)
            self._last = self._first_stamp + self._offset
        else:
            self._last = self._after(self._last, stamp, step or self._step)
        return self._last

    def _after(self, last: Fraction, stamp: Fraction | None, step: Fraction) -> Fraction:
        if stamp is None:
            self._repair(
                "missing",
                f"frames without timestamps after {float(last):.3f} s: set {float(step):.3f} s "
                "apart",
            )
            return last + step
        time = stamp + self._offset
        if time > last:
            if not self._jumps_ahead(last, time - last):
                return time
            way = f"ahead by {float(time - last):.3f}"
        elif last - time < self._reset and not self._begins_again(stamp, last - time):
            self._repair(
                "out of order", f"timestamps out of order at {float(last):.3f} s: corrected"
            )
            return last + MIN_STEP
        else:
            way = f"back by {float(last - time):.3f}"
        self._repair(
            "jumping",
            f"timestamps jump {way} s at {float(last):.3f} s: time continues from there",
        )
        self._offset += last + self._step - time
        return last + self._step

    def _jumps_ahead(self, last: Fraction, ahead: Fraction) -> bool:
        if not self._may_jump or ahead < RESET_FRAMES * self._step:
            return False
        end = last + self._step
        return ahead > JUMP or any(abs(end - at) <= BREAK_SLACK for at in self._breaks)

    def _begins_again(self, stamp: Fraction, back: Fraction) -> bool:
        """Whether a jump back leads to where the timestamps began, as in files joined with
        `cat`."""
        return (
            back >= RESET_FRAMES * self._step and abs(stamp - (self._first_stamp or 0)) <= MIN_STEP
        )

    def _repair(self, kind: str, line: str) -> None:
        if not self.repairs[kind]:
            self._warn(line)
        self.repairs[kind] += 1
