"""Questions about a stream, and their true answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vicort.export.tiny.world import COLORS, NONE, NOTHING, NUMBERS, SHAPES, Thing


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the things that one must have seen to answer it."""

    kind: str
    question: str
    answer: str
    # index of the only thing required; None: all things, and the absence of others
    about: int | None


def named(thing: Thing | None) -> str:
    return NOTHING if thing is None else f"{thing.color} {thing.shape}"


def all_questions(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    """Every question with one true answer after `things` have appeared in this order and the last
    frame shows `now`."""
    return [asked for ask in KINDS.values() for asked in ask(things, now)]


def _color(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    shapes = {thing.shape: index for index, thing in enumerate(things)}
    return [
        Asked(
            "color",
            f"what color was the {shape}?",
            things[shapes[shape]].color if shape in shapes else NONE,
            shapes.get(shape),
        )
        for shape in SHAPES
    ]


def _shape(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    colors = [thing.color for thing in things]
    asked = []
    for color in COLORS:
        if colors.count(color) == 1:
            index = colors.index(color)
            asked.append(Asked("shape", f"what shape was {color}?", things[index].shape, index))
        elif color not in colors:
            asked.append(Asked("shape", f"what shape was {color}?", NONE, None))
    return asked


def _now(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    return [Asked("now", "what is there now?", named(now), None)]


def _first(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    return [Asked("first", "which came first?", named(things[0] if things else None), None)]


def _last(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    return [Asked("last", "which came last?", named(things[-1] if things else None), None)]


def _after(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    pairs = zip(things, [*things[1:], None], strict=False)
    return [
        Asked("after", f"what came after the {thing.shape}?", named(after), None)
        for thing, after in pairs
    ]


def _any(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    shapes = {thing.shape: index for index, thing in enumerate(things)}
    return [
        Asked("any", f"was there a {shape}?", "yes" if shape in shapes else "no", shapes.get(shape))
        for shape in SHAPES
    ]


def _count(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    return [Asked("count", "how many shapes were there?", NUMBERS[len(things)], None)]


def _way(things: tuple[Thing, ...], now: Thing | None) -> list[Asked]:
    """Only about things that have left: while a thing is visible its end is unknown."""
    return [
        Asked("way", f"which way went the {thing.shape}?", thing.way, index)
        for index, thing in enumerate(things)
        if thing is not now
    ]


KINDS: dict[str, Callable[[tuple[Thing, ...], Thing | None], list[Asked]]] = {
    "color": _color,
    "shape": _shape,
    "now": _now,
    "first": _first,
    "last": _last,
    "after": _after,
    "any": _any,
    "count": _count,
    "way": _way,
}
