"""Training batches: many streams composed of the units of a few reels, with many questions per
stream.

Units are independent in the vision encoder, so a unit is encoded once and used by every stream that
contains it. Questions are forks after one shared video: each attends to the video and itself. The
masks imitate the systems:

- some streams are ingested with bounded attention: a chunk sees the prompt, the last few chunks,
  and itself;
- some lose tokens: ViCoStream's chunk-intra drop (the first unit of a chunk whole, then only the
  positions that change most), or at random;
- some questions see only some chunks (retrieval), the units that matter to them among those.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vicort.export.tiny.model import GRID, MAX_POSITION, SIDE, TOKENS_PER_SECOND, UNIT_TOKENS
from vicort.export.tiny.reels import AT_ONCE, Reel
from vicort.export.tiny.tokenizer import PROMPT, make_tokenizer
from vicort.export.tiny.world import COLORS, SHAPES, WAYS, Thing
from vicort.export.tiny.world_questions import KINDS, Asked, all_questions
from vicort.runtime.core import UNIT_FRAMES

IGNORED = -100  # a label that does not count
# of a unit with that many things in its two frames, when single units are drawn
GLANCE_WEIGHTS = (0.3, 1.0, 1.0, 2.0, 2.0)
SMALL = 19.0  # radius in pixels: below it, shapes are mistaken most often
SMALL_WEIGHT = 2.5  # of a unit with a small thing, when single units are drawn
CROSSED = 0.5  # share of single units that show one thing in one frame, another in the other
PLACES = 20  # in a direction that the vision encoder is taught to tell apart
LENGTH_STEP = 64  # cells: batches have few different lengths, as PyTorch prepares for each one
MOVING_FRAMES = 3  # that must show a thing before it is asked which way it went
SEEN_TRAVEL = 0.05  # of the picture's side: how far one must see a thing go before that


@dataclass(frozen=True)
class BatchRecipe:
    """The streams of a training stage. Shares are probabilities."""

    streams: int = 16
    reels: int = 8
    questions: int = 20
    things: tuple[int, int] = (0, 7)
    empties: tuple[int, int] = (0, 6)  # units without anything that are mixed in
    longest: int = 40  # units of a section of a reel
    # share of streams that are a section of one reel; the others are composed of all reels
    windows: float = 0.5
    again: float = 0.3  # share of composed streams in which shapes may come in several colours
    one_look: float = 0.0  # share of composed streams of one reel's things, in another order
    # share of streams whose unit times are sorted random numbers instead of 0, 1, 2, …
    far: float = 0.0
    bounded: float = 0.0  # share with bounded attention while ingesting
    drops: float = 0.0  # share that loses tokens
    retrieval: float = 0.0  # share of streams whose questions see only some of the chunks
    turns: float = 0.0  # share of questions that follow on another in one conversation
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "color": 6, "shape": 4, "now": 24, "first": 16, "last": 16, "after": 5, "any": 1.5,
            "count": 20, "often": 3, "again": 5, "way": 6,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Episode:
    """One stream of a batch, without tokens and positions."""

    units: np.ndarray  # [U] int: rows of the batch's units
    times: np.ndarray  # [U] int: unit times
    there: np.ndarray  # [U, 2, 2] int: the things in each frame from left to right, -1 = none
    things: tuple[Thing, ...]
    # [U, 2, 2] float: how far each has gone, as a share of the picture's side; None: not known, and
    # nothing asks which way things went
    gone: np.ndarray | None = None

    @property
    def now(self) -> tuple[Thing, ...]:
        """What the last frame shows."""
        return tuple(self.things[index] for index in self.there[-1, 1] if index >= 0)


@dataclass(frozen=True)
class _Reading:
    """How a system reads one stream."""

    chunk: np.ndarray  # [U] int: the chunk of each unit
    kept: np.ndarray  # [U, 16] bool: the visual tokens that a drop leaves
    reach: int  # earlier chunks that a chunk sees while it is ingested
    seen: np.ndarray  # [chunks] bool: those that questions see

    @property
    def visible(self) -> np.ndarray:
        """[U] bool: the units of which questions see anything."""
        return self.seen[self.chunk] & self.kept.any(1)


@dataclass(frozen=True)
class Batch:
    """B streams of S cells: prompt, visual tokens, questions. -1 pads."""

    tokens: np.ndarray  # [B, S] int64; 0 where a feature goes
    feature: np.ndarray  # [B, S] int64: row of the flattened features [units * 16], -1 = none
    positions: np.ndarray  # [3, B, S] int64
    mask: np.ndarray  # [B, 1, S, S] bool: row may see column
    labels: np.ndarray  # [B, S] int64: the token that follows, IGNORED where it does not matter
    kinds: np.ndarray  # [B, S] int64: index of the question's kind at its labels, -1 elsewhere


def by_length(batch: Batch, groups: int) -> list[Batch]:
    """The streams of a batch in up to `groups` batches of similar lengths: less to pad."""
    lengths = np.diagonal(batch.mask[:, 0], axis1=1, axis2=2).sum(1)
    parts = []
    for rows in np.array_split(np.argsort(lengths, kind="stable"), groups):
        if len(rows):
            parts.append(_shortened(batch, rows, _rounded(int(lengths[rows].max()))))
    return parts


def _rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _shortened(batch: Batch, rows: np.ndarray, length: int) -> Batch:
    return Batch(
        tokens=batch.tokens[rows, :length],
        feature=batch.feature[rows, :length],
        positions=batch.positions[:, rows, :length],
        mask=batch.mask[rows, :, :length, :length],
        labels=batch.labels[rows, :length],
        kinds=batch.kinds[rows, :length],
    )


def gather(
    rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe
) -> tuple[np.ndarray, list[Episode]]:
    """Units [U, ...] of all reels, and episodes that are made of them."""
    units = np.concatenate([reel.units for reel in reels])
    return units, [episode_of(rng, reels, recipe) for _ in range(recipe.streams)]


def glances(
    rng: np.random.Generator, reels: list[Reel], count: int, farthest: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Single units: frames [U, 2, 112, 112, 3], `count` of each reel, rarely empty ones, often
    small things and often a change from one thing to another; and what they show, see `sights`.
    Pictures are moved by up to `farthest` pixels in each direction."""
    units, shown = [], []
    for reel in reels:
        drawn = _crossed(rng, _drawn_units(rng, reel, 2 * count))
        moves = rng.integers(-farthest, farthest + 1, (count, 2))
        units += [_moved(unit, *move) for unit, move in zip(drawn.units, moves, strict=True)]
        shown.append(sights(drawn, moves / SIDE))
    return np.stack(units), np.concatenate(shown)


