"""What a full memory still knows: `distinct` in 28 MB, where the oldest is evicted, and where that
is which is most like something else in memory.

    python -m vicort.benchmarks.studies.full_memory --out benchmarks/results/full_memory.json

Two kinds of streams of the synthetic world, pushed as pictures that no codec has seen: seven things
and then nothing, and seven things between many scenes of one to four seconds without any. "what
color was the SHAPE?" is asked about each thing, when the last one has been gone for each age.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, study_parser, with_budget
from vicort.benchmarks.evaluation.ages import wilson
from vicort.export.tiny.evaluation_files import HELD_OUT, LONG, evaluation_stream
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import StreamPlan, Thing, ThingStream
from vicort.runtime.core import Frame
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session

DEVICE_MB, HOST_MB = 20, 8
RATE = 2  # pictures a second: a unit is a second
RULES = ("drop-oldest", "drop-alike")
NOTHING, CUTS = "then nothing", "scene cuts"
AGES = {NOTHING: (0, 1, 8, 64, 250, 1000, 4000, 16000), CUTS: (8, 64, 250, 1000)}  # units
# ages that are asked where the oldest is evicted; of the rest it has kept nothing
OLDEST_UNTIL = 4000
BEFORE = 1500.0  # seconds of scene cuts before the things
SCENE = (1.0, 4.0)  # seconds


@dataclass(frozen=True)
class Shown:
    """A stream: what can be seen at each time, in seconds."""

    things: tuple[Thing, ...]
    gone: float  # the last thing is
    picture: Callable[[float], np.ndarray]  # [height, width, 3] uint8 RGB


@dataclass(frozen=True)
class Answered:
    kind: str
    rule: str
    seed: int
    age: int  # units
    right: bool


def then_nothing(seed: int, seconds: float) -> Shown:
    """Seven things, and nothing for `seconds`."""
    stream, painter = _things(seed, seconds)
    return Shown(stream.things, stream.things[-1].end, painter.frame)


def among_cuts(seed: int, seconds: float) -> Shown:
    """Scenes without things, seven things, and such scenes for `seconds`."""
    stream, painter = _things(seed, 0.0)
    first = BEFORE + stream.things[-1].end
    scenes = [
        *_scenes(seed, 0.0, BEFORE, painter),
        (BEFORE, painter),
        *_scenes(seed + 1, first, first + seconds, painter),
    ]
    starts = [start for start, _ in scenes]

    def picture(time: float) -> np.ndarray:
        start, scene = scenes[bisect_right(starts, time) - 1]
        return scene.frame(time - start)

    return Shown(stream.things, first, picture)


def _things(seed: int, tail: float) -> tuple[ThingStream, Painter]:
    setting = replace(LONG, name="ages", tail=tail, look=look_without_photo, plan=StreamPlan())
    stream, look, size = evaluation_stream(setting, HELD_OUT + seed)
    return stream, Painter(stream, *size, look=look)


def _scenes(seed: int, start: float, end: float, like: Painter) -> Iterator[tuple[float, Painter]]:
    """(start in seconds, what paints the scene)."""
    random = np.random.default_rng([HELD_OUT, seed])
    aspect = like.width / like.height
    while start < end:
        empty = ThingStream((), SCENE[1], aspect, int(random.integers(2**31)))
        look = look_without_photo(random, SCENE[1])
        yield start, Painter(empty, like.width, like.height, look=look)
        start += round(random.uniform(*SCENE) * RATE) / RATE


def answers(
    engines: EngineSet, system: System, shown: Shown, ages: Sequence[int]
) -> Iterator[tuple[int, bool]]:
    """(age, whether it was right) of each question."""
    count = 0
    with Session(engines, system) as session:
        for age in sorted(ages):
            while Fraction(count, RATE) <= shown.gone + age:
                session.push(Frame(shown.picture(count / RATE), Fraction(count, RATE), count))
                count += 1
            for thing in shown.things:
                answer = session.ask(f"what color was the {thing.shape}?")
                yield age, answer.text == thing.color


def answered(engines: EngineSet, kind: str, seed: int) -> Iterator[Answered]:
    """Of one stream, by both rules."""
    make, ages = {NOTHING: then_nothing, CUTS: among_cuts}[kind], AGES[kind]
    shown = make(seed, max(ages) + 1)
    for rule in RULES:
        usual = with_budget("distinct", DEVICE_MB, HOST_MB)
        system = usual.with_(memory={"when_full": rule})
        asked = [age for age in ages if rule != RULES[0] or age <= OLDEST_UNTIL]
        for age, right in answers(engines, system, shown, asked):
            yield Answered(kind, rule, seed, age, right)


def table(found: Iterable[Answered]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """By kind, rule and age: how many were right, of how many, and the 95 % interval."""
    cells: dict[tuple[str, str, int], list[bool]] = defaultdict(list)
    for each in found:
        cells[each.kind, each.rule, each.age].append(each.right)
    result: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for (kind, rule, age), right in cells.items():
        low, high = wilson(sum(right), len(right))
        result[kind][rule][str(age)] = {
            "right": sum(right),
            "asked": len(right),
            "low": round(low, 4),
            "high": round(high, 4),
        }
    return result


def measured(found: Sequence[Answered], streams: int) -> dict[str, Any]:
    """The whole result."""
    return {
        "conditions": machine.conditions(),
        "streams": streams,
        "device_mb": DEVICE_MB,
        "host_mb": HOST_MB,
        "right": table(found),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, streams=30)
    parser.add_argument(
        "--kind", choices=tuple(AGES), action="append", help="of streams (default: all)"
    )
    options = parser.parse_args(arguments)
    found: list[Answered] = []
    with EngineSet.open(options.engine_dir, threads=1) as engines:
        for kind in options.kind or AGES:
            for seed in range(options.streams):
                print(f"{kind}: stream {seed + 1} of {options.streams}", file=sys.stderr)
                found += answered(engines, kind, seed)
    return finish(measured(found, options.streams), options.out)


if __name__ == "__main__":
    sys.exit(main())
