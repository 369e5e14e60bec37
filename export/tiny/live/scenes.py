"""Training scenes for proactive answers: the stream, the instructions, and the text after each
unit.

A thing that was asked for is reported once, as soon as a frame shows it: after the unit of that
frame, be it the unit's second one, or after the first unit that follows the instruction. Of several
that are due at once all are named. Everything else is answered with silence: other things, those
that stay, that leave, or that are unseen for a unit or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vicort.export.tiny.batches import Episode
from vicort.export.tiny.live.scene_streams import SceneRecipe, compose
from vicort.export.tiny.reels import Reel
from vicort.export.tiny.world import COLORS, SHAPES, Thing
from vicort.export.tiny.world_questions import KINDS, named

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
    shapes = [Target(f"a {shape}", shape=shape) for shape in SHAPES]
    colors = [
        Target(words.format(color), color=color)
        for color in COLORS
        for words in ("something {}", "a {} thing")
    ]
    return [*shapes, *colors, Target("a shape"), Target("something")]


def weigh(target: Target) -> float:
    """Shapes are asked for most: 66 %; colours 26 %; anything 8 %."""
    if target.shape:
        return 0.66 / len(SHAPES)
    return 0.26 / (2 * len(COLORS)) if target.color else 0.04


def make_scenes(
    rng: np.random.Generator, reels: Sequence[Reel], recipe: SceneRecipe
) -> list[Scene]:
    """A batch of streams of about one length."""
    shortest, longest = np.log(recipe.length)
    length = round(np.exp(rng.uniform(shortest, longest)))
    return [make_scene(rng, reels, recipe, length) for _ in range(max(1, recipe.units // length))]


def make_scene(
    rng: np.random.Generator, reels: Sequence[Reel], recipe: SceneRecipe, length: int
) -> Scene:
    """reels: as for `compose`; length: units."""
    episode = compose(rng, reels, length, recipe)
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
            words = named(*(episode.things[index] for index in due))
            spoken.append(SceneTurn(unit + 1, "", words))
    return spoken, silent


def _wanted(episode: Episode, unit: int, asked: list[Target]) -> list[int]:
    """The things that this unit shows and that were asked for, in the order they come."""
    shown = [index for index in dict.fromkeys(episode.there[unit].ravel().tolist()) if index >= 0]
    return [
        index for index in shown if any(target.matches(episode.things[index]) for target in asked)
    ]


def _question(rng: np.random.Generator, episode: Episode) -> SceneTurn:
    """An ordinary question about what was seen until then, of which the answer is sure."""
    unit = int(rng.integers(1, len(episode.units) + 1))
    seen = [index for index in np.unique(episode.there[:unit]) if index >= 0]
    things = tuple(episode.things[index] for index in seen)
    now = tuple(episode.things[index] for index in episode.there[unit - 1, 1] if index >= 0)
    every = [asked for kind in ("now", "color", "any") for asked in KINDS[kind](things, now)]
    weights = np.array(
        [4.0 if asked.kind == "now" else 1.0 if asked.about is not None else 0.2 for asked in every]
    )
    chosen = every[rng.choice(len(every), p=weights / weights.sum())]
    return SceneTurn(unit, chosen.question, chosen.answer)
