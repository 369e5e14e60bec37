"""Draws notes over the pictures of a video, each at its time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vicort.runtime.rendering.lettering import Typeface
from vicort.runtime.rendering.notes import Note
from vicort.runtime.rendering.plate import Plate, PlateMaker
from vicort.runtime.rendering.screens import Screen, screens


class Overlay:
    """The notes of a video whose pictures have one size."""

    def __init__(self, notes: Sequence[Note], height: int, width: int, face: Typeface) -> None:
        """notes: in order. height, width: of the pictures, in pixels."""
        self._maker = PlateMaker(height, width, face)
        self._screens = screens(notes, self._maker.fits)
        self._starts = [screen.start for screen in self._screens]
        self._made: tuple[Screen, Plate] | None = None

    @property
    def read_until(self) -> Fraction:
        """The time until which the last picture should stay, so that all can be read."""
        return max((screen.read_until for screen in self._screens[-1:]), default=Fraction(0))

    def changes(self, after: Fraction, before: Fraction) -> list[Fraction]:
        """The times between these two at which notes appear, change or go."""
        first = max(0, bisect_right(self._starts, after) - 1)
        times = set()
        for screen in self._screens[first:]:
            if screen.start >= before:
                break
            times |= {screen.start, screen.end}
        return sorted(time for time in times if after < time < before)

    def drawn(self, picture: np.ndarray, time: Fraction) -> np.ndarray:
        """The picture [height, width, 3] uint8 RGB with the notes of that time: a copy, or the
        picture itself where there are none."""
        index = bisect_right(self._starts, time) - 1
        if index < 0 or time >= self._screens[index].end:
            return picture
        screen = self._screens[index]
        if self._made is None or self._made[0] is not screen:
            self._made = screen, self._maker.plate(screen.notes)
        picture = picture.copy()
        self._made[1].blend(picture)
        return picture
