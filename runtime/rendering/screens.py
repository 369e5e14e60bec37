"""Which notes are on the screen, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

from vicort.runtime.rendering.notes import Note

STAYS = Fraction(10)  # seconds, at most, if it can be read in them
NOTICED = Fraction(3)  # seconds to notice a note, which stays so long beside later ones
TURNED = Fraction(1)  # second to notice that other notes of the same moment are shown
LETTERS_A_SECOND = 20
Fits = Callable[[Sequence[Note]], bool]  # whether notes fit on the screen together


@dataclass(frozen=True)
class Screen:
    """Notes that are shown together from `start` until `end`, in seconds."""

    start: Fraction
    end: Fraction
    notes: tuple[Note, ...]  # the oldest first
    read_until: Fraction  # seconds: it should stay so long to be read


def screens(notes: Iterable[Note], fits: Fits) -> list[Screen]:
    """The screens of notes in the order of their times.

    Notes of one time are shown together where they fit, otherwise in turn until the next time.
    Earlier notes stay above them for `NOTICED` seconds, where they fit too. A screen stays until
    the next one, but at most `STAYS` seconds, or as long as it takes to be read.
    """
    moments = [(at, list(group)) for at, group in groupby(notes, key=lambda note: note.at)]
    made: list[Screen] = []
    shown: Sequence[Note] = ()
    for index, (at, group) in enumerate(moments):
        until = moments[index + 1][0] if index + 1 < len(moments) else None
        kept = [note for note in shown if note.at + NOTICED > at]
        while kept and not fits([*kept, *group]):
            del kept[0]
        made += _in_turn(at, until, _sheets([*kept, *group], fits))
        shown = made[-1].notes
    return made


def _sheets(notes: Sequence[Note], fits: Fits) -> list[tuple[Note, ...]]:
    """The notes in groups that fit; one that does not fit is alone."""
    sheets: list[tuple[Note, ...]] = [()]
    for note in notes:
        if sheets[-1] and not fits([*sheets[-1], note]):
            sheets.append(())
        sheets[-1] += (note,)
    return sheets


def _in_turn(start: Fraction, end: Fraction | None, sheets: list[tuple[Note, ...]]) -> list[Screen]:
    """A screen for each sheet, all of them before `end`, which is None for the last moment."""
    made: list[Screen] = []
    for left, sheet in zip(range(len(sheets), 0, -1), sheets, strict=True):
        reading = _reading(sheet) + (TURNED if made else NOTICED)
        stays = reading if left > 1 else max(STAYS, reading)
        until = start + (stays if end is None else min(stays, (end - start) / left))
        made.append(Screen(start, until, sheet, start + reading))
        start = until
    return made


def _reading(notes: Sequence[Note]) -> Fraction:
    """Seconds in which notes are read, once they are noticed."""
    return Fraction(sum(note.letters for note in notes), LETTERS_A_SECOND)
