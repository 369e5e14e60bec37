"""The synthetic world in looks that training never saw: every kind of question, by kind of file.

Backgrounds, finishes of things, fonts of shapes and palettes are of families held out from
training. What is there now is asked while it is there, everything else at the end of each stream.
Files are made once and kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.benchmarks.evaluation.shapestream import drawing_sources
from vicort.runtime.errors import ConfigError

if TYPE_CHECKING:
    from vicort.export.tiny.evaluation_files import EvaluationSetting
    from vicort.export.tiny.world import ThingStream
    from vicort.export.tiny.world_questions import Asked

STREAMS = 56  # of each setting: each number of things comes equally often
NAMES = ("color", "shape")  # kinds: what color was the SHAPE, what shape was COLOR
ABSENT = ("none", "no")
FEW = 5
HELD_OUT_LOOKS = (
    "gaps", "touching", "one second each", "mixed", "stripes", "night", "any size", "low bitrate",
    "vp9",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A share of right answers that is stated: of some kinds of questions in some settings."""

    name: str
    kinds: tuple[str, ...]
    settings: tuple[str, ...]


FIGURES = (
    *(Figure(f"names, {name}", NAMES, (name,)) for name in HELD_OUT_LOOKS),
    Figure("names, up to 12", NAMES, ("up to twelve",)),
    Figure("names, 250 s after", NAMES, ("250 s after",)),
    *(
        Figure(kind, (kind,), HELD_OUT_LOOKS)
        for kind in ("now", "any", "first", "last", "count to 5", "way", "after")
    ),
    *(Figure(kind, (kind,), ("mixed", "again")) for kind in ("often", "again")),
    Figure("count above 5", ("count above 5",), (*HELD_OUT_LOOKS, "up to twelve")),
)


def load(
    cache: Path, streams: int = STREAMS, progress: Callable[[str], None] | None = None
) -> Dataset:
    """Makes the files that the cache does not hold. Raises ConfigError for less than one stream."""
    from vicort.export.tiny.evaluation_files import HELD_OUT, SETTINGS
    from vicort.export.tiny.world import VERSION

    if streams < 1:
        raise ConfigError(f"--streams {streams}: give 1 or more")
    videos, kinds = [], set()
    for setting in SETTINGS:
        for seed in range(HELD_OUT, HELD_OUT + streams):
            path, stream = stream_file(setting, seed, cache, progress or (lambda line: None))
            items = _items(setting.name, seed - HELD_OUT, stream)
            kinds |= {item.note["kind"] for item in items}
            videos.append(Video(f"{setting.name} {seed - HELD_OUT}", path, tuple(items)))
    names = [setting.name for setting in SETTINGS]
    about = {
        "benchmark": f"the synthetic world, version {VERSION}, in looks held out from training",
        "seeds": f"{HELD_OUT} and up, never trained on",
        "scoring": "the same words",
    }
    settings = {"streams": streams, "world": VERSION, "file": drawing_sources()}
    groups = _groups(names, sorted(kinds))
    return Dataset(
        "shapestream-held-out", tuple(videos), groups, None, settings, about, intervals=True
    )


def _groups(settings: Sequence[str], kinds: Sequence[str]) -> tuple[Group, ...]:
    figures = {
        f"{setting}/{kind}": figure.name
        for figure in FIGURES
        for setting in figure.settings
        for kind in figure.kinds
    }
    together = {f"{setting}/{kind}": "names" for setting in HELD_OUT_LOOKS for kind in NAMES}
    return (
        Group("held-out looks", figures, mean=None),
        Group("held-out looks together", together, mean=None),
        *(Group(name, {f"{name}/{kind}": kind for kind in kinds}, mean=None) for name in settings),
    )


def _items(setting: str, number: int, stream: ThingStream) -> list[Item]:
    from vicort.export.tiny.evaluation_files import questions_about_now, questions_at_end

    end = stream.duration + 1
    asked = [*questions_about_now(stream), *((end, each) for each in questions_at_end(stream))]
    return [_item(setting, number, index, at, each) for index, (at, each) in enumerate(asked)]


def _item(setting: str, number: int, index: int, at: float, asked: Asked) -> Item:
    from vicort.export.tiny.world import NUMBERS

    kind = asked.kind
    if asked.about is None and kind in NAMES and asked.answer in ABSENT:
        kind += " (none)"
    if kind == "count":
        kind += " to 5" if asked.answer in NUMBERS[: FEW + 1] else " above 5"
    return Item(
        f"{setting}/{number}/{index}",
        f"{setting}/{kind}",
        "same-text",
        asked.answer,
        asked.question,
        (Fraction(at).limit_denominator(1000),),
        {"kind": kind},
    )


def file_name(setting: EvaluationSetting, seed: int) -> str:
    """The same in every process, as long as the file of the seed would show the same."""
    said = vars(setting) | {"look": setting.look.__name__}
    drawn = hashlib.sha256(repr([drawing_sources(), said, seed]).encode()).hexdigest()[:16]
    return f"held-out-{drawn}.{setting.container}"


def stream_file(
    setting: EvaluationSetting, seed: int, cache: Path, progress: Callable[[str], None]
) -> tuple[Path, Any]:
    """The file of a seed, made if it is not there, and its stream (a ThingStream)."""
    from vicort.export.tiny.evaluation_files import evaluation_stream, write_evaluation_file

    path = cache / file_name(setting, seed)
    if path.exists():
        return path, evaluation_stream(setting, seed)[0]
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    progress(f"making {path}: {setting.name}, seed {seed}")
    try:
        stream = write_evaluation_file(unfinished, setting, seed)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path, stream
