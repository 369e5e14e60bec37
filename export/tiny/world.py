"""Synthetic streams of the embedded model: shapes that appear over a changing, noisy background.

Up to seven things appear one after another for a second or more, fully inside the frame. Each shape
appears at most once in a stream, so "what color was the circle?" has one answer. A stream is
determined by its seed. This module does not use files, codecs or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "star")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 75, 225),
    "yellow": (235, 210, 45),
    "white": (238, 238, 238),
    "purple": (160, 55, 200),
}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
RADIUS = (0.30, 0.42)  # of a thing, as a share of the frame's height
NOTHING, NONE = "nothing", "none"


@dataclass(frozen=True)
class Thing:
    """One shape while it is visible. Lengths are fractions of the frame's height, measured from the
    frame's centre, y downwards."""

    shape: str
    color: str
    start: float  # seconds, first moment it is visible
    end: float  # seconds, first moment it is gone
    radius: float
    x: float  # centre when it starts
    y: float
    way: str  # direction, a key of WAYS
    travel: float  # distance from start to end
    angle: float  # radians

    def center(self, time: float) -> tuple[float, float]:
        share = (time - self.start) / (self.end - self.start)
        dx, dy = WAYS[self.way]
        return self.x + dx * self.travel * share, self.y + dy * self.travel * share


@dataclass(frozen=True)
class ThingStream:
    """Things in the order in which they appear; otherwise the frame shows only background."""

    things: tuple[Thing, ...]
    duration: float  # seconds
    aspect: float  # width / height of the frame
    seed: int  # of the background and the noise

    def at(self, time: float) -> Thing | None:
        """The thing that is visible at `time` in seconds."""
        return next((thing for thing in self.things if thing.start <= time < thing.end), None)


@dataclass(frozen=True)
class Style:
    """How a stream is drawn. The default is typical for training; `random_style` varies it,
    `UNSEEN` has styles that are not in training."""

    background: str = "blobs"  # blobs | stripes | checks
    level: float = 80.0  # mean brightness of the background, of 255
    contrast: float = 25.0  # how far its colours stray from the mean
    noise: str = "gauss"  # gauss | coarse | salt
    strength: float = 10.0  # standard deviation of the noise; for salt: per mille of the pixels
    edge: float = 1.0  # pixels over which a thing's border fades; 0 = hard
    shading: float = 0.1  # how much darker its lower border is than its upper one
    outline: float = 0.0  # width of a dark border, as a share of its radius


UNSEEN = {
    "stripes": Style(background="stripes", level=90, contrast=30, noise="coarse", strength=12),
    "salt": Style(background="blobs", noise="salt", strength=15),
    "hard": Style(edge=0.0, shading=0.0, strength=0.0),
    "outlined": Style(background="checks", contrast=15, outline=0.06),
}


def random_style(rng: np.random.Generator) -> Style:
    """A style for training."""
    return Style(
        level=rng.uniform(25, 130),
        contrast=rng.uniform(5, 40),
        strength=rng.uniform(0, 25),
        edge=rng.uniform(0.7, 3.0),
        shading=rng.uniform(0, 0.3),
    )


def make_stream(
    seed: int,
    objects: int,
    aspect: float = 1.0,
    lead: float = 0.0,
    tail: float = 0.0,
    stay: tuple[float, float] = (1.5, 4.0),
    gap: tuple[float, float] = (0.0, 2.0),
) -> ThingStream:
    """A stream with `objects` things, 0 to 7.

    seed: the same seed and arguments make the same stream. aspect: width / height of its frames.
    lead, tail: seconds without anything before the first and after the last thing. stay, gap:
    range, in seconds, of how long a thing is there and of the time between two. Colours are unique
    up to six things; a seventh repeats one.
    """
    if not 0 <= objects <= len(SHAPES):
        raise ValueError(
            f"objects={objects}: a stream holds 0 to {len(SHAPES)} things, each shape at most once"
        )
    rng = np.random.default_rng([seed, objects])
    shapes = rng.permutation(SHAPES)[:objects]
    colors = [*rng.permutation(list(COLORS)), str(rng.choice(list(COLORS)))]
    things, time = [], lead
    for shape, color in zip(shapes, colors, strict=False):
        stay_s = rng.uniform(*stay)
        things.append(make_thing(rng, str(shape), str(color), time, time + stay_s, aspect))
        time += stay_s + rng.uniform(*gap)
    end = things[-1].end if things else lead
    return ThingStream(tuple(things), end + tail, aspect, seed)


