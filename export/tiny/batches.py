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

from vicort.export.tiny.model import GRID, MAX_POSITION, UNIT_TOKENS
from vicort.export.tiny.reels import Reel
from vicort.export.tiny.tokenizer import PROMPT, make_tokenizer
from vicort.export.tiny.world import COLORS, SHAPES, Thing
from vicort.export.tiny.world_questions import KINDS, Asked, all_questions

IGNORED = -100  # a label that does not count


@dataclass(frozen=True)
class BatchRecipe:
    """The streams of a training stage. Shares are probabilities."""

    streams: int = 16
    reels: int = 4
    questions: int = 16
    things: tuple[int, int] = (0, 7)
    empties: tuple[int, int] = (0, 6)  # units without anything that are mixed in
    # share of streams that are a section of one reel; the others are composed of all reels
    windows: float = 0.3
    # share of streams whose unit times are sorted random numbers instead of 0, 1, 2, …
    far: float = 0.0
    bounded: float = 0.0  # share with bounded attention while ingesting
    drops: float = 0.0  # share that loses tokens
    retrieval: float = 0.0  # share of streams whose questions see only some of the chunks
    turns: float = 0.0  # share of questions that follow on another in one conversation
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "color": 6, "shape": 4, "now": 30, "first": 20, "last": 12, "after": 2, "any": 1.0,
            "count": 12, "way": 2,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Episode:
    """One stream of a batch, without tokens and positions."""

    units: np.ndarray  # [U] int: rows of the batch's units
    times: np.ndarray  # [U] int: unit times
    there: np.ndarray  # [U, 2] int: which thing a frame shows, -1 = none
    things: tuple[Thing, ...]

    @property
    def now(self) -> Thing | None:
        """What the last frame shows."""
        index = self.there[-1, 1]
        return self.things[index] if index >= 0 else None


@dataclass(frozen=True)
class Batch:
    """B streams of S cells: prompt, visual tokens, questions. -1 pads."""

    tokens: np.ndarray  # [B, S] int64; 0 where a feature goes
    feature: np.ndarray  # [B, S] int64: row of the flattened features [units * 16], -1 = none
    positions: np.ndarray  # [3, B, S] int64
    mask: np.ndarray  # [B, 1, S, S] bool: row may see column
    labels: np.ndarray  # [B, S] int64: the token that follows, IGNORED where it does not matter
    kinds: np.ndarray  # [B, S] int64: index of the question's kind at its labels, -1 elsewhere


def gather(
    rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe
) -> tuple[np.ndarray, list[Episode]]:
    """Units [U, 2, 112, 112, 3] of all reels, and episodes that are made of them; half of the time
    all is mirrored."""
    units = np.concatenate([reel.units for reel in reels])
    if rng.random() < 0.5:
        units = units[:, :, :, ::-1]
        reels = [
            replace(reel, things=tuple(mirrored(thing) for thing in reel.things)) for reel in reels
        ]
    return units, [episode_of(rng, reels, recipe) for _ in range(recipe.streams)]


