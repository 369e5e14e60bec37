"""LiveVLM's long-term memory against a plain statement of it, on random chunks, and its bounds on
long streams."""

from __future__ import annotations

import math
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.sink_buckets import PlainMemory, attention_shares, page_scores, sink_buckets_system
from support.sizes import examples

from vicort.runtime.core import Page, Sampling, TimeRange
from vicort.runtime.devices.pages import EMPTY, HostPool
from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.long_term.sink_buckets import SinkBucketsMemory
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.policies.long_term import SinkBuckets
from vicort.runtime.policies.system import load_system

MODEL = toy_model()
POLICY = {"tokens": 96, "keep": 0.5, "capacity": 1, "observed": 8, "page": 8, "share": 0.4}
SHORT = Sampling(max_tokens=4)
ASK = "what color was the circle?"


def memory(host_mb: float = 1.0, model=MODEL, **changes) -> SinkBucketsMemory:
    return SinkBucketsMemory(model, SinkBuckets(**(POLICY | changes)), host_mb, np.float32)


def departing(number: int, count: int, seed: int = 0, unit_tokens: int = 4) -> Departing:
    """Chunk `number`, of `count` random tokens. The first value of a token is its name, a unique
    number: 1000 number + i."""
    random, m = np.random.default_rng((seed, number)), MODEL
    k, v = random.normal(size=(2, m.layers, count, m.kv_heads, m.head_dim)).astype(np.float32)
    v[..., 0] = (1000 * number + np.arange(count))[None, :, None]
    unit = np.arange(count) // unit_tokens
    units = [100 * number + u for u in range(unit[-1] + 1)]
    positions = (
        np.stack([unit + 10 * number, np.arange(count) % 4, np.arange(count) % 2], axis=1).astype(
            np.int32
        )
        + 5
    )
    queries = random.normal(size=(m.layers, m.observed_rows, m.query_heads, m.head_dim)).astype(
        np.float32
    )
    queries[:, : max(m.observed_rows - count, 0)] = 0
    pages = tuple(
        Page(-1, "vision", unit_tokens, number, u, Fraction(u), Fraction(u) + Fraction(1, 2))
        for u in units
    )
    return Departing(pages, unit, k, v, positions, queries)


