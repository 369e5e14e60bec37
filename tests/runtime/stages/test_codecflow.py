"""CodecFlow's window (arXiv 2604.06036) against a plain statement of it: pruned units, reuse at new
positions, anchors computed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet, rotate
from support.streams import frames as random_frames
from support.systems import system

from vicort.runtime.core import Frame, Motion, Sampling
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

ASK, WORDS = "what color was the circle?", 3
CHUNKS = 3  # in the window, of 4 units each
MOTION = "{policy: motion, tau: 0.5, difference: 4, refresh: 1000}"


def window(anchors: str):
    return system(
        drop=MOTION,
        ingest=f"{{policy: sliding-window, chunks: {CHUNKS}, anchors: {anchors}}}",
        retrieval="{policy: all}",
        memory="{device_mb: 2, when_full: drop-oldest}",
    )


@dataclass(eq=False)
class Unit:
    chunk: int
    anchor: bool
    rows: np.ndarray  # [n, width]
    positions: np.ndarray  # [n, 3]
    k: np.ndarray | None = None  # [L, n, Hkv, D]
    v: np.ndarray | None = None


class PlainCodecFlow:
    """SEEDS 5, last part: for the next overlapping window, keys and values of tokens that were seen
    are reused at new positions, those of I frames are computed again, and new frames are
    computed."""

    def __init__(self, engines: FakeEngineSet, prompt: list[int], refresh: bool) -> None:
        self.engines = engines
        self.refresh = refresh
        self.first = len(prompt)
        self.offset = 0
        places = np.repeat(np.arange(len(prompt))[:, None], 3, axis=1)
        self.prompt = Unit(-1, False, engines.embedding[prompt].astype(float), places)
        self.units = []
        self.compute([self.prompt], [])

    def chunk(self, number: int, units: list[tuple[int, np.ndarray, np.ndarray, bool]]) -> None:
        """units: number in the stream, tokens, their features, whether it is an anchor."""
        before = len(self.units)
        self.units = [unit for unit in self.units if unit.chunk > number - CHUNKS]
        if self.units:
            gap = self.units[0].positions[0, 0] - self.first
            self.offset += gap
            for unit in self.units:
                unit.positions = unit.positions - [gap, 0, 0]
        if self.refresh and len(self.units) < before:
            for place, unit in enumerate(self.units):
                if unit.anchor:
                    self.compute([unit], self.units[:place])
        columns = self.engines.model.fixed_grid.columns
        new = []
        for time, tokens, rows, anchor in units:
            places = [
                (
                    self.first + time - self.offset,
                    self.first + p // columns,
                    self.first + p % columns,
                )
                for p in tokens
            ]
            if len(tokens):
                new.append(Unit(number, anchor, rows, np.array(places)))
        if new:
            self.compute(new, list(self.units))
        self.units += new

    def compute(self, new: list[Unit], before: list[Unit]) -> np.ndarray:
        """Keys and values of units that are run together, over the prompt and the units before;
        returns the last layer's rows."""
        m, x = self.engines.model, np.concatenate([unit.rows for unit in new]).astype(float)
        places = np.concatenate([unit.positions for unit in new])
        seen = [unit for unit in [self.prompt, *before] if unit not in new]
        keys_of, values_of = [], []
        for layer, weights in enumerate(self.engines._layers):
            q = (x @ weights["q"]).reshape(len(x), m.query_heads, m.head_dim)
            k = (x @ weights["k"]).reshape(len(x), m.kv_heads, m.head_dim)
            v = (x @ weights["v"]).reshape(len(x), m.kv_heads, m.head_dim)
            cached = sum(len(unit.rows) for unit in seen)
            keys = np.concatenate(
                [*(turned(unit.k[layer], unit.positions) for unit in seen), turned(k, places)]
            )
            values = np.concatenate([*(unit.v[layer] for unit in seen), v])
            scores = (
                np.einsum(
                    "rhd,chd->rhc",
                    turned(q, places),
                    keys.repeat(m.query_heads // m.kv_heads, axis=1),
                )
                / m.head_dim**0.5
            )
            scores += np.where(
                np.arange(len(keys)) <= cached + np.arange(len(x))[:, None], 0, -np.inf
            )[:, None]
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            mixed = np.einsum(
                "rhc,chd->rhd", weight, values.repeat(m.query_heads // m.kv_heads, axis=1)
            )
            x = x + mixed.reshape(len(x), -1) @ weights["o"]
            keys_of.append(k)
            values_of.append(v)
        ends = np.cumsum([len(unit.rows) for unit in new])
        for unit, end in zip(new, ends, strict=True):
            own = slice(end - len(unit.rows), end)
            unit.k, unit.v = np.array(keys_of)[:, own], np.array(values_of)[:, own]
        return x

    def logits(self, tokens: list[int], newest: int) -> np.ndarray:
        """Of the token after a question's, which sees the whole window. newest: the latest unit's
        number, whether it left tokens or not."""
        m = self.engines.model
        end = max(
            self.first + newest - self.offset,
            self.first + max(m.fixed_grid.rows, m.fixed_grid.columns) - 1,
        )
        places = np.repeat(np.arange(end + 1, end + 1 + len(tokens))[:, None], 3, axis=1)
        text = Unit(-1, False, self.engines.embedding[tokens].astype(float), places)
        return self.compute([text], self.units)[-1] @ self.engines.embedding.T

    def computed_anew(self) -> PlainCodecFlow:
        """The same window as if it were all there ever was."""
        other = PlainCodecFlow.__new__(PlainCodecFlow)
        other.__dict__ |= self.__dict__ | {"units": []}
        for chunk in sorted({unit.chunk for unit in self.units}):
            new = [replace(unit, k=None, v=None) for unit in self.units if unit.chunk == chunk]
            other.compute(new, list(other.units))
            other.units += new
        return other


def turned(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    return rotate(x, places[:, None])


def stream(count: int, seed: int, anchor_every: int = 5) -> list[Frame]:
    """Two frames a unit; the engine's frame has 2x2 tokens, a source of 32x32 pixels 2x2 cells: a
    cell moves, a token is kept."""
    random = np.random.default_rng(seed)
    told = [
        Motion(i % (2 * anchor_every) == 0, (random.random((2, 2)) < 0.12) * np.float32(9))
        for i in range(count)
    ]
    return [
        replace(frame, motion=motion)
        for frame, motion in zip(random_frames(count, size=(32, 32), seed=seed), told, strict=True)
    ]


def tokens_kept(video: list[Frame]) -> list[tuple[np.ndarray, bool]]:
    """Of each unit, its tokens, and whether it holds an I frame."""
    moved, units = np.zeros(4, bool), []
    for first in range(0, len(video), 2):
        either, anchor = np.zeros(4, bool), False
        for frame in video[first : first + 2]:
            if frame.motion.refreshed:
                moved[:], anchor, either = False, True, np.ones(4, bool)
            else:
                moved |= frame.motion.cells.reshape(-1) > 0
                either = either | moved
        units.append((np.flatnonzero(either), anchor))
    return units


def run_both(anchors: str, video: list[Frame], overlap: bool = True):
    """A session over the stream, its memory and what it answers; and the plain statement of the
    same."""
    engines = FakeEngineSet(seed=3)
    with Session(
        engines, window(anchors), fps="source", overlap=overlap, sampling=Sampling(max_tokens=WORDS)
    ) as session:
        prompt, memory = session.inspect().prompt, session.inspect().memory
        for frame in video:
            session.push(frame)
        session.finish()
        said = session.ask(ASK)
        placed = {unit: pages_of(memory, unit) for unit in memory.tiers.units}
        reruns = memory.reruns
    plain = PlainCodecFlow(engines, prompt.prefix, anchors == "refresh")
    whole = [see_all(engines, frame) for frame in video]
    for chunk in range(-(-len(video) // 8)):
        units = []
        for number, (tokens, anchor) in list(enumerate(tokens_kept(video)))[
            4 * chunk : 4 * chunk + 4
        ]:
            rows = engines._see(np.stack(whole[2 * number : 2 * number + 2]))["features"][0][tokens]
            units.append((number, tokens, rows, anchor))
        plain.chunk(chunk, units)
    return said, placed, reruns, plain, prompt


def see_all(engines: FakeEngineSet, frame: Frame) -> np.ndarray:
    """The frame as the engine gets it."""
    m = engines.model
    device = engines.new_device()
    try:
        out = np.empty((1, *m.fixed_size, 3), np.uint8)
        device.preprocessor(m.fixed_size, 1)([frame.image], out, None)
    finally:
        device.close()
    return out[0]


def pages_of(memory, unit: int):
    slots, cells = memory.tiers.cells(unit)
    data = memory.pool.data[slots, :, :, :, cells]  # [n, L, Hkv, 2, D]
    return (
        memory.positions(unit),
        data[:, :, :, 0].swapaxes(0, 1).copy(),
        data[:, :, :, 1].swapaxes(0, 1).copy(),
    )


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("anchors", ["refresh", "reuse"])
def test_the_window_is_what_the_plain_statement_says(anchors, overlap):
    video = stream(56, seed=1)
    said, placed, reruns, plain, prompt = run_both(anchors, video, overlap)
    assert len(placed) == len(plain.units)
    for (positions, k, v), unit in zip(placed.values(), plain.units, strict=True):
        np.testing.assert_array_equal(positions, unit.positions)
        np.testing.assert_allclose(k, unit.k, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(v, unit.v, atol=1e-3, rtol=1e-3)
    assert (reruns > 0) == (anchors == "refresh")
    text, words = list(prompt.question(ASK)), []
    while len(words) < WORDS:
        words.append(int(np.argmax(plain.logits(text + words, newest=27))))
    assert said.text == prompt.decode(words)
    assert said.read[0][0] >= Fraction(4 * (7 - CHUNKS))  # seconds: the window's first unit


def test_with_every_unit_an_anchor_a_refreshed_window_is_one_that_was_all_there_is():
    video = [
        replace(frame, motion=Motion(True, None)) for frame in random_frames(48, size=(32, 32))
    ]
    _, placed, reruns, plain, _ = run_both("refresh", video)
    anew = plain.computed_anew()
    assert reruns == 3 * 4 * (CHUNKS - 1)  # slides, units that stay
    for (_, k, v), unit in zip(placed.values(), anew.units, strict=True):
        np.testing.assert_allclose(k, unit.k, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(v, unit.v, atol=1e-3, rtol=1e-3)


def test_anchors_come_closer_to_the_window_computed_anew_than_what_is_reused():
    """Largest difference of keys and values, over the units that stayed through a slide."""
    apart = {}
    for anchors in ("refresh", "reuse"):
        _, _, _, plain, _ = run_both(anchors, stream(56, seed=1))
        pairs = [
            (a, b)
            for a, b in zip(plain.units, plain.computed_anew().units, strict=True)
            if a.chunk < 6
        ]
        apart[anchors] = {
            kind: np.mean([np.abs(a.v - b.v).max() for a, b in pairs if a.anchor == kind])
            for kind in (True, False)
        }
    assert apart["refresh"][True] < apart["reuse"][True] / 2


def test_positions_stay_small_and_memory_flat_however_long_it_runs():
    engines, video = FakeEngineSet(seed=3), stream(400, seed=2)
    with Session(engines, window("refresh"), fps="source") as session:
        memory, prefill = session.inspect().memory, session._launcher._prefill
        for frame in video:
            session.push(frame)
        session.finish()
        latest = max(memory.positions(unit)[:, 0].max() for unit in memory.tiers.units)
        assert latest <= session.inspect().memory.timeline.first + 4 * CHUNKS
        assert len(memory.tiers.units) <= 4 * CHUNKS
        assert set(prefill._anchors._rows) <= {*memory.tiers.units, *range(196, 200)}
        assert session.ask(ASK).read[0][0] >= Fraction(4 * (50 - CHUNKS))


def test_the_system_and_what_it_needs():
    chosen = load_system("codecflow")
    assert chosen.drop.alpha == 0
    assert chosen.ingest.anchors == "refresh"
    with pytest.raises(ConfigError, match="drop policy motion"):
        system(ingest="{policy: sliding-window, chunks: 2, anchors: refresh}")