def _drawn_units(rng: np.random.Generator, reel: Reel, count: int) -> Reel:
    """`count` units of the reel, drawn one by one, as a reel."""
    things = (reel.there >= 0).sum((1, 2))  # 0 to 4: in two frames
    weights = np.array(GLANCE_WEIGHTS)[things] * np.where(_small(reel), SMALL_WEIGHT, 1.0)
    rows = rng.choice(len(things), count, p=weights / weights.sum())
    return replace(reel, units=reel.units[rows], there=reel.there[rows], times=reel.times[rows])


def _crossed(rng: np.random.Generator, reel: Reel) -> Reel:
    """The first half of the reel's units. A share of them show in one frame what a unit of the
    other half does, if it shows other things: as where one thing follows directly upon another."""
    count = len(reel.units) // 2
    units, there, times = (
        np.array(values[:count]) for values in (reel.units, reel.there, reel.times)
    )
    for unit in np.flatnonzero(rng.random(count) < CROSSED):
        frame, other = rng.integers(UNIT_FRAMES), count + unit
        if not set(there[unit][there[unit] >= 0]) & set(reel.there[other].flat):
            units[unit, frame] = reel.units[other, frame]
            there[unit, frame] = reel.there[other, frame]
            times[unit, frame] = reel.times[other, frame]
    return replace(reel, units=units, there=there, times=times)


