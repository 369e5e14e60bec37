"""What the probability of an answer is worth, on the embedded model.

    python -m vicort.benchmarks.studies.answer_probabilities \\
        --out benchmarks/results/answer_probabilities.json

Answers about streams of its own world in held-out looks, and about pictures of another kind, where
"no", "none", "nothing" or "zero" is right: how many of the right and of the wrong ones are below
each probability. Then what --until-probability prevents: "was there a SHAPE?" is asked every two
seconds of each stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, session_after, study_parser, with_budget
from vicort.export.tiny.evaluation_files import (
    HELD_OUT,
    SETTINGS,
    questions_at_end,
    write_evaluation_file,
)
from vicort.export.tiny.world import SHAPES, ThingStream
from vicort.export.tiny.world_questions import all_questions
from vicort.runtime.core import Answer, Frame
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

BELOW = (0.3, 0.5, 0.7, 0.9)
LEVELS = (0.0, 0.8, 0.9, 0.98)  # of a yes that ends a run
# a held-out background that needs no photographs of scikit-image
MIXED = replace(
    next(each for each in SETTINGS if each.name == "mixed"), changes={"background": "checks"}
)
EVERY = 2  # seconds until a question is repeated
SIDE, SECONDS, RATE = 224, 10, 2  # of pictures of another kind: pixels, seconds, frames a second


@dataclass(frozen=True)
class Rated:
    right: bool
    probability: float


@dataclass(frozen=True)
class Yes:
    """A yes to "was there a SHAPE?"; came: whether it had come by then."""

    came: bool
    probability: float  # of the answer's first token


@dataclass(frozen=True)
class RepeatedQuestion:
    """Of one shape in one stream: every yes; ever: whether the shape comes at all."""

    ever: bool
    yes: tuple[Yes, ...]


def rated(answers: Iterable[tuple[str, Answer]]) -> list[Rated]:
    """answers: (what is right, the answer)."""
    return [Rated(each.text == right, each.probability) for right, each in answers]


def own_streams(
    engines: EngineSet, system: System, paths: Sequence[tuple[Path, ThingStream]]
) -> list[Rated]:
    """All questions at the end of each stream."""
    found: list[tuple[str, Answer]] = []
    for path, stream in paths:
        with session_after(path, engines, system) as session:
            found += [
                (asked.answer, session.ask(asked.question)) for asked in questions_at_end(stream)
            ]
    return rated(found)


def other_pictures() -> dict[str, Iterator[np.ndarray]]:
    """[SIDE, SIDE, 3] uint8 each: pictures without any of the world's things."""
    count, random = SECONDS * RATE, np.random.default_rng(0)
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)[None, :, None].repeat(SIDE, 0).repeat(3, 2)

    def still(picture: np.ndarray) -> Iterator[np.ndarray]:
        return (picture for _ in range(count))

    plain = np.zeros((SIDE, SIDE, 3), np.uint8)
    return {
        "black": still(plain),
        "white": still(plain + 255),
        "gradient": still(ramp),
        "gradient downwards": still(np.ascontiguousarray(ramp.transpose(1, 0, 2))),
        "noise": (random.integers(0, 256, plain.shape, np.uint8) for _ in range(count)),
        "test pattern": _test_pattern(count),
    }


def _test_pattern(count: int) -> Iterator[np.ndarray]:
    with open_source(f"testsrc:seconds={SECONDS}") as source:
        frames = list(source)
    for index in range(count):
        yield frames[index * len(frames) // count].image


def about_nothing(engines: EngineSet, system: System) -> dict[str, list[Rated]]:
    """Every question to which a stream without things has an answer, by the kind of picture."""
    found = {}
    for name, pictures in other_pictures().items():
        with Session(engines, system) as session:
            for index, picture in enumerate(pictures):
                session.push(Frame(picture, Fraction(index, RATE), index))
            session.finish()
            asked = all_questions(())
            found[name] = rated((each.answer, session.ask(each.question)) for each in asked)
    return found


def repeated(
    engines: EngineSet, system: System, path: Path, stream: ThingStream
) -> list[RepeatedQuestion]:
    """Every EVERY seconds "was there a SHAPE?" about each shape."""
    said: dict[str, list[Yes]] = {shape: [] for shape in SHAPES}
    due = EVERY
    with Session(engines, system) as session, open_source(str(path)) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
            if frame.time < due:
                continue
            due += EVERY
            for shape, yes in said.items():
                answer = session.ask(f"was there a {shape}?")
                if answer.text == "yes":
                    came = has_come(stream, shape, answer.seen_until)
                    yes.append(Yes(came, answer.first_probability))
    shown = {thing.shape for thing in stream.things}
    return [RepeatedQuestion(shape in shown, tuple(yes)) for shape, yes in said.items()]


def has_come(stream: ThingStream, shape: str, time: Fraction | None) -> bool:
    """Whether a thing of this shape came until `time`, in seconds; None = before the first
    frame."""
    return time is not None and any(
        thing.shape == shape and thing.start <= time for thing in stream.things
    )


def below(answers: Sequence[Rated]) -> dict[str, Any]:
    """How many there are, right and wrong, and how many of them below each probability."""
    return {
        name: {
            "of": len(of := [each.probability for each in answers if each.right == right]),
            **{str(level): sum(each < level for each in of) for level in BELOW},
        }
        for name, right in (("wrong", False), ("right", True))
    }


def ended(found: Sequence[RepeatedQuestion]) -> dict[str, Any]:
    """How many runs a yes of at least each level would have ended: of shapes that came, after they
    came; of all, before they came or where they never did."""
    came = [each for each in found if each.ever]
    return {
        "came": len(came),
        "never came": len(found) - len(came),
        "ended rightly": {
            str(level): sum(_first(each, level) is True for each in came) for level in LEVELS
        },
        "ended wrongly": {
            str(level): sum(_first(each, level) is False for each in found) for level in LEVELS
        },
    }


def _first(asked: RepeatedQuestion, level: float) -> bool | None:
    """Whether the shape had come by the first yes of at least `level`; None: no such yes."""
    return next((each.came for each in asked.yes if each.probability >= level), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = study_parser(__doc__, streams=24).parse_args(arguments)
    with EngineSet.open(options.engine_dir) as engines:
        return finish(measured(engines, options.streams), options.out)


def measured(engines: EngineSet, streams: int) -> dict[str, Any]:
    """The whole result."""
    everything, usual = with_budget("full-history", host_mb=0), with_budget("distinct")
    with TemporaryDirectory() as folder:
        paths = []
        for seed in range(HELD_OUT, HELD_OUT + streams):
            path = Path(folder) / f"{seed}.{MIXED.container}"
            paths.append((path, write_evaluation_file(path, MIXED, seed)))
        own = own_streams(engines, everything, paths)
        until = [each for path, stream in paths for each in repeated(engines, usual, path, stream)]
    other = about_nothing(engines, everything)
    return {
        "conditions": machine.conditions(),
        "streams": streams,
        "own world": below(own),
        "other pictures": below([each for answers in other.values() for each in answers]),
        "by picture": {name: below(answers) for name, answers in other.items()},
        "until": ended(until),
    }


if __name__ == "__main__":
    sys.exit(main())