def make_thing(
    rng: np.random.Generator, shape: str, color: str, start: float, end: float, aspect: float
) -> Thing:
    """A thing at a random position whose whole path is inside a frame of width / height
    `aspect`."""
    radius = rng.uniform(*RADIUS) * min(1.0, aspect)
    # maximum distance of its centre from the frame's
    room_x, room_y = aspect / 2 - radius, 0.5 - radius
    way = str(rng.choice(list(WAYS)))
    dx, dy = WAYS[way]
    room = room_x if dx else room_y
    travel = rng.uniform(1.0, 2.0) * min(room, 0.25) if way != "nowhere" else 0.0
    low_x, high_x = -room_x + travel * (dx < 0), room_x - travel * (dx > 0)
    low_y, high_y = -room_y + travel * (dy < 0), room_y - travel * (dy > 0)
    x, y = rng.uniform(low_x, high_x), rng.uniform(low_y, high_y)
    return Thing(shape, color, start, end, radius, x, y, way, travel, rng.uniform(-0.17, 0.17))


def shifted(stream: ThingStream, seconds: float) -> ThingStream:
    """The same stream, everything `seconds` later."""
    things = tuple(
        replace(thing, start=thing.start + seconds, end=thing.end + seconds)
        for thing in stream.things
    )
    return replace(stream, things=things, duration=stream.duration + seconds)