def _small(reel: Reel) -> np.ndarray:
    """[U] bool: the units of which a frame shows a small thing."""
    radii = np.array([thing.radius * min(1.0, thing.growth) for thing in reel.things] + [np.inf])
    return (radii[reel.there] * SIDE / max(1.0, reel.aspect) < SMALL).any((1, 2))


def _moved(unit: np.ndarray, right: int, down: int) -> np.ndarray:
    """A unit [2, 112, 112, 3] moved by pixels; black comes in at the border."""
    moved = np.zeros_like(unit)
    to = [slice(max(0, by), SIDE + min(0, by)) for by in (down, right)]
    of = [slice(max(0, -by), SIDE + min(0, -by)) for by in (down, right)]
    moved[:, to[0], to[1]] = unit[:, of[0], of[1]]
    return moved


def sights(reel: Reel, moves: np.ndarray | None = None) -> np.ndarray:
    """[U, 2, 7] int64: for each frame the numbers of the left thing's shape, colour, place in the
    picture's width and in its height (of PLACES each), the way that it goes if both frames show it,
    and of the right thing's shape and colour, from 1; 0 = there is none.

    moves [U, 2]: how far each picture was moved to the right and down, as a share of its side.
    """
    there, times = reel.there, reel.times
    moves = np.zeros((len(there), 2)) if moves is None else moves
    found = np.zeros((*there.shape[:2], 7), np.int64)
    ways = list(WAYS)
    longer = max(1.0, reel.aspect)
    bars = (np.array(reel.shift) - 0.5) * (1 - np.array([reel.aspect, 1.0]) / longer)
    for unit, frame in np.argwhere(there[:, :, 0] >= 0):
        left, right = there[unit, frame]
        thing = reel.things[left]
        place = np.array(thing.center(times[unit, frame])) / longer + bars + moves[unit]
        steps = np.clip(((place + 0.5) * PLACES).astype(int), 0, PLACES - 1) + 1
        way = ways.index(thing.way) + 1 if (there[unit] == left).any(1).all() else 0
        found[unit, frame, :5] = (*_numbers(thing), *steps, way)
        if right >= 0:
            found[unit, frame, 5:] = _numbers(reel.things[right])
    return found


def _numbers(thing: Thing) -> tuple[int, int]:
    return SHAPES.index(thing.shape) + 1, COLORS.index(thing.color) + 1


def mirrored(reel: Reel) -> Reel:
    """The reel with left and right exchanged. Its units are pixels, or stay as they are."""
    pair = (reel.there[..., 1:] >= 0) & np.ones(2, bool)
    things = tuple(
        replace(
            thing,
            x=-thing.x,
            angle=-thing.angle,
            way={"left": "right", "right": "left"}.get(thing.way, thing.way),
        )
        for thing in reel.things
    )
    return replace(
        reel,
        units=reel.units[:, :, :, ::-1] if reel.units.ndim > 1 else reel.units,
        there=np.where(pair, reel.there[..., ::-1], reel.there),
        things=things,
        shift=(1 - reel.shift[0], reel.shift[1]),
    )


