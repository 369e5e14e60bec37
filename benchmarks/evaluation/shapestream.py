"""The synthetic world as a data set: questions about things that disappeared some time ago, each
stream in one encoded file.

Each stream shows seven things one after another and then nothing for as long as the oldest age.
"what color was the SHAPE?" is asked about each of them when the last has been gone for each age;
"what is there now?" while each of them is there. The streams are not in the training data. Files
are made once and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import ModelSpec

AgeIn = Literal["units", "chunks"]
AGE_UNITS: tuple[AgeIn, ...] = get_args(AgeIn)
AGES = (0, 8, 64, 250, 1000)
STREAMS = 30  # 210 questions a cell
THINGS = 7
NOW = "now"
NOW_AGE = -1  # of the question about what is there now, in notes and rows
CACHE = Path("build/shapestream")


def load(
    model: ModelSpec,
    streams: int = STREAMS,
    ages: Sequence[int] = AGES,
    age_in: AgeIn = "units",
    cache: Path = CACHE,
    fps: Fraction | None = None,
    progress: Callable[[str], None] | None = None,
) -> Dataset:
    """model: gives frames a second and a chunk's units. ages: since the last thing disappeared;
    fps: sampling rate, None = the model's.

    Makes the files that the cache does not hold. Raises ConfigError for ages or counts that cannot
    be.
    """
    if streams < 1:
        raise ConfigError(f"--streams {streams}: give 1 or more")
    if not ages or min(ages) < 0 or len(set(ages)) != len(ages):
        raise ConfigError(
            f"--ages {' '.join(map(str, ages))}: give whole numbers from 0 up, each once"
        )
    unit = UNIT_FRAMES / (fps or Fraction(str(model.fps)))  # seconds
    chunk_units = model.chunk_frames // UNIT_FRAMES
    seconds = {age: age * unit * (chunk_units if age_in == "chunks" else 1) for age in ages}
    videos = []
    for seed in range(streams):
        path, stream = _stream(
            seed, float(max(seconds.values())) + 1, cache, progress or (lambda line: None)
        )
        videos.append(
            Video(
                f"stream {seed}",
                path,
                tuple(_items(seed, stream, seconds, age_in, unit * chunk_units)),
            )
        )
    tasks = {task: task for task in (NOW, *(_task(age, age_in) for age in ages))}
    settings = {"streams": streams, "ages": list(ages), "age_in": age_in, "file": _drawn()}
    about = {
        "benchmark": "shapestream: the synthetic world of the embedded model",
        "things a stream": THINGS,
        "seeds": f"{_held_out()} and up, never trained on",
        "a unit": f"{float(unit):g} s",
        "a chunk": f"{chunk_units} units",
        "file": _file_words(),
        "scoring": "the same words",
    }
    return Dataset(
        "shapestream", tuple(videos), (Group("gone for", tasks, mean=None),), None, settings, about
    )


def _items(
    seed: int, stream: Any, seconds: dict[int, Fraction], age_in: AgeIn, chunk: Fraction
) -> list[Item]:
    """seconds: of each age; chunk: seconds of a chunk."""
    gone = Fraction(stream.things[-1].end).limit_denominator(1000)
    items = [_now_item(seed, thing) for thing in stream.things]
    for age, since in seconds.items():
        for thing in stream.things:
            note = {
                "stream": seed,
                "age": age,
                "chunks": round(float(since / chunk), 3),
                "shape": thing.shape,
            }
            text = f"what color was the {thing.shape}?"
            items.append(
                Item(
                    f"{seed}/{age}/{thing.shape}",
                    _task(age, age_in),
                    "same-text",
                    thing.color,
                    text,
                    (gone + since,),
                    note,
                )
            )
    return items


def _now_item(seed: int, thing: Any) -> Item:
    """What is there now, asked just before the thing goes."""
    note = {"stream": seed, "age": NOW_AGE, "chunks": 0.0, "shape": thing.shape}
    at = Fraction(thing.end - 0.02).limit_denominator(1000)
    return Item(
        f"{seed}/{NOW}/{thing.shape}",
        NOW,
        "same-text",
        f"{thing.color} {thing.shape}",
        "what is there now?",
        (at,),
        note,
    )


def _task(age: int, age_in: AgeIn) -> str:
    return f"{age} {age_in}"


def _stream(
    seed: int, tail: float, cache: Path, progress: Callable[[str], None]
) -> tuple[Path, Any]:
    """The file of a stream, made if it is not there, and the stream. tail: empty seconds after its
    last thing."""
    from vicort.export.tiny.evaluation_files import (
        HELD_OUT,
        evaluation_stream,
        write_evaluation_file,
    )

    setting = _setting(tail)
    drawn = hashlib.sha256(json.dumps([_drawn(), seed, tail]).encode()).hexdigest()[:16]
    path = cache / f"stream-{seed}-{drawn}.mp4"
    stream, _, _ = evaluation_stream(setting, HELD_OUT + seed)
    if not path.exists():
        progress(f"making {path}: {stream.duration:.0f} s")
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            write_evaluation_file(unfinished, setting, HELD_OUT + seed)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path, stream


def _setting(tail: float) -> Any:
    """Of looks of the training families: systems differ, not looks."""
    from vicort.export.tiny.evaluation_files import LONG
    from vicort.export.tiny.looks import look_without_photo
    from vicort.export.tiny.world import StreamPlan

    return replace(LONG, name="ages", tail=tail, look=look_without_photo, plan=StreamPlan())


def _drawn() -> str:
    """Hash of all that decides what a file of a given seed and tail shows."""
    return hashlib.sha256(f"{drawing_sources()}, {_file_words()}".encode()).hexdigest()[:16]


def drawing_sources() -> str:
    """Hash of the code that draws and encodes streams."""
    from vicort.export.tiny import (
        backgrounds,
        evaluation_files,
        looks,
        outlines,
        painter,
        video,
        world,
    )

    modules = (backgrounds, evaluation_files, looks, outlines, painter, video, world)
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(sources).hexdigest()[:16]


def _file_words() -> str:
    from vicort.export.tiny.evaluation_files import LONG

    ((width, height),) = LONG.sizes
    return f"{width}x{height}, {LONG.fps} fps, {LONG.codec} at {LONG.bitrate} bit/s"


def _held_out() -> int:
    from vicort.export.tiny.evaluation_files import HELD_OUT

    return HELD_OUT