class Painter:
    """Draws the frames of a stream, in any order; each depends only on the seed and its time."""

    def __init__(
        self, stream: ThingStream, width: int, height: int, style: Style | None = None
    ) -> None:
        """width, height: pixels. style: `random_style` of the stream's seed where none is given."""
        self.stream = stream
        self.width = width
        self.height = height
        self.style = style or random_style(np.random.default_rng([stream.seed, 1]))

    def frame(self, time: float) -> np.ndarray:
        """[height, width, 3] uint8 RGB at `time` in seconds."""
        rng = np.random.default_rng([self.stream.seed, 2, round(time * 1000)])
        image = self._background(time)
        thing = self.stream.at(time)
        if thing is not None:
            self._draw(image, thing, time)
        self._add_noise(image, rng)
        return np.clip(image, 0, 255, out=image).astype(np.uint8)

    @cached_property
    def _tint(self) -> np.ndarray:
        """Amplitude and phase of the background's waves: [waves, 3 channels], plus their
        directions."""
        rng = np.random.default_rng([self.stream.seed, 3])
        return rng.uniform(-1, 1, (4, 7)).astype(np.float32)

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of pixel centres, as shares of the height from the frame's centre: [1, width]
        and [height, 1] float32."""
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.height
        y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2) / self.height
        return x[None, :], y[:, None]

    def _background(self, time: float) -> np.ndarray:
        """[height, width, 3] float32: a few slow waves of colour, or moving stripes or checks."""
        x, y = self._grid
        style = self.style
        image = np.empty((self.height, self.width, 3), np.float32)
        image[:] = style.level + style.contrast * 0.5 * self._tint[0, 4:7]
        for k, (u, v, phase, speed, *color) in enumerate(self._tint):
            along = (2 + k) * (u * x + v * y) + 3 * phase + 1.5 * speed * np.float32(time)
            if style.background == "blobs":
                wave = np.sin(along) * np.cos((1 + k) * (v * x - u * y) + time * phase)
            elif style.background == "stripes":
                wave = np.sign(np.sin(6 * along))
            else:
                wave = np.sign(np.sin(9 * x + time)) * np.sign(np.sin(9 * y + phase))
            image += wave[:, :, None] * (style.contrast * 0.6 * np.asarray(color, np.float32))
        return image

    def _draw(self, image: np.ndarray, thing: Thing, time: float) -> None:
        """Paints `thing` into `image` [height, width, 3] float32, in place."""
        cx, cy = thing.center(time)
        x, y = self._grid
        columns = slice(*np.searchsorted(x[0], (cx - thing.radius * 1.1, cx + thing.radius * 1.1)))
        rows = slice(*np.searchsorted(y[:, 0], (cy - thing.radius * 1.1, cy + thing.radius * 1.1)))
        u, v = (x[:, columns] - cx) / thing.radius, (y[rows] - cy) / thing.radius
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        # pixels
        inside = (
            depth(thing.shape, u * cos + v * sin, v * cos - u * sin) * thing.radius * self.height
        )
        edge = self.style.edge
        alpha = np.clip(inside / edge + 0.5, 0, 1) if edge else (inside > 0).astype(np.float32)
        color = self._color(thing)[None, None] * (1 - self.style.shading * (v + 1) / 2)[:, :, None]
        if self.style.outline:
            color = np.where(
                (inside > self.style.outline * thing.radius * self.height)[:, :, None],
                color,
                np.float32(15),
            )
        patch = image[rows, columns]
        patch += alpha[:, :, None] * (color - patch)

    def _color(self, thing: Thing) -> np.ndarray:
        """[3] float32: the thing's colour, a little off its textbook value."""
        rng = np.random.default_rng([self.stream.seed, 4, SHAPES.index(thing.shape)])
        return np.asarray(COLORS[thing.color], np.float32) + rng.uniform(-15, 15, 3).astype(
            np.float32
        )

    def _add_noise(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Adds the style's noise to `image` [height, width, 3] float32, in place."""
        style = self.style
        if style.noise == "salt":
            hits = rng.random(image.shape[:2], np.float32)
            image[hits < style.strength / 2000] = 0
            image[hits > 1 - style.strength / 2000] = 255
        elif style.noise == "coarse":
            grain = rng.standard_normal((self.height // 4 + 1, self.width // 4 + 1, 3), np.float32)
            image += style.strength * grain.repeat(4, 0).repeat(4, 1)[: self.height, : self.width]
        elif style.strength:
            image += style.strength * rng.standard_normal(image.shape, np.float32)


def depth(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far points lie inside a shape of radius 1 around the origin (negative: outside).

    x [columns] and y [rows] broadcast against each other; in units of the radius. Exact near
    straight borders, which is where it is used.
    """
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return 1 - np.hypot(x, y)
    if shape == "square":
        return 0.707 - np.maximum(ax, ay)
    if shape == "triangle":
        return np.minimum(0.5 - y, (0.5 - 0.866 * ax + 0.5 * y))
    if shape == "cross":
        return np.maximum(np.minimum(0.3 - ax, 0.954 - ay), np.minimum(0.954 - ax, 0.3 - ay))
    if shape == "ring":
        return 0.22 - np.abs(np.hypot(x, y) - 0.78)
    if shape == "diamond":
        return (1 - ax / 0.7 - ay) * 0.573
    if shape == "star":
        step = 2 * np.pi / 5
        # angle from the nearest tip
        theta = np.abs((np.arctan2(x, -y) + step / 2) % step - step / 2)
        r = np.hypot(x, y)
        tip, notch = np.array([1.0, 0.0]), 0.42 * np.array([np.cos(step / 2), np.sin(step / 2)])
        normal = np.array([notch[1] - tip[1], tip[0] - notch[0]]) / np.hypot(*(notch - tip))
        return normal @ tip - r * (normal[0] * np.cos(theta) + normal[1] * np.sin(theta))
    raise ValueError(f"shape={shape!r}: the world knows {', '.join(SHAPES)}")