def episode_of(rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe) -> Episode:
    if rng.random() < recipe.windows:
        return _window(rng, reels, recipe)
    starts = np.cumsum([0, *(len(reel.units) for reel in reels)])
    empties = [np.flatnonzero((reel.there == -1).all((1, 2))) for reel in reels]
    if rng.random() < recipe.one_look:
        only = int(rng.choice([r for r, rows in enumerate(empties) if len(rows)] or [0]))
        reels, starts, empties = [reels[only]], starts[only : only + 1], [empties[only]]
    count = int(rng.integers(recipe.things[0], recipe.things[1] + 1))
    chosen = _chosen(rng, reels, count, again=rng.random() < recipe.again)
    parts: list[tuple[np.ndarray, ...]] = []
    for index, (r, k) in enumerate(chosen):
        run = _run(reels[r], k)
        there = np.where(reels[r].there[run] == k, index, -1)
        parts.append((starts[r] + run, there, how_far(reels[r], run)))
    empty = np.concatenate([start + rows for start, rows in zip(starts, empties, strict=False)])
    rows, there, way = _with_empties(
        rng, parts, empty, int(rng.integers(recipe.empties[0], recipe.empties[1] + 1))
    )
    things = tuple(reels[r].things[k] for r, k in chosen)
    return Episode(rows, _times(rng, len(rows), recipe), there, things, way)


def how_far(reel: Reel, rows: np.ndarray) -> np.ndarray:
    """[u, 2, 2]: how far each thing in the frames of units `rows` has gone since it came, as a
    share of the picture's side; 0 where there is none."""
    there, times = reel.there[rows], reel.times[rows]
    far = np.zeros(there.shape)
    for unit, frame, place in np.argwhere(there >= 0):
        thing = reel.things[there[unit, frame, place]]
        far[unit, frame, place] = thing.travel * thing.share(times[unit, frame])
    return far / max(1.0, reel.aspect)


def _chosen(
    rng: np.random.Generator, reels: list[Reel], count: int, again: bool
) -> list[tuple[int, int]]:
    """(reel, thing) of up to `count` things that are alone in some units; no two have the same
    shape and colour, nor, without `again`, the same shape."""
    clips = [(r, k) for r, reel in enumerate(reels) for k in range(len(reel.things))]
    chosen: dict[object, tuple[int, int]] = {}
    for index in rng.permutation(len(clips)):
        r, k = clips[index]
        if len(chosen) == count:
            break
        thing = reels[r].things[k]
        if len(_run(reels[r], k)):
            chosen.setdefault((thing.shape, thing.color) if again else thing.shape, (r, k))
    return list(chosen.values())


def _window(rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe) -> Episode:
    """A section of one reel as it was: things may follow each other within a unit."""
    r = rng.integers(len(reels))
    reel, start = reels[r], sum(len(reel.units) for reel in reels[:r])
    total = len(reel.units)
    length = int(rng.integers(1, min(total, recipe.longest) + 1))
    first = int(rng.integers(0, total - length + 1))
    last = first + length
    there = reel.there[first:last]
    present = [k for k in np.unique(there) if k >= 0]
    renumbered = np.full(len(reel.things) + 1, -1)  # its last entry serves -1
    renumbered[present] = np.arange(len(present))
    things = tuple(reel.things[k] for k in present)
    seconds = reel.times[first:last, 0] - reel.times[first, 0]
    steps = np.floor(seconds * TOKENS_PER_SECOND + 1e-6).astype(int)
    times = _times(rng, length, recipe)
    return Episode(
        np.arange(start + first, start + last),
        times - np.arange(length) + steps,
        renumbered[there],
        things,
        how_far(reel, np.arange(first, last)),
    )


def _run(reel: Reel, thing: int) -> np.ndarray:
    """A stretch of units of a reel that show `thing` and no other."""
    alone = ((reel.there == thing) | (reel.there == -1)).all((1, 2))
    return np.flatnonzero(alone & (reel.there == thing).any((1, 2)))


