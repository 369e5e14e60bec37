"""The parts of ReKV's memory against its rule in a few lines: which units are chosen, what is read
of them and at which positions; rings, leases and budgets."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.plain_rekv import nearest
from support.sizes import examples

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.memory.long_term.frame_recall import FrameRecallMemory, frame_recall_size
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.policies.long_term import FrameRecall

MODEL = toy_model(chunk_frames=4)  # chunks of two units, four tokens and so one page each
L, HKV, HQ, T, D = (
    MODEL.layers,
    MODEL.kv_heads,
    MODEL.query_heads,
    MODEL.page_tokens,
    MODEL.head_dim,
)


class Stream:
    """A memory that absorbs random chunks, and the same units kept plainly."""

    def __init__(self, seed=0, host_mb=0.1, **parameters):
        self.random = np.random.default_rng(seed)
        self.settings = FrameRecall(**parameters)
        self.memory = FrameRecallMemory(MODEL, self.settings, host_mb, np.float32)
        self.plain = []  # k, v, positions of every unit so far
        self.second = 0

    def absorb(self, lengths, pause=0):
        """A chunk of units of a second and two frames each, with so many tokens."""
        self.second += pause
        total = sum(lengths)
        k, v = self.random.normal(size=(2, L, total, HKV, D)).astype(np.float32)
        positions = self.random.integers(0, 9, (total, 3)).astype(np.int32)
        unit = np.repeat(np.arange(len(lengths)), lengths)
        positions[:, 0] = 10 + self.second + unit
        pages = tuple(
            Page(
                -1,
                "vision",
                length,
                0,
                len(self.plain) + i,
                Fraction(self.second + i),
                Fraction(2 * (self.second + i) + 1, 2),
            )
            for i, length in enumerate(lengths)
        )
        queries = np.zeros((L, 1, HQ, D), np.float32)
        self.memory.absorb(Departing(pages, unit, k, v, positions, queries))
        for i in range(len(lengths)):
            self.plain.append((k[:, unit == i], v[:, unit == i], positions[unit == i]))
        self.second += len(lengths)

    def query(self):
        return self.random.normal(size=(L, HQ, D)).astype(np.float32)

    def loaded(self, selection):
        """Keys, values and positions that a run reads in a layer and head."""
        pool = HostDevice(threads=False).pool(MODEL, 400, np.float32, by_head=True)
        table = Recall(pool, range(400)).load(self.memory.pool, selection)

        def seen(layer, head):
            slots = table[layer, head][table[layer, head] != NONE]
            there = pool.cell_positions[slots, layer, head, :, 0] != EMPTY
            data = pool.data[slots, layer, head]
            return (
                data[:, 0][there],
                data[:, 1][there],
                pool.cell_positions[slots, layer, head][there],
            )

        return seen


LENGTHS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=2), min_size=1, max_size=30)


@given(chunks=LENGTHS, top=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=examples(40))
def test_a_layer_reads_the_units_whose_mean_keys_are_nearest_in_all_its_heads(chunks, top, seed):
    stream = Stream(seed, top=top, positions="kept")
    for lengths in chunks:
        stream.absorb(lengths)
    memory, q = stream.memory, stream.query()
    held = range(memory.first, len(stream.plain))
    # as many of the newest as their pages fit in
    pages = [-(-len(stream.plain[unit][2]) // T) for unit in range(len(stream.plain))]
    assert sum(pages[memory.first :]) <= memory.pages.count
    if memory.first:
        assert (
            sum(pages[memory.first - 1 :]) > memory.pages.count or len(held) == memory.units.count
        )
    selection = memory.view().choose(q)
    seen = stream.loaded(selection)
    for layer in range(L):
        keys = [stream.plain[unit][0][layer] for unit in held]
        chosen = [memory.first + index for index in nearest(q[layer], keys, top)]
        assert selection.units[layer].tolist() == chosen
        for head in range(HKV):
            for side in range(2):
                expected = [stream.plain[unit][side][layer, :, head] for unit in chosen]
                np.testing.assert_array_equal(seen(layer, head)[side], np.concatenate(expected))
            places = np.concatenate([stream.plain[unit][2] for unit in chosen])
            np.testing.assert_array_equal(seen(layer, head)[2], places)
    read = {unit for layer in selection.units.tolist() for unit in layer}
    assert [page.unit for page in memory.view().pages(selection)] == sorted(read)


@given(
    chunks=LENGTHS,
    pauses=st.lists(st.integers(0, 50), min_size=30, max_size=30),
    top=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(40))
def test_what_is_read_stands_one_after_the_other_up_to_the_newest_unit(chunks, pauses, top, seed):
    stream = Stream(seed, top=top)
    for lengths, pause in zip(chunks, pauses, strict=False):
        stream.absorb(lengths, pause)
    selection = stream.memory.view().choose(stream.query())
    seen, newest = stream.loaded(selection), stream.plain[-1][2][0, 0]
    for layer in range(L):
        units = selection.units[layer].tolist()
        expected = []
        for i, unit in enumerate(units):
            places = stream.plain[unit][2].copy()
            places[:, 0] = newest - (len(units) - 1 - i)
            expected.append(places)
        for head in range(HKV):
            np.testing.assert_array_equal(seen(layer, head)[2], np.concatenate(expected))


@pytest.mark.parametrize(("rate", "step"), [(Fraction(2), 2), (Fraction(3, 2), None)])
def test_where_all_units_are_read_they_keep_their_positions(rate, step):
    """Also where a second is no whole number of positions."""
    model = toy_model(chunk_frames=4, tokens_per_second=float(rate))
    memory = FrameRecallMemory(model, FrameRecall(top=64), 1.0, np.float32)
    random, own = np.random.default_rng(0), []
    for second in range(0, 20, 2):
        k = random.normal(size=(L, 8, HKV, D)).astype(np.float32)
        positions = np.zeros((8, 3), np.int32)
        positions[:, 0] = 5 + np.repeat([int(rate * second), int(rate * (second + 1))], 4)
        pages = tuple(
            Page(-1, "vision", 4, 0, s, Fraction(s), Fraction(2 * s + 1, 2))
            for s in (second, second + 1)
        )
        unit, queries = np.repeat([0, 1], 4), np.zeros((L, 1, HQ, D), np.float32)
        memory.absorb(Departing(pages, unit, k, k, positions, queries))
        own += positions[[0, 4], 0].tolist()
    units = np.tile(np.arange(20), (L, 1))
    assert memory.view().times(units).tolist() == [own] * L
    assert step is None or memory.leads[1:20].tolist() == [step] * 19


def test_equal_scores_choose_the_earlier_units():
    stream = Stream(top=3)
    for _ in range(4):
        stream.absorb([1, 1])
    assert stream.memory.view().choose(np.zeros((L, HQ, D))).units.tolist() == [[0, 1, 2]] * L


def test_a_question_keeps_its_units_however_far_the_stream_goes():
    stream = Stream(top=4)
    for _ in range(40):
        stream.absorb([T, T])
    memory, q = stream.memory, stream.query()
    view = memory.view()
    chosen = view.choose(q)
    data, scores = memory.pool.data[chosen.cells[0, 0]].copy(), view.scores(q)
    first = memory.first
    stream.absorb([T, T])
    assert memory.first == first + 2
    further = threading.Thread(
        target=lambda: [stream.absorb([T, T]) for _ in range(40)], daemon=True
    )
    further.start()
    further.join(0.1)
    assert further.is_alive()  # it waits for the question
    np.testing.assert_array_equal(view.scores(q), scores)
    np.testing.assert_array_equal(memory.pool.data[chosen.cells[0, 0]], data)
    view.release()
    view.release()
    further.join(10)
    assert not further.is_alive()


def test_time_is_shifted_when_no_question_reads_and_never_below_the_floor():
    stream = Stream(top=4)
    for _ in range(10):
        stream.absorb([T, T])
    memory, q = stream.memory, stream.query()
    view, moved = memory.view(), threading.Event()
    before = view.times(view.choose(q).units)
    thread = threading.Thread(target=lambda: (memory.shift(15, 3), moved.set()), daemon=True)
    thread.start()
    assert not moved.wait(0.1)
    view.release()
    assert moved.wait(5)
    thread.join()
    view = memory.view(leased=False)
    # consecutive positions lose nothing by a shift until they reach the floor
    np.testing.assert_array_equal(view.times(view.choose(q).units), before - 15)
    assert (before - before[0, 0]).max() == 3
    memory.shift(100, 3)
    view = memory.view(leased=False)
    assert (view.times(view.choose(q).units) == 3).all()
    assert memory.pool.cell_positions[:20, ..., 0].min() == 3


def test_bytes_stay_within_the_budget_and_a_budget_too_small_names_one_that_works():
    for host_mb in (0.03, 0.2):
        memory = FrameRecallMemory(MODEL, FrameRecall(), host_mb, np.float32)
        arrays = memory.pool.data, memory.pool.cell_positions, memory.digests
        assert 0.8 * host_mb * 1e6 < sum(array.nbytes for array in arrays) <= host_mb * 1e6
    with pytest.raises(MemoryBudgetError, match=r"memory\.host_mb to at least") as caught:
        frame_recall_size(MODEL, FrameRecall(), 0.001, np.float32)
    smallest = float(str(caught.value).split()[-1])
    memory = FrameRecallMemory(MODEL, FrameRecall(), smallest, np.float32)
    assert min(memory.pages.count, memory.units.count) >= MODEL.chunk_frames // 2


def test_a_closed_memory_keeps_nobody_waiting():
    stream = Stream()
    for _ in range(40):
        stream.absorb([T, T])
    stream.memory.view()
    failed = threading.Event()

    def go_on():
        while True:
            try:
                stream.absorb([T, T])
            except RuntimeError:
                return failed.set()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    stream.memory.close()
    assert failed.wait(5)
    thread.join()


@given(
    chunks=LENGTHS,
    top=st.integers(1, 9),
    seed=st.integers(0, 99),
    since=st.none() | st.integers(0, 40),
    seconds=st.none() | st.integers(0, 20),
)
@settings(max_examples=examples(40))
def test_a_limited_view_chooses_among_the_units_of_its_range(chunks, top, seed, since, seconds):
    """Unit n lasts from n to n + 1/2 seconds. Nothing else is read, whatever is nearer."""
    stream = Stream(seed, top=top, positions="kept")
    for lengths in chunks:
        stream.absorb(lengths)
    memory, q = stream.memory, stream.query()
    until = None if seconds is None else (since or 0) + seconds
    within = TimeRange(*(None if each is None else Fraction(each) for each in (since, until)))
    held = [
        unit
        for unit in range(memory.first, len(stream.plain))
        if (since is None or unit + 0.5 >= since) and (until is None or unit <= until)
    ]
    view = memory.view(within=within)
    selection = view.choose(q)
    seen = stream.loaded(selection)
    assert view.count == len(held)
    for layer in range(L):
        keys = [stream.plain[unit][0][layer] for unit in held]
        chosen = [held[index] for index in nearest(q[layer], keys, top)] if held else []
        assert selection.units[layer].tolist() == chosen
        expected = [stream.plain[unit][1][layer] for unit in chosen]
        for head in range(HKV):
            values = [each[:, head] for each in expected]
            read = np.concatenate(values) if values else np.empty((0, D))
            np.testing.assert_array_equal(seen(layer, head)[1], read)
    assert {page.unit for page in view.pages(selection)} <= set(held)
    view.release()
    assert not memory.units._leased
    assert not memory.pages._leased
