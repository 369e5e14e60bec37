"""Synthetic streams of the embedded model: what appears in them, when and where.

Up to twelve things appear, most of them one after another, some two at a time side by side. A
shape may come again in another colour. A stream is determined by its seed. This module does not use
files, codecs or models; `painter` draws a stream, in a look of `looks`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

VERSION = 2  # of the world: figures of different versions cannot be compared
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "star")
COLORS = ("red", "green", "blue", "yellow", "white", "purple")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
MOST = len(NUMBERS) - 1  # things in a stream
RADIUS = (0.2, 0.44)  # of a thing, as a share of the frame's shorter side
SMALLEST = 0.12  # radius as a share of the frame's longer side: what the model's input can show
NOTHING, NONE = "nothing", "none"


@dataclass(frozen=True)
class Thing:
    """One shape while it is visible. Lengths are fractions of the frame's height, measured from the
    frame's centre, y downwards."""

    shape: str
    color: str
    start: float  # seconds, first moment it is visible
    end: float  # seconds, first moment it is gone
    radius: float  # when it starts
    x: float  # centre when it starts
    y: float
    way: str  # direction, a key of WAYS
    travel: float  # distance from start to end
    angle: float  # radians
    growth: float = 1.0  # radius at the end / radius at the start
    hidden: float = 0.0  # share of its width that something in front of it hides

    def share(self, time: float) -> float:
        """How much of its time is over, 0 to 1."""
        return (time - self.start) / (self.end - self.start)

    def center(self, time: float) -> tuple[float, float]:
        dx, dy = WAYS[self.way]
        along = self.travel * self.share(time)
        return self.x + dx * along, self.y + dy * along

    def radius_at(self, time: float) -> float:
        return self.radius * (1 + (self.growth - 1) * self.share(time))


@dataclass(frozen=True)
class ThingStream:
    """Things in the order in which they appear; otherwise the frame shows only background."""

    things: tuple[Thing, ...]
    duration: float  # seconds
    aspect: float  # width / height of the frame
    seed: int  # of everything that is drawn

    def at(self, time: float) -> tuple[Thing, ...]:
        """The things that are visible at `time` in seconds, from left to right."""
        seen = [thing for thing in self.things if thing.start <= time < thing.end]
        return tuple(sorted(seen, key=lambda thing: thing.center(time)[0]))


@dataclass(frozen=True)
class StreamPlan:
    """What streams are drawn from; times in seconds."""

    stay: tuple[float, float] = (1.5, 4.0)  # how long a thing is there
    gap: tuple[float, float] = (0.0, 2.0)  # from a thing's end to the next one's start
    touching: float = 0.0  # share of things that start when the one before ends
    beside: float = 0.0  # share of things that start while the one before is there, beside it
    again: float = 0.0  # share of things whose shape was there, in another colour; below 1
    growing: float = 0.0  # share of things that grow or shrink
    covered: float = 0.0  # share of things of which a part is hidden


def make_stream(
    seed: int,
    objects: int,
    aspect: float = 1.0,
    lead: float = 0.0,
    tail: float = 0.0,
    plan: StreamPlan = StreamPlan(),
) -> ThingStream:
    """A stream with `objects` things, 0 to 12.

    seed: the same seed and arguments make the same stream. aspect: width / height of its frames.
    lead, tail: seconds without anything before the first and after the last thing. Shapes are
    unique up to seven things and colours up to six, but for the plan's `again`.
    """
    if not 0 <= objects <= MOST:
        raise ValueError(f"objects={objects}: a stream holds 0 to {MOST} things")
    if not 0 <= plan.again < 1:
        raise ValueError(f"again={plan.again}: a share of 0 or more, and below 1 for new shapes")
    rng = np.random.default_rng([seed, objects, VERSION])
    things: list[Thing] = []
    time, pair = lead, False
    for shape, color in _looks(rng, objects, plan.again):
        stay = rng.uniform(*plan.stay)
        before = things[-1] if things else None
        pair = before is not None and not pair and rng.random() < plan.beside
        if before and pair:
            start = rng.uniform(before.start + 0.3 * (before.end - before.start), before.end)
            left = bool(rng.random() < 0.5)
            things[-1] = _at_side(rng, before, aspect, left)
            new = make_thing(rng, shape, color, start, start + stay, aspect, plan)
            things.append(_at_side(rng, new, aspect, not left))
        else:
            things.append(make_thing(rng, shape, color, time, time + stay, aspect, plan))
        gap = 0.0 if rng.random() < plan.touching else rng.uniform(*plan.gap)
        time = max(thing.end for thing in things) + gap
    end = max((thing.end for thing in things), default=lead)
    return ThingStream(tuple(things), end + tail, aspect, seed)


