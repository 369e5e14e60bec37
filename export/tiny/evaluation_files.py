"""What the model is evaluated on: kinds of files, of training families of looks and of held-out
ones, and the questions about them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vicort.export.tiny.looks import Camera, Look, held_out_look, random_look
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import StreamPlan, Thing, ThingStream, make_stream, shifted
from vicort.export.tiny.world_questions import Asked, all_questions

HELD_OUT = 10_000_000  # seeds from here on are not used in training
LEAST_MOVING = 2.0  # seconds that a thing is there at least, to be asked which way it went
SAME_FOR = 1.2  # seconds for which a frame shows the same things before it is asked what it shows
GAPS = StreamPlan(stay=(1.5, 4.0), gap=(0.5, 2.0))
TOUCHING = StreamPlan(stay=(1.0, 3.0), gap=(0.0, 0.0), touching=1.0)
SECONDS = StreamPlan(stay=(1.0, 1.0), gap=(0.0, 0.0), touching=1.0)
MIXED = StreamPlan(
    stay=(1.0, 4.0), gap=(0.0, 1.5), touching=0.4, beside=0.3, again=0.3, growing=0.3, covered=0.2
)


@dataclass(frozen=True)
class EvaluationSetting:
    """One kind of file. The numbers of things in its streams take turns."""

    name: str
    objects: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    plan: StreamPlan = TOUCHING
    tail: float = 0.0  # seconds without anything after the last thing
    look: Callable[[np.random.Generator, float], Look] = held_out_look
    changes: dict[str, Any] = field(default_factory=dict)  # of the look
    sizes: tuple[tuple[int, int], ...] = ((320, 240),)  # pixels, width and height; one is drawn
    fps: int = 12
    codec: str = "libx264"
    container: str = "mp4"
    bitrate: int | None = 400_000
    options: dict[str, str] = field(default_factory=dict)


ANY_SIZE = (
    (320, 240), (1280, 720), (240, 426), (128, 128), (640, 274), (180, 360), (400, 300), (640, 360),
)  # fmt: skip
NIGHT = Camera(noise="coarse", strength=14.0, gain=0.5, shake=0.01)
LONG = EvaluationSetting(
    "250 s after", objects=(7,), tail=250.0, sizes=((160, 120),), fps=4, bitrate=120_000
)
SETTINGS = (
    EvaluationSetting("known", look=random_look),
    EvaluationSetting("gaps", plan=GAPS),
    EvaluationSetting("touching"),
    EvaluationSetting("one second each", plan=SECONDS),
    EvaluationSetting("mixed", objects=(3, 4, 5, 6, 7), plan=MIXED),
    EvaluationSetting("again", objects=(3, 4, 5, 6, 7), plan=replace(GAPS, again=0.6)),
    EvaluationSetting("up to twelve", objects=(8, 9, 10, 11, 12), plan=GAPS),
    LONG,
    EvaluationSetting("stripes", changes={"background": "stripes"}),
    EvaluationSetting("night", changes={"camera": NIGHT}),
    EvaluationSetting("any size", sizes=ANY_SIZE),
    EvaluationSetting("low bitrate", bitrate=80_000),
    EvaluationSetting(
        "vp9",
        codec="libvpx-vp9",
        container="webm",
        options={"deadline": "realtime", "cpu-used": "8"},
    ),
)


def evaluation_stream(
    setting: EvaluationSetting, seed: int
) -> tuple[ThingStream, Look, tuple[int, int]]:
    """The stream of a seed, its look and the frame's size. Two settings share none of them, so that
    answers about several settings are independent of each other."""
    rng = np.random.default_rng([seed, zlib.crc32(setting.name.encode())])
    own = int(rng.integers(HELD_OUT, 2**31))
    objects = setting.objects[seed % len(setting.objects)]
    width, height = setting.sizes[rng.integers(len(setting.sizes))]
    made = make_stream(own, objects, width / height, tail=setting.tail, plan=setting.plan)
    stream = shifted(made, seconds=float(rng.uniform(0.1, 1.0)))
    return stream, replace(setting.look(rng, stream.duration), **setting.changes), (width, height)


def write_evaluation_file(path: Path, setting: EvaluationSetting, seed: int) -> ThingStream:
    """Draw and encode the stream of a seed; returns it. The path's suffix is the setting's
    container."""
    stream, look, size = evaluation_stream(setting, seed)
    write_video(
        path, stream, size, setting.fps, setting.codec, setting.bitrate, look, setting.options
    )
    return stream


def questions_at_end(stream: ThingStream) -> list[Asked]:
    """All questions but what is there now, after the whole stream. Which way a thing went is asked
    where it was there long enough."""
    every = all_questions(stream.things)
    return [asked for asked in every if asked.kind != "now" and _long_enough(stream, asked)]


def _long_enough(stream: ThingStream, asked: Asked) -> bool:
    if asked.kind != "way" or asked.about is None:
        return True
    return all(_seconds(stream.things[index]) >= LEAST_MOVING for index in asked.about)


def _seconds(thing: Thing) -> float:
    return thing.end - thing.start


def questions_about_now(stream: ThingStream) -> list[tuple[float, Asked]]:
    """(seconds, what is there now?) at the end of each time in which the frame shows the same
    things for long enough that a sampled frame can be trusted to show them."""
    borders = sorted({0.0, stream.duration, *(b for t in stream.things for b in (t.start, t.end))})
    asked = []
    for start, end in pairwise(borders):
        if end - start >= SAME_FOR:
            (now,) = [each for each in all_questions((), stream.at(start)) if each.kind == "now"]
            asked.append((end - 0.02, now))
    return asked
