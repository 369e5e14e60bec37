"""Rising frame times, from timestamps that may be missing, repeat or jump back."""

from __future__ import annotations

from fractions import Fraction

from vicort.runtime.sources.source import Warn

# seconds: a jump back of this length or more is a clock reset, a shorter one is disorder
RESET = Fraction(1)
# seconds: the tick of MPEG's clock, used between frames whose timestamps are out of order
MIN_STEP = Fraction(1, 90_000)


class Clock:
    """Exact times in seconds since the first frame. Gaps are kept. Each kind of repair is reported
    by one warning."""

    def __init__(self, step: Fraction, warn: Warn) -> None:
        """step: seconds between two frames if a timestamp is missing."""
        self._step = step
        self._warn = warn
        # added to every timestamp: minus the first one, plus the jumps of clock resets
        self._offset = Fraction(0)
        self._last: Fraction | None = None
        self._warned: set[str] = set()

    def time(self, stamp: Fraction | None) -> Fraction:
        """The time of the next frame: its timestamp if that is valid, and always later than the
        previous frame."""
        if self._last is None:
            self._last = Fraction(0)
            self._offset = -(stamp or Fraction(0))
        else:
            self._last = self._after(self._last, stamp)
        return self._last

    def _after(self, last: Fraction, stamp: Fraction | None) -> Fraction:
        if stamp is None:
            self._warn_once(
                "missing",
                (
                    f"frames without timestamps after {float(last):.3f} s: set "
                    f"{float(self._step):.3f} s apart"
                ),
            )
            return last + self._step
        time = stamp + self._offset
        if time > last:
            return time
        if last - time < RESET:
            self._warn_once(
                "disorder",
                f"timestamps out of order at {float(last):.3f} s: corrected",
            )
            return last + MIN_STEP
        self._warn_once(
            "reset",
            (
                f"timestamps jump back by {float(last - time):.3f} s at {float(last):.3f} s: time "
                "continues from there"
            ),
        )
        self._offset += last + self._step - time
        return last + self._step

    def _warn_once(self, kind: str, line: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(line)