def kept(held: SinkBucketsMemory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values [L, n, Hkv, D] and positions [L, n, Hkv, 3] of all that is kept, in order."""
    count = held._buckets.tokens
    data = held.pool.data.transpose(3, 1, 0, 4, 2, 5).reshape(
        2, MODEL.layers, -1, MODEL.kv_heads, MODEL.head_dim
    )
    where = held.pool.cell_positions.transpose(1, 0, 3, 2, 4)
    where = where.reshape(MODEL.layers, -1, MODEL.kv_heads, 3)
    return data[0, :, :count], data[1, :, :count], where[:, :count]


# memory is filled ten times over
@example(counts=[16] * 60, keep=0.5, capacity=1, observed=8, seed=0)
@example(counts=[16, 5] * 30, keep=1.0, capacity=2, observed=8, seed=1)
@settings(max_examples=examples(60))
@given(
    counts=st.lists(st.integers(1, 16), min_size=1, max_size=30),
    keep=st.sampled_from([0.2, 0.5, 1.0]),
    capacity=st.integers(1, 3),
    observed=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_memory_is_what_the_plain_statement_keeps(counts, keep, capacity, observed, seed):
    """Tokens, with keys, values, positions and units, of each layer; and that no count, order or
    stretch of the stream is violated."""
    held = memory(tokens=48 * capacity + 24, keep=keep, capacity=capacity, observed=observed)
    plain = [PlainMemory(held.settings, held.tokens) for _ in range(MODEL.layers)]
    given_ = [departing(number, count, seed) for number, count in enumerate(counts)]
    for number, chunk in enumerate(given_):
        held.absorb(chunk)
        shares = attention_shares(chunk.k, chunk.positions, chunk.queries[:, -observed:])
        for layer, one in enumerate(plain):
            one.absorb(shares[layer], [1000 * number + i for i in range(len(chunk.unit))])
        assert held._buckets.tokens <= held.tokens
    k, v, where = kept(held)
    for layer, one in enumerate(plain):
        names = [name for _, name in one.tokens]
        assert names == sorted(names)
        assert all(bucket["tokens"] and len(bucket["tokens"]) <= capacity for bucket in one.buckets)
        assert v[layer, :, 0, 0].tolist() == names
        chunks, tokens = np.divmod(names, 1000)
        for place, (chunk, token) in enumerate(zip(chunks, tokens, strict=True)):
            np.testing.assert_array_equal(k[layer, place], given_[chunk].k[layer, token])
            np.testing.assert_array_equal(v[layer, place], given_[chunk].v[layer, token])
            assert (where[layer, place] == given_[chunk].positions[token]).all()
            assert held._units[layer, place] == 100 * chunk + token // 4


def random_q(seed: int) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .normal(size=(MODEL.layers, MODEL.query_heads, MODEL.head_dim))
        .astype(np.float32)
    )


@pytest.mark.parametrize(
    ("chunks", "share", "page"),
    [(1, 0.4, 8), (3, 0.4, 4), (40, 0.4, 16), (9, 1.0, 8), (5, 0.01, 6)],
)
def test_pages_are_chosen_as_the_plain_statement_chooses(chunks, share, page):
    held = memory(share=share, page=page)
    for number in range(chunks):
        held.absorb(departing(number, 13))
    k, v, _ = kept(held)
    rounded = math.ceil(page / MODEL.page_tokens) * MODEL.page_tokens
    view = held.view()
    selection = view.choose(random_q(1))
    assert selection.max_cells <= held.max_cells
    seen = set()
    for layer in range(MODEL.layers):
        scores = page_scores(k[layer], random_q(1)[layer], rounded)
        best = sorted(
            sorted(range(len(scores)), key=lambda p: (-scores[p], p))[
                : math.ceil(share * len(scores))
            ]
        )
        expected = [name for p in best for name in v[layer, p * rounded : (p + 1) * rounded, 0, 0]]
        for head in range(MODEL.kv_heads):
            pairs = zip(selection.cells[layer, head], selection.filled[layer, head], strict=True)
            read = [
                held.pool.data[slot, layer, head, 1, cell, 0]
                for slot, filled in pairs
                if slot != NONE
                for cell in range(filled)
            ]
            assert read == expected
        seen |= {100 * (int(name) // 1000) + int(name) % 1000 // 4 for name in expected}
    assert [p.unit for p in view.pages(selection)] == sorted(seen)


def test_an_empty_memory_chooses_nothing():
    assert memory().view().choose(random_q(0)).max_cells == 0


def test_a_view_stays_what_it_was_while_the_stream_goes_on():
    held = memory(tokens=160)
    for number in range(3):
        held.absorb(departing(number, 13))
    view = held.view()
    before, names = (
        view.choose(random_q(2)),
        [page.unit for page in view.pages(view.choose(random_q(2)))],
    )
    held.absorb(departing(3, 15))
    held.absorb(departing(4, 16))
    after = view.choose(random_q(2))
    np.testing.assert_array_equal(after.cells, before.cells)
    np.testing.assert_array_equal(after.filled, before.filled)
    assert [page.unit for page in view.pages(after)] == names
    assert (held.view().choose(random_q(2)).filled.sum() > before.filled.sum()).all()


def test_nothing_moves_under_a_view():
    """A memory that must merge waits until all views are released; a second release of one view
    does nothing."""
    held = memory()
    view, other = held.view(), held.view()
    stream = threading.Thread(
        target=lambda: [held.absorb(departing(number, 16)) for number in range(20)]
    )
    stream.start()
    while held._buckets.tokens + 8 <= held.tokens:  # until it is full
        time.sleep(0.01)
    stream.join(timeout=0.2)
    assert stream.is_alive()
    view.release()
    view.release()
    stream.join(timeout=0.2)
    assert stream.is_alive()
    other.release()
    stream.join(timeout=10)
    assert not stream.is_alive()


def test_time_is_shifted_and_not_below_the_floor():
    held = memory()
    for number in range(4):
        held.absorb(departing(number, 16))
    before = kept(held)[2]
    held.shift(12, 3)
    expected = before - np.array([12, 0, 0])
    np.testing.assert_array_equal(kept(held)[2], np.maximum(expected, 3))


def test_a_thousand_times_what_fits_stays_within_the_budget_and_covers_the_stream():
    """All arrays keep their size, the units that are remembered are those that are seen, and no
    stretch is without tokens."""
    held = memory(host_mb=0.05, tokens=10_000)
    sizes = (
        held.pool.data.nbytes
        + held.pool.cell_positions.nbytes
        + held._scores.nbytes
        + held._units.nbytes
        + held._digests.nbytes
    )
    assert sizes <= 0.05e6
    chunks = 6 * held.tokens
    for number in range(chunks):
        held.absorb(departing(number % 1000, 16))
        assert held._buckets.tokens <= held.tokens
        assert len(held._pages) <= MODEL.layers * held.tokens + 4
    widths = 2**held._buckets.levels
    assert held.cells_in_use() <= len(held.pool.data)
    # at most four times an even share, of 8 buckets a chunk
    assert widths.max() <= 4 * 8 * chunks / held.tokens
    assert held._buckets.starts[-1] + widths[-1] == 8 * chunks


def test_a_budget_too_small_names_the_least_that_works():
    with pytest.raises(MemoryBudgetError) as raised:
        memory(host_mb=0.01)
    assert "\n" not in str(raised.value)
    least = float(str(raised.value).rsplit(" ", 1)[1])
    memory(host_mb=least)
    with pytest.raises(MemoryBudgetError, match=r"long_term.tokens to at least 48"):
        memory(tokens=40)
    memory(tokens=41)


@pytest.mark.parametrize(
    ("change", "words"), [("keep: 0", "keep"), ("share: 1.5", "share"), ("pages: 3", "pages")]
)
def test_a_parameter_that_is_not_allowed_is_named(change, words):
    key = change.split(":")[0]
    lines = {name: f"{name}: {value}" for name, value in POLICY.items()} | {key: change}
    with pytest.raises(ConfigError, match=words):
        sink_buckets_system(", ".join(lines.values()))


def test_the_yaml_file_says_what_the_paper_does():
    policy = load_system("livevlm").long_term
    assert isinstance(policy, SinkBuckets)
    assert (policy.capacity, policy.share, policy.tokens) == (1, 0.4, 12288)


@settings(max_examples=examples(40))
@given(
    chunks=st.integers(0, 20),
    share=st.sampled_from([0.1, 0.4, 1.0]),
    page=st.sampled_from([4, 8, 16]),
    since=st.integers(0, 2100),
    seconds=st.integers(0, 600),
)
def test_a_limited_view_reads_tokens_of_its_range_alone(chunks, share, page, since, seconds):
    """As many pages as without a range, of those that have a token there. Unit n lasts from n to
    n + 1/2 seconds, and units of chunk c are 100 c, 100 c + 1, ..."""
    held, until = memory(share=share, page=page), since + seconds
    for number in range(chunks):
        held.absorb(departing(number, 13))
    k, v, _ = kept(held)
    rounded = math.ceil(page / MODEL.page_tokens) * MODEL.page_tokens
    view = held.view(within=TimeRange(Fraction(since), Fraction(until)))
    selection = view.choose(random_q(1))
    pool = HostPool(np.zeros, MODEL, 100, np.float32, by_head=True)
    table = Recall(pool, range(100)).load(held.pool, selection)

    def is_inside(name):
        unit = 100 * (int(name) // 1000) + int(name) % 1000 // 4
        return unit + 0.5 >= since and unit <= until

    seen, counts = set(), []
    for layer in range(MODEL.layers):
        names = v[layer, :, 0, 0]
        pages = [names[start : start + rounded] for start in range(0, len(names), rounded)]
        means = [p for p, each in enumerate(pages) if any(map(is_inside, each))]
        keys = [k[layer, p * rounded : (p + 1) * rounded].mean(axis=0) for p in means]
        scores = shares_of_means(keys, random_q(1)[layer])
        best = sorted(range(len(means)), key=lambda i: (-scores[i], i))
        best = sorted(means[i] for i in best[: math.ceil(share * len(pages))])
        expected = [name for p in best for name in pages[p] if is_inside(name)]
        for head in range(MODEL.kv_heads):
            slots = table[layer, head][table[layer, head] != NONE]
            there = pool.cell_positions[slots, layer, head, :, 0] != EMPTY
            assert pool.data[slots, layer, head, 1, :, 0][there].tolist() == expected
        seen |= {100 * (int(name) // 1000) + int(name) % 1000 // 4 for name in expected}
        counts.append(len(expected))
    assert [page.unit for page in view.pages(selection)] == sorted(seen)
    assert selection.tokens == round(float(np.mean(counts)))


def shares_of_means(keys, q):
    """The attention of each query head over mean keys [Hkv, D], averaged over the heads."""
    group, shares = len(q) // MODEL.kv_heads, np.zeros(len(keys))
    for head, query in enumerate(q.astype(np.float64)):
        scores = [query @ key[head // group] / MODEL.head_dim**0.5 for key in keys]
        weights = np.exp(np.array(scores))
        shares += weights / weights.sum() / len(q) if len(keys) else 0
    return shares
