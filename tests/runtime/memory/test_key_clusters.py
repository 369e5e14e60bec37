"""ReSV's memory against a plain statement of its rules."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.key_clusters import PlainMemory, clusters_of, groups_of, read
from support.sizes import examples

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.memory.long_term.key_clusters import KeyClusterMemory, bytes_of_slot
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.long_term.wicsum import wicsum
from vicort.runtime.policies.long_term import KeyClusters

# 2 layers, 2 KV heads of 8, 2 units of 4 tokens a chunk, cells of 4
MODEL = toy_model(chunk_frames=4)
GROUPS = groups_of(MODEL)
FINE = {
    "hash_bits": 24,
    "threshold": 4,
    "recent": 5,
    "most_tokens": 9,
    "share": 0.6,
    "most_cells": 1000,
}


def policy(**changes):
    return KeyClusters(**(FINE | changes))


def memory(cells=200, model=MODEL, **changes):
    return KeyClusterMemory(
        model, cells * bytes_of_slot(model, np.float32) / 1e6, np.float32, policy(**changes)
    )


def chunk(index, seed=0, kinds=6, spread=0.3, tokens=(4, 4), first=None, model=MODEL):
    """A chunk with keys around a few directions; its values and positions are its tokens' numbers,
    from `first` on."""
    random = np.random.default_rng((seed, index))
    count, first = sum(tokens), 8 * index if first is None else first
    directions = np.random.default_rng(seed).normal(
        size=(model.layers, kinds, model.kv_heads, model.head_dim)
    )
    k = directions[:, random.integers(0, kinds, count)] + spread * random.normal(
        size=(model.layers, count, model.kv_heads, model.head_dim)
    )
    v = np.broadcast_to(
        np.arange(first, first + count, dtype=np.float32)[None, :, None, None], k.shape
    )
    at = np.stack([np.arange(first, first + count)] * 3, axis=1).astype(np.int32)
    times = [Fraction(2 * index + u) for u in range(len(tokens))]
    pages = tuple(
        Page(-1, "vision", n, index, int(at), at, at) for at, n in zip(times, tokens, strict=True)
    )
    return Departing(
        pages,
        np.repeat(np.arange(len(tokens)), tokens),
        k.astype(np.float32),
        v.astype(np.float32),
        at,
        np.empty(0),
    )


def queries(seed, model=MODEL, size=2.0):
    return (
        size
        * np.random.default_rng(seed).normal(size=(model.layers, model.query_heads, model.head_dim))
    ).astype(np.float32)


@settings(max_examples=examples(25))
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([12, 40, 300]),
)
def test_clusters_and_choices_are_those_of_the_plain_statement(seed, chunks, spread, cells):
    held = memory(cells)
    plain = PlainMemory(held)
    first = 0
    for index in range(chunks):
        departing = chunk(
            index, seed, spread=spread, tokens=(4, 4) if (seed + index) % 3 else (1, 3), first=first
        )
        first += len(departing.unit)
        held.absorb(departing)
        plain.absorb(departing)
    for number, group in enumerate(plain.groups.values()):
        found = clusters_of(held, number)
        assert [serials for serials, _ in found] == [
            [serial for serial, _ in cluster] for cluster in group.clusters
        ]
        for (_, mean), cluster in zip(found, group.clusters, strict=True):
            np.testing.assert_allclose(
                mean, np.mean([key for _, key in cluster], axis=0), atol=1e-5
            )
    q = queries(seed)
    wanted = {name: sorted(serials) for name, serials in plain.choose(q).items()}
    assert {
        name: sorted(tokens) for name, tokens in read(held, held.view().choose(q)).items()
    } == wanted


def exp_weights(scores, tokens):
    return np.where(tokens > 0, tokens * np.exp(scores - scores.max()), 0)


scored = st.integers(1, 30).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(-40, 40, width=32), min_size=count, max_size=count),
        st.lists(st.integers(0, 9), min_size=count, max_size=count),
    )
)


@given(st.lists(scored, min_size=1, max_size=3), st.sampled_from([0.01, 0.3, 0.8, 0.99]))
def test_wicsum_takes_the_fewest_by_score_whose_weight_is_above_the_share(rows, share):
    width = max(len(scores) for scores, _ in rows)
    scores = np.array([[*s, *[50.0] * (width - len(s))] for s, _ in rows])
    tokens = np.array([[*t, *[0] * (width - len(t))] for _, t in rows])
    for chosen, s, t in zip(wicsum(scores, tokens, share), scores, tokens, strict=True):
        assert not (chosen & (t == 0)).any()
        if not t.any():
            assert not chosen.any()
            continue
        weights = exp_weights(np.where(t > 0, s, -np.inf), t)
        assert chosen.any()
        assert weights[chosen].sum() > share * weights.sum() * (1 - 1e-6)
        assert s[chosen].min() >= s[~chosen & (t > 0)].max(initial=-np.inf)
        # of equals the last: without it, too little
        lowest = np.flatnonzero(chosen & (s == s[chosen].min()))[-1]
        assert weights[chosen].sum() - weights[lowest] <= share * weights.sum() * (1 + 1e-6)


def test_wicsum_takes_all_for_the_whole_share_and_few_where_one_stands_out():
    scores, tokens = (
        np.array([[9.0, 0, 0, 0], [1, 1, 1, 1]]),
        np.array([[2, 5, 5, 5], [1, 1, 1, 1]]),
    )
    assert wicsum(scores, tokens, 1.0).all()
    assert wicsum(scores, tokens, 0.9).sum(axis=1).tolist() == [1, 4]
    # the sum of two is not above it
    assert wicsum(scores, tokens, 0.5).tolist()[1] == [True, True, True, False]


@settings(max_examples=examples(20))
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 30))
def test_every_token_is_in_one_cluster_and_memory_keeps_its_bounds(seed, chunks, most_cells):
    held = memory(80, share=1.0, most_cells=most_cells)
    for index in range(chunks):
        held.absorb(chunk(index, seed))
    assert held.cells_in_use() <= held.capacity <= 80
    for group in range(len(GROUPS)):
        serials = [serial for found, _ in clusters_of(held, group) for serial in found]
        assert len(serials) == len(set(serials)) == held._tokens[group].sum()
        if 8 * chunks <= held.capacity // 2:
            assert sorted(serials) == list(range(8 * chunks))
    selection = held.view().choose(queries(seed))
    assert selection.cells.shape[2] == min(int(held._cells.live.max()), most_cells)
    assert held.capped == (held._cells.live > most_cells).sum()
    read(held, selection)


def test_of_too_many_cells_those_with_the_largest_share_stay():
    q = queries(3)
    held, capped = memory(), memory(most_cells=4)
    for index in range(20):
        held.absorb(chunk(index))
        capped.absorb(chunk(index))
    everything, few = read(held, held.view().choose(q)), read(capped, capped.view().choose(q))
    for number, (layer, head) in enumerate(GROUPS):
        assert set(few[layer, head]) < set(everything[layer, head])
        mean = {serial: key for serials, key in clusters_of(held, number) for serial in serials}
        heads = q[layer, 2 * head : 2 * head + 2]

        def share(serial, mean=mean, heads=heads):
            weights = [np.exp(heads @ mean[other] / 8**0.5) for other in sorted(mean)]
            return (np.exp(heads @ mean[serial] / 8**0.5) / np.sum(weights, axis=0)).max()

        left_out = set(everything[layer, head]) - set(few[layer, head])
        assert max(map(share, left_out)) <= min(map(share, few[layer, head])) * (1 + 1e-4)


def test_heads_and_questions_differ_in_how_much_they_read():
    held = memory()
    for index in range(20):
        held.absorb(chunk(index))
    counts = [
        np.count_nonzero(held.view().choose(queries(seed)).filled, axis=2).ravel()
        for seed in range(8)
    ]
    assert len(set(counts[0].tolist())) > 1
    assert len({int(count.sum()) for count in counts}) > 1


@pytest.mark.parametrize("cells", [30, 400])
def test_a_view_stays_what_it_was_whatever_the_stream_does(cells):
    held, q = memory(cells), queries(1)
    for index in range(12):
        held.absorb(chunk(index))
    view = held.view()
    selection = view.choose(q)
    before, pages = read(held, selection), view.pages(selection)
    index = 12
    while cells == 400 and index < 40:
        held.absorb(chunk(index))
        index += 1
    if cells == 30:  # the spare cells are soon used up: the stream waits
        more = threading.Thread(
            target=lambda: [held.absorb(chunk(index)) for index in range(12, 80)]
        )
        more.start()
        more.join(0.3)
        assert more.is_alive()
    again = view.choose(q)
    np.testing.assert_array_equal(again.cells, selection.cells)
    assert read(held, again) == before
    assert view.pages(again) == pages
    view.release()
    view.release()
    if cells == 30:
        more.join(10)
        assert not more.is_alive()
        assert read(held, held.view().choose(q)) != before


def test_pages_are_the_units_of_what_any_layer_or_head_reads():
    held = memory(60)
    for index in range(30):
        held.absorb(chunk(index))
    view = held.view()
    selection = view.choose(queries(5))
    serials = sorted({serial for tokens in read(held, selection).values() for serial in tokens})
    assert [page.unit for page in view.pages(selection)] == sorted(
        {serial // 4 for serial in serials}
    )
    left = min(
        serial
        for group in range(len(GROUPS))
        for found, _ in clusters_of(held, group)
        for serial in found
    )
    assert held.oldest == left // 4 > 0
    assert memory().oldest is None


def test_positions_move_once_no_question_reads():
    held = memory()
    held.absorb(chunk(0))
    held.absorb(chunk(1))
    view, moved = held.view(), threading.Event()
    thread = threading.Thread(target=lambda: (held.shift(5, 2), moved.set()))
    thread.start()
    assert not moved.wait(0.1)
    view.release()
    thread.join(5)
    assert moved.is_set()
    there = held.pool.cell_positions[held.pool.cell_positions[..., 0] >= 0]
    assert sorted(set(map(tuple, there.tolist()))) == sorted(
        {(max(i - 5, 2), max(i, 2), max(i, 2)) for i in range(16)}
    )


def test_all_that_is_allocated_is_within_the_budget():
    held = memory(500)
    arrays = [
        held.pool.data,
        held.pool.cell_positions,
        held._serials,
        held._means,
        held._tokens,
        held._newest,
        held._last_cells,
        held._clusters,
    ]
    arrays += [held._cells._owner, held._cells._ordinal, held._cells._next, held._cells._free]
    assert sum(array.nbytes for array in arrays) == 500 * bytes_of_slot(MODEL, np.float32)
    with pytest.raises(MemoryBudgetError, match=r"at least 0\.0") as refused:
        memory(5)
    least = float(str(refused.value).split()[-1])
    KeyClusterMemory(MODEL, least, np.float32, policy())


def test_a_memory_of_a_thousand_chunks_holds_and_lists_no_more():
    held = memory(100, recent=3)
    for index in range(1000):
        held.absorb(chunk(index % 50, first=8 * index))
    assert held.cells_in_use() <= held.capacity
    assert len(held._pages) < 400
    assert held._cells.used <= 100
    view = held.view()
    assert min(page.unit for page in view.pages(view.choose(queries(0)))) > 0


@settings(max_examples=examples(25))
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([12, 40, 300]),
    st.none() | st.integers(0, 50),
    st.none() | st.integers(0, 12),
)
def test_a_limited_view_reads_tokens_of_its_range_alone(
    seed, chunks, spread, cells, since, seconds
):
    """A cluster weighs as many tokens as it has there. Unit n is at n seconds, and has tokens 4 n
    to 4 n + 3, named by their numbers."""
    held = memory(cells)
    plain = PlainMemory(held)
    for index in range(chunks):
        held.absorb(chunk(index, seed, spread=spread))
        plain.absorb(chunk(index, seed, spread=spread))
    until = None if seconds is None else (since or 0) + seconds
    within = TimeRange(*(None if each is None else Fraction(each) for each in (since, until)))
    first = 0 if since is None else 4 * since
    end = 8 * chunks if until is None else 4 * until + 4
    for group in plain.groups.values():
        group.counted = range(first, end)
    q, view = queries(seed), held.view(within=within)
    selection = view.choose(q)
    wanted = {name: sorted(serials) for name, serials in plain.choose(q).items()}
    assert {name: sorted(tokens) for name, tokens in read(held, selection).items()} == wanted
    assert selection.tokens == round(float(np.mean([len(each) for each in wanted.values()])))
    units = {serial // 4 for each in wanted.values() for serial in each}
    assert [page.unit for page in view.pages(selection)] == sorted(units)
    view.release()


def test_a_limited_view_stays_what_it_was_while_the_stream_goes_on():
    """Also where later chunks overlap its range."""
    held, q = memory(60), queries(3)
    for index in range(4):
        held.absorb(chunk(index))
    view = held.view(within=TimeRange(Fraction(2), Fraction(100)))
    held.absorb(chunk(4))
    for tokens in read(held, view.choose(q)).values():  # unit 8 came later, with token 32
        assert all(8 <= token < 32 for token in tokens)
    view.release()