def glances(
    rng: np.random.Generator, reels: list[Reel], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Single units: frames [U, 2, 112, 112, 3], up to `count` of each reel, half of the time
    mirrored; and what they show, see `sights`."""
    chosen = [rng.permutation(len(reel.units))[:count] for reel in reels]
    units = np.concatenate([reel.units[rows] for reel, rows in zip(reels, chosen, strict=True)])
    shown = np.concatenate([sights(reel)[rows] for reel, rows in zip(reels, chosen, strict=True)])
    return units[:, :, :, :: rng.choice([-1, 1])], shown


def sights(reel: Reel) -> np.ndarray:
    """[U, 2, 2] int64: for each frame the number of its shape and of its colour, from 1; 0 =
    nothing is there."""
    names = [
        (SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1)
        for thing in reel.things
    ]
    return np.array([*names, (0, 0)], np.int64)[reel.there]  # its last entry serves -1


def mirrored(thing: Thing) -> Thing:
    return replace(
        thing,
        x=-thing.x,
        angle=-thing.angle,
        way={"left": "right", "right": "left"}.get(thing.way, thing.way),
    )


def episode_of(rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe) -> Episode:
    if rng.random() < recipe.windows:
        return _window(rng, reels, recipe)
    starts = np.cumsum([0, *(len(reel.units) for reel in reels)])
    clips = [(r, k) for r in range(len(reels)) for k in range(len(reels[r].things))]
    count = rng.integers(recipe.things[0], recipe.things[1] + 1)
    chosen: dict[str, tuple[int, int]] = {}
    for index in rng.permutation(len(clips)):
        r, k = clips[index]
        if len(chosen) < count:
            chosen.setdefault(reels[r].things[k].shape, (r, k))
    runs = [_run(reels[r], k) for r, k in chosen.values()]
    parts = []
    for index, ((r, k), run) in enumerate(zip(chosen.values(), runs, strict=True)):
        parts.append((starts[r] + run, np.where(reels[r].there[run] == k, index, -1)))
    empty = np.concatenate(
        [
            start + np.flatnonzero((reel.there == -1).all(1))
            for start, reel in zip(starts, reels, strict=False)
        ]
    )
    rows, there = _with_empties(
        rng, parts, empty, int(rng.integers(recipe.empties[0], recipe.empties[1] + 1))
    )
    things = tuple(reels[r].things[k] for r, k in chosen.values())
    return Episode(rows, _times(rng, len(rows), recipe), there, things)


def _window(rng: np.random.Generator, reels: list[Reel], recipe: BatchRecipe) -> Episode:
    """A stretch of one reel as it was: things may follow each other within a unit."""
    r = rng.integers(len(reels))
    reel, start = reels[r], sum(len(reel.units) for reel in reels[:r])
    first, last = np.sort(rng.choice(len(reel.units) + 1, 2, replace=False))
    there = reel.there[first:last]
    present = [k for k in np.unique(there) if k >= 0]
    renumbered = np.full(len(reel.things) + 1, -1)  # its last entry serves -1
    renumbered[present] = np.arange(len(present))
    things = tuple(reel.things[k] for k in present)
    return Episode(
        np.arange(start + first, start + last),
        _times(rng, last - first, recipe),
        renumbered[there],
        things,
    )


def _run(reel: Reel, thing: int) -> np.ndarray:
    """Units of a reel that show `thing`, and no other if possible."""
    shows = (reel.there == thing).any(1)
    alone = shows & ((reel.there == thing) | (reel.there == -1)).all(1)
    return np.flatnonzero(alone if alone.any() else shows)


def _with_empties(
    rng: np.random.Generator,
    parts: list[tuple[np.ndarray, np.ndarray]],
    empty: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts `count` of the `empty` units, in up to three stretches, between runs of (units [u],
    there [u, 2]).

    At least one, where there is no run: a stream has a unit.
    """
    if not parts:
        count = max(count, 1)
    gaps = rng.integers(0, len(parts) + 1, 3)
    stretches = np.bincount(rng.integers(0, 3, count), minlength=3)
    mixed = []
    for gap in range(len(parts) + 1):
        for stretch in stretches[gaps == gap]:
            mixed.append((rng.choice(empty, stretch), np.full((stretch, 2), -1)))
        mixed += parts[gap : gap + 1]
    return np.concatenate([units for units, _ in mixed]), np.concatenate(
        [there for _, there in mixed]
    )


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
        """The cells of one stream: token, feature, position [3], chunk, fork, label, kind; and
        which chunks its questions see."""
        recipe, units = self.recipe, len(episode.units)
        size = int(rng.integers(2, 9))  # units a chunk
        chunk = np.arange(units) // size
        kept = (
            _kept(rng, features[episode.units], size)
            if rng.random() < recipe.drops
            else np.ones((units, UNIT_TOKENS), bool)
        )
        reach = int(rng.integers(0, 4)) if rng.random() < recipe.bounded else units
        seen = np.ones(chunk[-1] + 1, bool)
        if rng.random() < recipe.retrieval:
            seen = rng.random(len(seen)) < rng.uniform(0.2, 0.9)
            seen[rng.integers(len(seen))] = True
        visible_units = seen[chunk] & kept.any(1)
        forks = self._forks(rng, episode, visible_units)

        n = len(self.prompt)
        unit, cell = np.nonzero(kept)
        vision = np.stack([n + episode.times[unit], n + cell // GRID, n + cell % GRID])
        text_start = vision.max() + 1
        if rng.random() < 0.3 * recipe.far:  # the stream went on, but its later units are not read
            text_start += rng.integers(0, max(1, MAX_POSITION - 32 - text_start))
        rows = [
            (*row, fork, text_start + place)
            for fork, rows in enumerate(forks)
            for place, row in enumerate(rows)
        ]
        words = np.array(rows, np.int64).T  # token, label, kind, fork, position
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
            "mask": _mask(n, chunk[unit], words[3], reach, seen),
        }

    def _forks(
        self, rng: np.random.Generator, episode: Episode, visible: np.ndarray
    ) -> list[list[tuple[int, int, int]]]:
        """(token, label, kind) rows of each question: `<|vision_end|>` question answer, or two
        turns of a conversation."""
        shown = np.unique(episode.there[visible])
        everything = all_questions(episode.things, episode.now)
        asked = [
            question
            for question in everything
            if _answerable(question, shown, bool(visible.all()), bool(visible[-1]))
        ]
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


def _answerable(asked: Asked, shown: np.ndarray, whole: bool, end: bool) -> bool:
    """Whether the answer is known from the things `shown`. whole, end: the whole stream, or its
    end, was seen."""
    if asked.about is not None:
        return asked.about in shown
    return whole or _absent(asked) or (asked.kind == "now" and end)


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
    longest = max(len(cells["tokens"]) for cells in laid)

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