def _looks(rng: np.random.Generator, count: int, again: float) -> list[tuple[str, str]]:
    """Shape and colour of each thing; no two things have both."""
    shapes, colors = list(rng.permutation(SHAPES)), list(rng.permutation(COLORS))
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        repeated = chosen and (not shapes or rng.random() < again)
        shape = str(rng.choice([each for each, _ in chosen])) if repeated else str(shapes.pop())
        free = [color for color in COLORS if (shape, color) not in chosen]
        if not free:
            continue
        color = str(colors.pop()) if colors and not repeated else str(rng.choice(free))
        chosen.append((shape, color))
    return chosen


def make_thing(
    rng: np.random.Generator,
    shape: str,
    color: str,
    start: float,
    end: float,
    aspect: float,
    plan: StreamPlan = StreamPlan(),
) -> Thing:
    """A thing at a random position whose whole path is inside a frame of width / height
    `aspect`."""
    short = min(1.0, aspect)
    smallest = max(RADIUS[0] * short, SMALLEST * max(1.0, aspect))
    largest = max(smallest, RADIUS[1] * short)
    radius = smallest + (largest - smallest) * float(rng.random()) ** 0.6
    growth = 1.0
    if rng.random() < plan.growing:
        growth = float(
            np.clip(rng.uniform(0.6, 1.6), smallest / radius, RADIUS[1] * short / radius)
        )
    largest = radius * max(1.0, growth)
    # maximum distance of its centre from the frame's
    most_x, most_y = max(0.0, aspect / 2 - largest), max(0.0, 0.5 - largest)
    way = str(rng.choice(list(WAYS)))
    dx, dy = WAYS[way]
    most = most_x if dx else most_y
    travel = rng.uniform(1.0, 2.0) * min(most, 0.25 * max(1.0, aspect if dx else 1.0))
    if way == "nowhere":
        travel = 0.0
    elif travel < 0.06 * max(1.0, aspect):  # too little to be seen
        way, travel, dx, dy = "nowhere", 0.0, 0, 0
    low_x, high_x = -most_x + travel * (dx < 0), most_x - travel * (dx > 0)
    low_y, high_y = -most_y + travel * (dy < 0), most_y - travel * (dy > 0)
    x, y = rng.uniform(low_x, high_x), rng.uniform(low_y, high_y)
    hidden = rng.uniform(0.1, 0.35) if rng.random() < plan.covered else 0.0
    angle = rng.uniform(-0.3, 0.3)
    return Thing(shape, color, start, end, radius, x, y, way, travel, angle, growth, hidden)


def _at_side(rng: np.random.Generator, thing: Thing, aspect: float, left: bool) -> Thing:
    """The thing within the left or the right half of the frame, where it stays."""
    half = aspect / 4
    radius = min(thing.radius, max(0.92 * half, SMALLEST * max(1.0, aspect)), 0.42)
    sway = max(0.0, half - radius) * 0.8
    x = (-half if left else half) + rng.uniform(-sway, sway)
    most = max(0.0, 0.5 - radius)
    return replace(
        thing, radius=radius, growth=1.0, x=x, y=rng.uniform(-most, most), way="nowhere", travel=0.0
    )


def plural(shape: str) -> str:
    """As in "how many crosses were there?"."""
    return shape + ("es" if shape.endswith("s") else "s")


def shifted(stream: ThingStream, seconds: float) -> ThingStream:
    """The same stream, everything `seconds` later."""
    things = tuple(
        replace(thing, start=thing.start + seconds, end=thing.end + seconds)
        for thing in stream.things
    )
    return replace(stream, things=things, duration=stream.duration + seconds)
