"""The streams of scenes, composed of pieces of reels: one thing alone, or a section of a reel as it
was, in which things touch and stand side by side; with a few or many units of nothing between them.

A look is a shape and a colour. A thing that is not seen for up to PATIENCE units is still the same
thing; a look comes again, as another thing, only later than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vicort.export.tiny.batches import Episode
from vicort.export.tiny.model import MAX_POSITION
from vicort.export.tiny.reels import AT_ONCE, Reel
from vicort.export.tiny.world import Thing
from vicort.runtime.core import UNIT_FRAMES

PATIENCE = 2  # units
TEXT_POSITIONS = 256  # reserved for the text of one stream
TRIES = 8  # pieces that are drawn for each unit, at most


@dataclass(frozen=True)
class SceneRecipe:
    """Shares are probabilities."""

    units: int = 192  # of all streams of a batch together
    length: tuple[int, int] = (8, 96)  # units of a stream; shorter ones are more frequent
    sections: float = 0.5  # share of pieces that are a section of a reel, the others one thing
    section: tuple[int, int] = (2, 14)  # units
    stay: float = 0.15  # share of single things that stay for `stays` units
    stays: tuple[int, int] = (6, 26)
    blink: float = 0.08  # share of single things that are not seen for a unit in between
    # of 0, 1, … units of nothing between two pieces; else `waits`
    gaps: tuple[float, ...] = (0.42, 0.22, 0.14, 0.09, 0.06)
    waits: tuple[int, int] = (5, 60)
    moves: float = 0.3  # share of pieces that are of another reel than the one before
    far: float = 0.3  # share of streams with a jump in time
    unasked: float = 0.06  # share of streams without an instruction
    twice: float = 0.15  # share of streams with two instructions, which hold both
    late: float = 0.3  # share of instructions that come after units, the others before any
    present: float = 0.8  # share of instructions that name what comes, not what may
    questions: float = 0.2  # share of streams with a question in between that joins them
    # share of appearances first missed (no loss there), reported one unit later
    missed: float = 0.08
    spurious: float = 0.1  # share of streams in which something untrue was said (no loss there)
    # share of streams whose units and words see only the latest units besides all text
    bounded: float = 0.1


def compose(
    rng: np.random.Generator, reels: Sequence[Reel], units: int, recipe: SceneRecipe
) -> Episode:
    """A stream of `units` units, or a few less where the reels have too little to put together.

    Only the reels' labels are looked at; rows of units count over all of them, one after another.
    """
    strip, source = _Strip(), _Source(rng, reels, recipe)
    strip.wait(source.nothing())
    for _ in range(TRIES * units):
        if len(strip.there) >= units:
            break
        accepted = strip.add(*source.piece())
        strip.wait(source.nothing(least=0 if accepted else 1))
    there = np.array(strip.there[:units])
    things = tuple(strip.things[: there.max() + 1])
    return Episode(np.array(strip.rows[:units]), _times(rng, len(there), recipe), there, things)


@dataclass
class _Strip:
    rows: list[int] = field(default_factory=list)
    there: list[np.ndarray] = field(default_factory=list)  # [2, 2] each
    things: list[Thing] = field(default_factory=list)  # in the order in which they appear
    _last: dict[tuple[str, str], int] = field(default_factory=dict)  # look -> newest unit

    def wait(self, rows: np.ndarray) -> None:
        self.rows += rows.tolist()
        self.there += [np.full((UNIT_FRAMES, AT_ONCE), -1)] * len(rows)

    def add(self, rows: np.ndarray, there: np.ndarray, things: Sequence[Thing]) -> bool:
        """Append units, unless they show a look that was seen too short a time ago. there: [u, 2,
        2], indices of `things`."""
        numbers = [k for k in dict.fromkeys(there.ravel().tolist()) if k >= 0]
        looks = {k: (things[k].shape, things[k].color) for k in numbers}
        now = len(self.there)
        if any(now - self._last.get(look, -now - 9) <= PATIENCE + 1 for look in looks.values()):
            return False
        renumbered = np.full(len(things) + 1, -1)  # its last entry serves -1
        for k in numbers:
            renumbered[k] = len(self.things)
            self.things.append(things[k])
            self._last[looks[k]] = now + int(np.flatnonzero((there == k).any((1, 2)))[-1])
        self.rows += rows.tolist()
        self.there += list(renumbered[there])
        return True


class _Source:
    """Pieces of reels, several in a row of the same reel: the background goes on."""

    def __init__(
        self, rng: np.random.Generator, reels: Sequence[Reel], recipe: SceneRecipe
    ) -> None:
        self._rng, self._reels, self._recipe = rng, reels, recipe
        self._starts = np.cumsum([0, *(len(reel.there) for reel in reels)])
        self._empty = [
            start + np.flatnonzero((reel.there == -1).all((1, 2)))
            for start, reel in zip(self._starts, reels, strict=False)
        ]
        self._reel = int(rng.integers(len(reels)))

    def piece(self) -> tuple[np.ndarray, np.ndarray, Sequence[Thing]]:
        """rows [u], there [u, 2, 2] and the things that it counts."""
        rng, recipe = self._rng, self._recipe
        if rng.random() < recipe.moves:
            self._reel = int(rng.integers(len(self._reels)))
        reel = self._reels[self._reel]
        run, number = np.zeros(0, int), 0
        if reel.things and rng.random() >= recipe.sections:
            number = int(rng.integers(len(reel.things)))
            run = _alone(reel, number)
        if len(run):
            return self._single(run, number)
        first = int(rng.integers(len(reel.there)))
        run = np.arange(first, min(len(reel.there), first + self._drawn(recipe.section)))
        return self._starts[self._reel] + run, reel.there[run], reel.things

    def _single(
        self, run: np.ndarray, number: int
    ) -> tuple[np.ndarray, np.ndarray, Sequence[Thing]]:
        rng, recipe, reel = self._rng, self._recipe, self._reels[self._reel]
        if rng.random() < recipe.stay:
            run = np.sort(rng.choice(run, self._drawn(recipe.stays)))
        rows, there = self._starts[self._reel] + run, reel.there[run]
        empty = self._empty[self._reel]
        if len(run) > 2 and len(empty) and rng.random() < recipe.blink:
            at = int(rng.integers(1, len(run) - 1))
            rows[at], there[at] = rng.choice(empty), -1
        return rows, there, reel.things

    def nothing(self, least: int = 0) -> np.ndarray:
        """Rows of units of nothing, of this reel where it has some."""
        rng, recipe = self._rng, self._recipe
        rest = 1 - sum(recipe.gaps)
        count = int(rng.choice(len(recipe.gaps) + 1, p=[*recipe.gaps, rest]))
        if count == len(recipe.gaps):
            count = self._drawn(recipe.waits)
        empty = self._empty[self._reel]
        empty = empty if len(empty) else np.concatenate(self._empty)
        return rng.choice(empty, max(least, count)) if len(empty) else empty

    def _drawn(self, limits: tuple[int, int]) -> int:
        return int(self._rng.integers(limits[0], limits[1] + 1))


def _alone(reel: Reel, number: int) -> np.ndarray:
    """Units of a reel that show this thing and no other."""
    shows = reel.there == number
    return np.flatnonzero((shows | (reel.there == -1)).all((1, 2)) & shows.any((1, 2)))


def _times(rng: np.random.Generator, units: int, recipe: SceneRecipe) -> np.ndarray:
    """[units] unit times from 0, dense but for one jump at most."""
    times = np.arange(units)
    if rng.random() < recipe.far:
        jump = int(np.exp(rng.uniform(0, np.log(MAX_POSITION - units - TEXT_POSITIONS))))
        times[rng.integers(units) :] += jump
    return times