def _with_empties(
    rng: np.random.Generator,
    parts: list[tuple[np.ndarray, ...]],
    empty: np.ndarray,
    count: int,
) -> tuple[np.ndarray, ...]:
    """Puts `count` of the `empty` units, in up to three stretches, between runs of (units [u],
    there [u, 2, 2], gone [u, 2, 2]).

    At least one, where there is no run: a stream has a unit.
    """
    if not parts:
        count = max(count, 1)
    if not len(empty):
        count = 0
    gaps = rng.integers(0, len(parts) + 1, 3)
    stretches = np.bincount(rng.integers(0, 3, count), minlength=3)
    mixed: list[tuple[np.ndarray, ...]] = []
    for gap in range(len(parts) + 1):
        for stretch in stretches[gaps == gap]:
            nothing = np.full((stretch, UNIT_FRAMES, AT_ONCE), -1)
            mixed.append((rng.choice(empty, stretch), nothing, np.zeros(nothing.shape)))
        mixed += parts[gap : gap + 1]
    return tuple(np.concatenate(arrays) for arrays in zip(*mixed, strict=True))


def _times(rng: np.random.Generator, units: int, recipe: BatchRecipe) -> np.ndarray:
    """[units] rising unit times, from 0 (a whole stream) or from later on (a part of one)."""
    if rng.random() >= recipe.far:
        return np.arange(units)
    limit = int(np.exp(rng.uniform(np.log(units + 1), np.log(MAX_POSITION - 64))))
    kind = rng.integers(3)
    if kind == 0:  # anywhere
        return np.sort(rng.choice(limit + 1, units, replace=False))
    if kind == 1:  # a dense stream that begins late
        return np.arange(units) + rng.integers(0, limit - units + 2)
    jumps = np.zeros(units, np.int64)  # dense but for up to three jumps
    jumps[rng.integers(0, units, 3)] = rng.multinomial(limit - units + 1, np.ones(3) / 3)
    return np.arange(units) + np.cumsum(jumps)


