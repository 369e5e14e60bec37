"""The synthetic world as questions with choices, of which all but one are wrong.

The temperature is fitted on one family of backgrounds that the model was not trained with. What it
is worth is reported on other streams of that family, on another such family, and on the looks of
training. No two parts share a stream, and none needs the photographs of scikit-image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vicort.benchmarks.evaluation.calibration_result import FIT
from vicort.benchmarks.evaluation.held_out import stream_file
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.benchmarks.evaluation.shapestream import drawing_sources
from vicort.runtime.errors import ConfigError

if TYPE_CHECKING:
    from vicort.export.tiny.evaluation_files import EvaluationSetting

STREAMS = 7  # of each kind of file: each number of things comes equally often
# of evaluation_files.SETTINGS
KINDS_OF_FILES = ("gaps", "touching", "one second each", "mixed", "again", "up to twelve", "night")


@dataclass(frozen=True)
class Part:
    """Streams that are fitted on or reported together."""

    name: str
    title: str
    first_seed: int  # counted from the first that training did not use
    background: str | None  # a family; None = drawn from those of training


PARTS = (
    Part(FIT, "fitted on: striped backgrounds", 1000, "stripes"),
    Part("same", "the same family, other streams", 2000, "stripes"),
    Part("other", "another family: checked backgrounds", 3000, "checks"),
    Part("known", "the looks of training", 4000, None),
)


def load(
    cache: Path, streams: int = STREAMS, progress: Callable[[str], None] | None = None
) -> Dataset:
    """Makes the files that the cache does not hold. Raises ConfigError for less than one stream."""
    from vicort.export.tiny.evaluation_files import HELD_OUT
    from vicort.export.tiny.world import VERSION

    if streams < 1:
        raise ConfigError(f"--streams {streams}: give 1 or more")
    videos = tuple(
        _video(part, setting, part.first_seed + number, cache, progress or (lambda line: None))
        for part in PARTS
        for setting in _settings(part)
        for number in range(streams)
    )
    about = {
        "benchmark": f"choices in the synthetic world, version {VERSION}",
        "seeds": f"{HELD_OUT} and up, never trained on",
        "scoring": "the most probable choice, the same words",
    }
    kept = {"streams": streams, "world": VERSION, "file": drawing_sources()}
    return Dataset("calibration", videos, _groups(), None, kept, about, intervals=True)


def _groups() -> tuple[Group, ...]:
    kinds = choices_by_kind()
    return tuple(
        Group(part.title, {f"{part.name}/{kind}": kind for kind in kinds}, mean="questions")
        for part in PARTS
    )


def choices_by_kind() -> dict[str, tuple[str, ...]]:
    """The possible answers of each kind of question whose answers are one word each."""
    from vicort.export.tiny.world import COLORS, NONE, NUMBERS, SHAPES, WAYS

    return {
        "any": ("yes", "no"),
        "color": (*COLORS, NONE),
        "again": COLORS,
        "shape": (*SHAPES, NONE),
        "count": NUMBERS,
        "often": NUMBERS,
        "way": tuple(WAYS),
    }


def _settings(part: Part) -> Iterator[EvaluationSetting]:
    from vicort.export.tiny.evaluation_files import SETTINGS
    from vicort.export.tiny.looks import look_without_photo

    for setting in SETTINGS:
        if setting.name in KINDS_OF_FILES:
            if part.background is None:
                yield replace(setting, look=look_without_photo)
            else:
                changes = setting.changes | {"background": part.background}
                yield replace(setting, changes=changes)


def _video(
    part: Part,
    setting: EvaluationSetting,
    number: int,
    cache: Path,
    progress: Callable[[str], None],
) -> Video:
    from vicort.export.tiny.evaluation_files import HELD_OUT, questions_at_end

    path, stream = stream_file(setting, HELD_OUT + number, cache, progress)
    name = f"{part.name} {setting.name} {number}"
    at = Fraction(stream.duration + 1).limit_denominator(1000)
    choices = choices_by_kind()
    items = [
        Item(
            f"{name}/{index}",
            f"{part.name}/{asked.kind}",
            "same-text",
            asked.answer,
            asked.question,
            (at,),
            {"kind": asked.kind, "part": part.name, "stream": name},
            choices=choices[asked.kind],
        )
        for index, asked in enumerate(questions_at_end(stream))
        if asked.kind in choices
    ]
    return Video(name, path, tuple(items))
