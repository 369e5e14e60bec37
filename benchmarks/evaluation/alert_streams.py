"""Hours of the synthetic world in which mostly nothing happens, for standing alerts.

An hour is a row of scenes with a cut between them, each in a look of its own. In a scene nothing is
visible for a while, then one to three things come, one after another or side by side, and then
nothing again. Everything follows from a seed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from vicort.benchmarks.evaluation.alert_scores import Stretch

if TYPE_CHECKING:
    from vicort.export.tiny.looks import Look
    from vicort.export.tiny.painter import Painter
    from vicort.export.tiny.world import Thing, ThingStream

Looks = Literal["training", "held-out"]
LOOKS: tuple[Looks, ...] = get_args(Looks)
SCENE = (90.0, 300.0)  # seconds from one cut to the next
EMPTY = (20.0, 240.0)  # seconds without anything, between the things of two groups
EDGE = 3.0  # seconds without anything at the start and the end of a scene, at least
GROUP = (1, 2, 3)  # things that come together
GROUP_SHARES = (0.7, 0.2, 0.1)
STAY = (2.0, 12.0)  # seconds for which a thing is visible
GAP = (0.5, 4.0)  # seconds between things of a group that do not touch
SIZES = ((160, 120), (160, 90), (128, 128), (120, 160))  # pixels, width and height; one is drawn
FPS = 4  # frames a second of the file
CODEC, PRESET, BITRATE = "libx264", "veryfast", 120_000  # bits a second


@dataclass(frozen=True)
class AlertScene:
    start: float  # seconds of the hour, the cut before it
    stream: ThingStream  # its own time begins at 0
    look: Look


@dataclass(frozen=True)
class AlertStream:
    """One stream, of an hour or less."""

    name: str
    scenes: tuple[AlertScene, ...]
    duration: float  # seconds
    size: tuple[int, int]  # pixels, width and height

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        """In the order in which they come; times in seconds of the whole stream."""
        return tuple(
            replace(thing, start=scene.start + thing.start, end=scene.start + thing.end)
            for scene in self.scenes
            for thing in scene.stream.things
        )

    def stretches(self, shape: str) -> tuple[Stretch, ...]:
        """When a thing of this shape is visible."""
        return tuple((thing.start, thing.end) for thing in self.things if thing.shape == shape)

    def look_at(self, time: float) -> Look:
        return self.scenes[bisect_right(self._starts, time) - 1].look

    def write(self, path: Path) -> None:
        """Draw and encode the whole stream."""
        import av

        with av.open(str(path), "w") as container:
            track = container.add_stream(CODEC, rate=FPS, options={"preset": PRESET})
            track.width, track.height = self.size
            track.pix_fmt = "yuv420p"
            track.bit_rate = BITRATE
            for index in range(round(self.duration * FPS)):
                image = self.image(index / FPS)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(track.encode(frame))
            container.mux(track.encode())

    def image(self, time: float) -> np.ndarray:
        """[height, width, 3] uint8 RGB at `time` in seconds."""
        number = bisect_right(self._starts, time) - 1
        return self._painters[number].frame(time - self._starts[number])

    @cached_property
    def _starts(self) -> list[float]:
        return [scene.start for scene in self.scenes]

    @cached_property
    def _painters(self) -> list[Painter]:
        from vicort.export.tiny.painter import Painter

        return [Painter(scene.stream, *self.size, look=scene.look) for scene in self.scenes]


def make_alert_stream(
    seed: int,
    looks: Looks,
    seconds: float = 3600.0,
    draw_look: Callable[[np.random.Generator, float], Look] | None = None,
) -> AlertStream:
    """The stream of a seed.

    looks: the families that its scenes are drawn in. draw_look: draws other looks instead, from
    random numbers and a scene's length in seconds.
    """
    from vicort.export.tiny.looks import held_out_look, random_look

    draw = draw_look or (held_out_look if looks == "held-out" else random_look)
    rng = np.random.default_rng([seed, LOOKS.index(looks), ord("a")])
    size = SIZES[rng.integers(len(SIZES))]
    scenes, start, empty = [], 0.0, rng.uniform(*EMPTY)
    while start < seconds:
        length = min(float(round(rng.uniform(*SCENE))), seconds - start)
        if seconds - start - length < SCENE[0]:
            length = seconds - start
        stream, empty = _scene(rng, length, empty, size[0] / size[1])
        scenes.append(AlertScene(start, stream, draw(rng, length)))
        start += length
    return AlertStream(f"{looks} {seed}", tuple(scenes), seconds, size)


def _scene(
    rng: np.random.Generator, length: float, empty: float, aspect: float
) -> tuple[ThingStream, float]:
    """A scene, and how many seconds without anything are left over for the next one. empty: seconds
    before the first group comes."""
    from vicort.export.tiny.evaluation_files import HELD_OUT
    from vicort.export.tiny.world import StreamPlan, ThingStream, make_stream, shifted

    plan = StreamPlan(stay=STAY, gap=GAP, touching=0.3, beside=0.3, growing=0.25, covered=0.1)
    things: list[Thing] = []
    time = max(EDGE, empty)
    while True:
        count = int(rng.choice(GROUP, p=GROUP_SHARES))
        own = int(rng.integers(HELD_OUT, 2**31))
        group = make_stream(own, count, aspect, plan=plan)
        if time + group.duration + EDGE > length:
            break
        things += shifted(group, time).things
        time += group.duration + rng.uniform(*EMPTY)
    own = int(rng.integers(HELD_OUT, 2**31))
    return ThingStream(tuple(things), length, aspect, own), max(0.0, time - length)
