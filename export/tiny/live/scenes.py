"""Training scenes for proactive answers: the stream, the instructions, and the text after each
unit.

A target is reported once per appearance: in the first unit that shows it, or in the first one after
the instruction. Departures, background changes and other things are answered with silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vicort.export.tiny.batches import BatchRecipe, Episode, episode_of
from vicort.export.tiny.model import MAX_POSITION
from vicort.export.tiny.reels import Reel
from vicort.export.tiny.world import COLORS, SHAPES, Thing
from vicort.export.tiny.world_questions import KINDS, Asked, named

REPLY = "yes"  # the model's answer to an instruction
PHRASES = (
    "say when {} appears",
    "say when {} appears",
    "say when {} appears",
    "tell me when {} appears",
    "say when {} comes",
    "tell me when {} comes",
    "tell me when you see {}",
    "tell me when {} is shown",
)
TEXT_POSITIONS = 256  # reserved for the text of one stream


@dataclass(frozen=True)
class SceneRecipe:
    """Shares are probabilities."""

    streams: int = 8
    # share of streams that are a stretch of one reel; the others are put together from all
    windows: float = 0.25
    runs: tuple[int, int] = (1, 8)  # things in a stream that is put together
    stay: float = 0.15  # share of things that stay for 5 to 16 units
    # of 0, 1, … empty units between two things; else 5 to 20
    gaps: tuple[float, ...] = (0.45, 0.2, 0.12, 0.08, 0.05)
    longest: int = 36  # maximum units of a stream
    unasked: float = 0.06  # share of streams without an instruction
    twice: float = 0.2  # share of streams with two instructions, which hold both
    late: float = 0.4  # share of instructions that come after units, the others before any
    present: float = 0.85  # share of instructions that name what comes, not what may
    questions: float = 0.25  # share of streams with a question in between that joins them
    # share of appearances first missed (no loss there), reported one unit later
    missed: float = 0.12
    spurious: float = 0.15  # share of streams in which something untrue was said (no loss there)
    far: float = 0.3  # share of streams with a jump in time
    # share of streams whose units and words see only the latest units besides all text
    bounded: float = 0.15


@dataclass(frozen=True)
class Target:
    """The target of an instruction."""

    words: str  # "a star"
    shape: str | None = None  # None = any
    color: str | None = None

    def matches(self, thing: Thing) -> bool:
        return self.shape in (None, thing.shape) and self.color in (None, thing.color)


@dataclass(frozen=True)
class SceneTurn:
    """Text that is added to a stream after `unit` units."""

    unit: int
    question: str  # "" = said unasked
    answer: str
    learnt: bool = True  # whether the answer's words count in the loss


@dataclass(frozen=True)
class Scene:
    episode: Episode
    # in their order; those said unasked follow the unit that they belong to
    turns: tuple[SceneTurn, ...]
    silent: np.ndarray  # [U] bool: units after which silence is correct
    window: int  # units that a unit and what follows it see besides all text; 0 = all


def targets() -> list[Target]:
    article = {shape: f"a {shape}" for shape in SHAPES}
    shapes = [Target(article[shape], shape=shape) for shape in SHAPES]
    colors = [
        Target(words.format(color), color=color)
        for color in COLORS
        for words in ("something {}", "a {} thing")
    ]
    return [*shapes, *colors, Target("a shape"), Target("something")]


def weigh(target: Target) -> float:
    """Shapes are asked for most: 60 %; colours 30 %; anything 10 %."""
    if target.shape:
        return 0.6 / len(SHAPES)
    return 0.3 / (2 * len(COLORS)) if target.color else 0.05


def make_scenes(rng: np.random.Generator, reels: list[Reel], recipe: SceneRecipe) -> list[Scene]:
    """A batch of about one length: the shorter or the longer half of twice as many."""
    scenes = sorted(
        (make_scene(rng, reels, recipe) for _ in range(2 * recipe.streams)),
        key=lambda scene: len(scene.episode.units),
    )
    return scenes[: recipe.streams] if rng.random() < 0.5 else scenes[recipe.streams :]


def make_scene(rng: np.random.Generator, reels: list[Reel], recipe: SceneRecipe) -> Scene:
    """reels: only their labels are looked at; rows of units count over all of them, one after
    another."""
    episode = _episode(rng, reels, recipe)
    units = len(episode.units)
    asked = _instructions(rng, episode, recipe)
    questions = [_question(rng, episode)] if rng.random() < recipe.questions else []
    spoken, silent = _speech(rng, episode, asked, recipe)
    instructions = [
        SceneTurn(unit, rng.choice(PHRASES).format(target.words), REPLY) for unit, target in asked
    ]
    said = {turn.unit for turn in spoken}
    questions = [turn for turn in questions if turn.unit not in said]
    turns = sorted(
        [*spoken, *instructions, *questions], key=lambda turn: (turn.unit, bool(turn.question))
    )
    window = int(rng.integers(1, 9)) if rng.random() < recipe.bounded and not questions else 0
    return Scene(episode, tuple(turns), silent, min(window, units))


def _episode(rng: np.random.Generator, reels: list[Reel], recipe: SceneRecipe) -> Episode:
    """Things one after another, the same shape as often as it happens, or a stretch of one reel as
    it was."""
    if rng.random() < recipe.windows:
        episode = episode_of(rng, reels, BatchRecipe(windows=1.0))
        units, there, things = episode.units, episode.there, episode.things
    else:
        units, there, things = _mixed(rng, reels, recipe)
    units, there = units[: recipe.longest], there[: recipe.longest]
    return Episode(units, _times(rng, len(units), recipe), there, things)


def _mixed(
    rng: np.random.Generator, reels: list[Reel], recipe: SceneRecipe
) -> tuple[np.ndarray, np.ndarray, tuple[Thing, ...]]:
    starts = np.cumsum([0, *(len(reel.there) for reel in reels)])
    clips = [(r, k) for r in range(len(reels)) for k in range(len(reels[r].things))]
    empty = np.concatenate(
        [
            start + np.flatnonzero((reel.there == -1).all(1))
            for start, reel in zip(starts, reels, strict=False)
        ]
    )
    units: list[np.ndarray] = []
    there: list[np.ndarray] = []
    things: list[Thing] = []

    def pause(count: int) -> None:
        units.append(rng.choice(empty, count))
        there.append(np.full((count, 2), -1))

    pause(_gap(rng, recipe))
    for _ in range(rng.integers(recipe.runs[0], recipe.runs[1] + 1)):
        r, k = clips[rng.integers(len(clips))]
        if things and things[-1].shape == reels[r].things[k].shape and not len(units[-1]):
            pause(2)  # else it would be one thing that changes its colour
        run = _run(reels[r], k)
        if rng.random() < recipe.stay:
            run = np.sort(rng.choice(run, rng.integers(5, 17)))
        units.append(starts[r] + run)
        there.append(np.where(reels[r].there[run] == k, len(things), -1))
        things.append(reels[r].things[k])
        pause(_gap(rng, recipe))
    if not sum(len(part) for part in units):
        pause(1)
    return np.concatenate(units), np.concatenate(there), tuple(things)


def _gap(rng: np.random.Generator, recipe: SceneRecipe) -> int:
    rest = 1 - sum(recipe.gaps)
    count = int(rng.choice(len(recipe.gaps) + 1, p=[*recipe.gaps, rest]))
    return count if count < len(recipe.gaps) else int(rng.integers(5, 21))


def _run(reel: Reel, thing: int) -> np.ndarray:
    """Units of a reel that show `thing` and no other, as long as there are such; it may come or go
    within the first and the last."""
    shows = (reel.there == thing).any(1)
    alone = shows & ((reel.there == thing) | (reel.there == -1)).all(1)
    return np.flatnonzero(alone if alone.any() else shows)


def _times(rng: np.random.Generator, units: int, recipe: SceneRecipe) -> np.ndarray:
    """[units] unit times from 0, dense but for one jump at most."""
    times = np.arange(units)
    if rng.random() < recipe.far:
        jump = int(np.exp(rng.uniform(0, np.log(MAX_POSITION - units - TEXT_POSITIONS))))
        times[rng.integers(units) :] += jump
    return times


def _instructions(
    rng: np.random.Generator, episode: Episode, recipe: SceneRecipe
) -> list[tuple[int, Target]]:
    """(units before it, what is asked for), in the order of the stream."""
    count = 0 if rng.random() < recipe.unasked else 1 + (rng.random() < recipe.twice)
    every = targets()
    asked = []
    for _ in range(count):
        near = [
            target for target in every if any(target.matches(thing) for thing in episode.things)
        ]
        allowed = near if near and rng.random() < recipe.present else every
        weights = np.array([weigh(target) for target in allowed])
        unit = int(rng.integers(len(episode.units))) if rng.random() < recipe.late else 0
        asked.append((unit, allowed[rng.choice(len(allowed), p=weights / weights.sum())]))
    return sorted(asked, key=lambda pair: pair[0])


def _speech(
    rng: np.random.Generator, episode: Episode, asked: list[tuple[int, Target]], recipe: SceneRecipe
) -> tuple[list[SceneTurn], np.ndarray]:
    """The text after each unit, and [U] bool: silence is correct. Where neither applies there is no
    loss."""
    units = len(episode.units)
    reported: set[int] = set()
    spoken, silent = [], np.zeros(units, bool)
    passed_over = {index for index in range(len(episode.things)) if rng.random() < recipe.missed}
    spurious = int(rng.integers(units)) if rng.random() < recipe.spurious else -1
    for unit in range(units):
        wanted = _wanted(episode, unit, [target for start, target in asked if start <= unit])
        due = [index for index in wanted if index not in reported]
        if not due:
            silent[unit] = unit != spurious
            if unit == spurious and not wanted:
                color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
                spoken.append(SceneTurn(unit + 1, "", f"{color} {shape}", learnt=False))
        elif due[-1] in passed_over:
            passed_over.remove(due[-1])
        else:
            reported.update(due)
            spoken.append(SceneTurn(unit + 1, "", named(episode.things[due[-1]])))
    return spoken, silent


def _wanted(episode: Episode, unit: int, asked: list[Target]) -> list[int]:
    """The things that this unit shows and that were asked for, in the order they come."""
    shown = [int(index) for index in dict.fromkeys(episode.there[unit]) if index >= 0]
    return [
        index for index in shown if any(target.matches(episode.things[index]) for target in asked)
    ]


def _question(rng: np.random.Generator, episode: Episode) -> SceneTurn:
    """An ordinary question about what was seen until then, of which the answer is sure."""
    unit = int(rng.integers(1, len(episode.units) + 1))
    seen = [index for index in np.unique(episode.there[:unit]) if index >= 0]
    things = tuple(episode.things[index] for index in seen)
    last = episode.there[unit - 1, 1]
    now = episode.things[last] if last >= 0 else None
    every = [asked for kind in ("now", "color", "any") for asked in KINDS[kind](things, now)]
    allowed = [asked for asked in every if asked.kind == "now" or _single(asked, things)]
    weights = np.array(
        [
            4.0 if asked.kind == "now" else 1.0 if asked.about is not None else 0.2
            for asked in allowed
        ]
    )
    chosen = allowed[rng.choice(len(allowed), p=weights / weights.sum())]
    return SceneTurn(unit, chosen.question, chosen.answer)


def _single(asked: Asked, things: tuple[Thing, ...]) -> bool:
    """Whether the shape that is asked about came once at most: else its colour is no single one."""
    return sum(thing.shape in asked.question for thing in things) <= 1
