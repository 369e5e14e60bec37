"""The synthetic world as a data set: questions about things that disappeared some time ago, each
stream in one encoded file.

Each stream shows seven things one after another and then nothing for as long as the oldest age.
"what color was the SHAPE?" is asked about each of them when the last has been gone for each age;
"what is there now?" while the last one is there. The streams are not in the training data. Files
are made once and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
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
STREAMS = 8
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
    last = stream.things[-1]
    gone = Fraction(last.end).limit_denominator(1000)
    middle = Fraction((max(last.start, last.end - 1) + last.end) / 2).limit_denominator(1000)
    note: dict[str, Any] = {"stream": seed, "age": NOW_AGE, "chunks": 0.0, "shape": last.shape}
    items = [
        Item(
            f"{seed}/{NOW}",
            NOW,
            "same-text",
            f"{last.color} {last.shape}",
            "what is there now?",
            (middle,),
            note,
        )
    ]
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


def _task(age: int, age_in: AgeIn) -> str:
    return f"{age} {age_in}"


def _stream(
    seed: int, tail: float, cache: Path, progress: Callable[[str], None]
) -> tuple[Path, Any]:
    """The file of a stream, made if it is not there, and the stream. tail: empty seconds after its
    last thing."""
    from vicort.export.tiny.evaluate import HELD_OUT, LONG
    from vicort.export.tiny.video import write_video
    from vicort.export.tiny.world import make_stream

    stream = make_stream(HELD_OUT + seed, THINGS, LONG.size[0] / LONG.size[1], tail=tail)
    drawn = hashlib.sha256(json.dumps([_drawn(), seed, tail]).encode()).hexdigest()[:16]
    path = cache / f"stream-{seed}-{drawn}.mp4"
    if not path.exists():
        progress(f"making {path}: {stream.duration:.0f} s")
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            write_video(
                unfinished, stream, LONG.size, LONG.fps, LONG.codec, LONG.bitrate, LONG.style
            )
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path, stream


def _drawn() -> str:
    """Hash of all that decides what a file of a given seed and tail shows."""
    from vicort.export.tiny import video, world

    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (world, video))
    return hashlib.sha256(
        sources + f"{_file_words()}, {_held_out()}, {THINGS}".encode()
    ).hexdigest()[:16]


def _file_words() -> str:
    from vicort.export.tiny.evaluate import LONG

    return f"{LONG.size[0]}x{LONG.size[1]}, {LONG.fps} fps, {LONG.codec} at {LONG.bitrate} bit/s"


def _held_out() -> int:
    from vicort.export.tiny.evaluate import HELD_OUT

    return HELD_OUT
