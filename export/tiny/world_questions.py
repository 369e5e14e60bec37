"""Questions about a stream, and their true answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vicort.export.tiny.world import COLORS, NONE, NOTHING, NUMBERS, SHAPES, Thing, plural


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the things that one must have seen to answer it."""

    kind: str
    question: str
    answer: str
    # indices of the only things required; None: all things, and the absence of others
    about: tuple[int, ...] | None


def named(*things: Thing | None) -> str:
    """ "nothing", "red circle" or "red circle and blue star"."""
    words = [f"{thing.color} {thing.shape}" for thing in things if thing is not None]
    return " and ".join(words) or NOTHING


def all_questions(things: tuple[Thing, ...], now: Sequence[Thing] = ()) -> list[Asked]:
    """Every question with one true answer after `things` have appeared in this order and the last
    frame shows `now`, from left to right."""
    return [asked for ask in KINDS.values() for asked in ask(things, tuple(now))]


def _numbers(things: tuple[Thing, ...]) -> dict[str, list[int]]:
    """Shape -> the numbers of its things; only shapes that came."""
    found: dict[str, list[int]] = {}
    for number, thing in enumerate(things):
        found.setdefault(thing.shape, []).append(number)
    return found


def _color(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    """Not about shapes that came in several colours."""
    found = _numbers(things)
    asked = []
    for shape in SHAPES:
        question, numbers = f"what color was the {shape}?", found.get(shape, [])
        if not numbers:
            asked.append(Asked("color", question, NONE, None))
        elif len(numbers) == 1:
            asked.append(Asked("color", question, things[numbers[0]].color, (numbers[0],)))
    return asked


def _shape(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    colors = [thing.color for thing in things]
    asked = []
    for color in COLORS:
        if colors.count(color) == 1:
            index = colors.index(color)
            asked.append(Asked("shape", f"what shape was {color}?", things[index].shape, (index,)))
        elif color not in colors:
            asked.append(Asked("shape", f"what shape was {color}?", NONE, None))
    return asked


def _now(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [Asked("now", "what is there now?", named(*now), None)]


def _first(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [Asked("first", "which came first?", named(*things[:1]), None)]


def _last(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [Asked("last", "which came last?", named(*things[-1:]), None)]


def _after(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [
        Asked("after", f"what came after the {shape}?", named(*things[n + 1 : n + 2]), None)
        for shape, (n, *more) in _numbers(things).items()
        if not more
    ]


def _any(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    found = _numbers(things)
    return [
        Asked(
            "any",
            f"was there a {shape}?",
            "yes" if shape in found else "no",
            tuple(found[shape][:1]) if shape in found else None,
        )
        for shape in SHAPES
    ]


def _count(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [Asked("count", "how many shapes were there?", NUMBERS[len(things)], None)]


def _often(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    return [
        Asked("often", f"how many {plural(shape)} were there?", NUMBERS[len(numbers)], None)
        for shape, numbers in _numbers(things).items()
    ]


def _again(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    """About shapes that came in several colours."""
    return [
        Asked("again", f"what color was the {word} {shape}?", things[numbers[at]].color, None)
        for shape, numbers in _numbers(things).items()
        if len(numbers) > 1
        for word, at in (("first", 0), ("last", -1))
    ]


def _way(things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[Asked]:
    """Only about things that have left: while a thing is visible its end is unknown."""
    return [
        Asked("way", f"which way went the {shape}?", things[n].way, (n,))
        for shape, (n, *more) in _numbers(things).items()
        if not more and things[n] not in now
    ]


KINDS: dict[str, Callable[[tuple[Thing, ...], tuple[Thing, ...]], list[Asked]]] = {
    "color": _color,
    "shape": _shape,
    "now": _now,
    "first": _first,
    "last": _last,
    "after": _after,
    "any": _any,
    "count": _count,
    "often": _often,
    "again": _again,
    "way": _way,
}