class Composer:
    """Converts episodes to a batch."""

    def __init__(self, recipe: BatchRecipe) -> None:
        self.recipe = recipe
        self.tokenizer = make_tokenizer()
        self.prompt = self.tokenizer.encode(PROMPT).ids
        self.kind_names = list(KINDS)

    def compose(
        self, rng: np.random.Generator, episodes: list[Episode], features: np.ndarray
    ) -> Batch:
        """features [units, 16, width] float32: the visual tokens, which drops by similarity look
        at."""
        return stacked([self._lay_out(rng, episode, features) for episode in episodes])

    def _lay_out(
        self, rng: np.random.Generator, episode: Episode, features: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The cells of one stream: token, feature, position [3], label, kind; and the mask."""
        reading = _read_as(rng, features[episode.units], self.recipe)
        asked = _certain(episode, reading.visible)
        if not asked:
            reading = _whole(reading)
            asked = _certain(episode, reading.visible)
        forks = self._forks(rng, episode, asked)
        n = len(self.prompt)
        unit, cell = np.nonzero(reading.kept)
        vision = np.stack([n + episode.times[unit], n + cell // GRID, n + cell % GRID])
        words = _words(forks, self._text_start(rng, vision))
        prompt = np.arange(n)
        count, total = len(unit), len(words[0])
        return {
            "tokens": np.concatenate([self.prompt, np.zeros(count, np.int64), words[0]]),
            "feature": np.concatenate(
                [np.full(n, -1), episode.units[unit] * UNIT_TOKENS + cell, np.full(total, -1)]
            ),
            "positions": np.concatenate(
                [np.stack([prompt] * 3), vision, np.stack([words[4]] * 3)], 1
            ),
            "labels": np.concatenate([np.full(n + count, IGNORED), words[1]]),
            "kinds": np.concatenate([np.full(n + count, -1), words[2]]),
            "mask": _mask(n, reading.chunk[unit], words[3], reading.reach, reading.seen),
        }

    def _text_start(self, rng: np.random.Generator, vision: np.ndarray) -> int:
        """The first position of the text after visual tokens at positions [3, V]."""
        start = int(vision.max()) + 1
        # the stream went on, but its later units are not read
        if rng.random() < 0.3 * self.recipe.far:
            start += int(rng.integers(0, max(1, MAX_POSITION - 32 - start)))
        return start

    def _forks(
        self, rng: np.random.Generator, episode: Episode, asked: list[Asked]
    ) -> list[list[tuple[int, int, int]]]:
        """(token, label, kind) rows of some of the questions `asked`: `<|vision_end|>` question
        answer, or two turns of a conversation."""
        weights = np.array([self._weight(question, episode) for question in asked])
        picked = rng.choice(
            len(asked),
            min(self.recipe.questions, len(asked)),
            replace=False,
            p=weights / weights.sum(),
        )
        forks = []
        for index in picked:
            turns = [asked[index]]
            if rng.random() < self.recipe.turns:
                turns.insert(0, asked[rng.integers(len(asked))])
            forks.append(
                [
                    row
                    for number, turn in enumerate(turns)
                    for row in self._turn(rng, turn, first=number == 0)
                ]
            )
        return forks

    def _weight(self, question: Asked, episode: Episode) -> float:
        """Questions about absent things are rare, otherwise "none" would be a good guess."""
        return self.recipe.weights[question.kind] * (
            0.12 if _absent(question) and len(episode.things) < 7 else 1.0
        )

    def _turn(
        self, rng: np.random.Generator, asked: Asked, first: bool
    ) -> list[tuple[int, int, int]]:
        text = asked.question.replace(" was ", " is ", 1) if rng.random() < 0.15 else asked.question
        question = self.tokenizer.encode(("<|vision_end|>" if first else "<|im_start|>") + text).ids
        answer = self.tokenizer.encode(asked.answer + "<|im_end|>").ids
        kind = self.kind_names.index(asked.kind)
        tokens = question + answer
        labels = [IGNORED] * (len(question) - 1) + answer + [IGNORED]
        return [
            (token, label, kind if label != IGNORED else -1)
            for token, label in zip(tokens, labels, strict=True)
        ]


def _read_as(rng: np.random.Generator, features: np.ndarray, recipe: BatchRecipe) -> _Reading:
    """features: [U, 16, width] of the stream's units."""
    units = len(features)
    size = int(rng.integers(2, 9))  # units a chunk
    chunk = np.arange(units) // size
    kept = (
        _kept(rng, features, size)
        if rng.random() < recipe.drops
        else np.ones((units, UNIT_TOKENS), bool)
    )
    reach = int(rng.integers(0, 4)) if rng.random() < recipe.bounded else units
    seen = np.ones(chunk[-1] + 1, bool)
    if rng.random() < recipe.retrieval:
        seen = rng.random(len(seen)) < rng.uniform(0.2, 0.9)
        seen[rng.integers(len(seen))] = True
    return _Reading(chunk, kept, reach, seen)


def _words(forks: list[list[tuple[int, int, int]]], start: int) -> np.ndarray:
    """[5, T] int64: token, label, kind, fork and position of the text. Every fork begins at
    position `start`."""
    rows = [
        (*row, fork, start + place)
        for fork, rows in enumerate(forks)
        for place, row in enumerate(rows)
    ]
    return np.array(rows, np.int64).T


def _certain(episode: Episode, visible: np.ndarray) -> list[Asked]:
    """The questions of which the answer is sure from the units that are `visible` [U] bool."""
    shown = np.unique(episode.there[visible])
    begins_with_two = bool((episode.there[0, 0] >= 0).all())
    return [
        question
        for question in all_questions(episode.things, episode.now)
        if _answerable(question, shown, bool(visible.all()), bool(visible[-1]))
        and (question.kind != "way" or _seen_going(question, episode, visible))
        and not (begins_with_two and _about_the_first(question))
    ]


def _whole(reading: _Reading) -> _Reading:
    return replace(reading, kept=np.ones_like(reading.kept), seen=np.ones_like(reading.seen))


def _seen_going(asked: Asked, episode: Episode, visible: np.ndarray) -> bool:
    """Whether one sees which way the things went that a question is about, in the units that are
    `visible` [U] bool."""
    if episode.gone is None:
        return False
    there, gone = episode.there[visible], episode.gone[visible]
    for index in asked.about or ():
        far = gone[there == index]
        if len(far) < MOVING_FRAMES:
            return False
        if episode.things[index].travel and np.ptp(far) < SEEN_TRAVEL:
            return False
    return True


def _answerable(asked: Asked, shown: np.ndarray, whole: bool, end: bool) -> bool:
    """Whether the answer is known from the things `shown`. whole, end: the whole stream, or its
    end, was seen."""
    if asked.about is not None:
        return bool(np.isin(asked.about, shown).all())
    return whole or _absent(asked) or (asked.kind == "now" and end)


def _about_the_first(asked: Asked) -> bool:
    return asked.kind == "first" or (
        asked.kind == "after" and asked.about is not None and 0 in asked.about
    )


def _absent(asked: Asked) -> bool:
    return asked.about is None and asked.answer in ("none", "no")


def _kept(rng: np.random.Generator, features: np.ndarray, size: int) -> np.ndarray:
    """[U, 16] bool: the tokens that a drop leaves, of features [U, 16, width].

    Two in three: ViCoStream's chunk-intra drop with a random number of kept positions; else tokens
    at random, at least one a unit.
    """
    units = len(features)
    kept = np.ones((units, UNIT_TOKENS), bool)
    if rng.random() < 0.33:
        kept = rng.random((units, UNIT_TOKENS)) < rng.uniform(0.3, 0.95)
        kept[np.arange(units), rng.integers(UNIT_TOKENS, size=units)] = True
        return kept
    hot_positions = int(rng.integers(3, 14))
    for start in range(0, units, size):
        run = features[start : start + size]
        if len(run) > 1:
            scores = (run[1:] * run[:-1]).sum(-1) / (
                np.linalg.norm(run[1:], axis=-1) * np.linalg.norm(run[:-1], axis=-1) + 1e-6
            )
            kept[start + 1 : start + size] = False
            kept[start + 1 : start + len(run), np.argsort(scores.min(0))[:hot_positions]] = True
    return kept


def _mask(
    prompt: int, chunk: np.ndarray, fork: np.ndarray, reach: int, seen: np.ndarray
) -> np.ndarray:
    """[S, S] bool: row may attend to column, for prompt tokens, visual tokens with chunks [V], and
    text with forks [T]."""
    v, t = len(chunk), len(fork)
    mask = np.zeros((prompt + v + t,) * 2, bool)
    mask[:, :prompt] = True
    vision, text = slice(prompt, prompt + v), slice(prompt + v, None)
    mask[vision, vision] = chunk[:, None] - chunk[None, :] <= reach
    mask[text, vision] = seen[chunk][None, :]
    mask[text, text] = fork[:, None] == fork[None, :]
    return np.tril(mask)


def stacked(laid: list[dict[str, np.ndarray]]) -> Batch:
    """Pad streams to one length. Padding attends to the first prompt token; nothing attends to
    it."""
    longest = _rounded(max(len(cells["tokens"]) for cells in laid))

    def padded(name: str, value: int) -> np.ndarray:
        return np.stack(
            [
                np.pad(cells[name], (0, longest - len(cells[name])), constant_values=value)
                for cells in laid
            ]
        )

    positions = np.stack(
        [
            np.pad(cells["positions"], ((0, 0), (0, longest - cells["positions"].shape[1])))
            for cells in laid
        ],
        1,
    )
    mask = np.zeros((len(laid), 1, longest, longest), bool)
    mask[..., 0] = True
    for row, cells in enumerate(laid):
        size = len(cells["mask"])
        mask[row, 0, :size, :size] = cells["mask"]
    return Batch(
        padded("tokens", 0),
        padded("feature", -1),
        positions,
        mask,
        padded("labels", IGNORED),
        padded("kinds", -1),
    )
