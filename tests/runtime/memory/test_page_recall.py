"""The parts of FreeKV's memory: boxes, scores, the ring, the recall over two streams, and what
readers choose, against a plain statement."""

import itertools
import threading
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.plain_freekv import (
    PlainChunks,
    PlainQuestion,
    box,
    choose,
    cosine,
    group_of_scores,
)
from support.sizes import examples

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.devices.trace import Trace
from vicort.runtime.memory.long_term.page_digest import (
    boxes,
    page_scores,
    query_similarity,
    top_pages,
)
from vicort.runtime.memory.long_term.page_recall import PageRecallMemory
from vicort.runtime.memory.long_term.page_ring import PageRing
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.long_term.recall_streams import Move, RecallStreams
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.long_term.speculative import Speculation
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.policies.long_term import GroupScores

MODEL = toy_model(chunk_frames=4)  # chunks of two units, four tokens and so one page each
L, HKV, HQ, T, D = (
    MODEL.layers,
    MODEL.kv_heads,
    MODEL.query_heads,
    MODEL.page_tokens,
    MODEL.head_dim,
)
DIGESTS = ("mean-radius", "min-max")
SCORES = get_args(GroupScores)


# ---- boxes and scores


@pytest.mark.parametrize("digest", DIGESTS)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=examples(25))
def test_a_box_is_what_the_paper_and_the_code_say(digest, lengths, seed):
    k = np.random.default_rng(seed).normal(size=(L, sum(lengths), HKV, D)).astype(np.float32)
    centre, radius = np.split(
        boxes(k, np.repeat(np.arange(len(lengths)), lengths), digest), 2, axis=-1
    )
    ends = np.cumsum(lengths)
    for page, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        for layer in range(L):
            for head in range(HKV):
                low, high = box(k[layer, start:end, head], digest)
                at = layer, head, page
                np.testing.assert_allclose(
                    (centre[at] - radius[at], centre[at] + radius[at]), (low, high), atol=1e-6
                )


@given(st.integers(0, 99))
@settings(max_examples=examples(20))
def test_no_key_of_a_page_scores_higher_than_its_min_max_bound(seed):
    random = np.random.default_rng(seed)
    k = random.normal(size=(1, 12, 1, D)).astype(np.float32)
    q = random.normal(size=(1, 1, D)).astype(np.float32)
    page = np.repeat(np.arange(3), 4)
    centre, radius = np.split(boxes(k, page, "min-max")[0, 0], 2, axis=-1)
    bound = centre @ q[0, 0] + radius @ abs(q[0, 0])
    assert (k[0, :, 0] @ q[0, 0] <= bound[page] + 1e-5).all()


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("scores", SCORES)
@given(
    pages=st.integers(1, 12), budget=st.integers(1, 8), seed=st.integers(0, 99), cut=st.floats(0, 1)
)
@settings(max_examples=examples(15))
def test_the_pages_chosen_are_those_of_the_plain_statement(
    scores, digest, pages, budget, seed, cut
):
    random = np.random.default_rng(seed)
    q = random.normal(size=(L, HQ, D)).astype(np.float32)
    keys = [random.normal(size=(L, T, HKV, D)).astype(np.float32) for _ in range(pages)]
    all_boxes = boxes(np.concatenate(keys, axis=1), np.repeat(np.arange(pages), T), digest)
    # as in a ring that has come round
    parts = [all_boxes[:, :, : int(cut * pages)], all_boxes[:, :, int(cut * pages) :]]
    found = page_scores(q, parts, scores)
    for layer, head in np.ndindex(L, HKV):
        group = q[layer].reshape(HKV, -1, D)[head]
        expected = group_of_scores(group, [page[layer, :, head] for page in keys], digest, scores)
        np.testing.assert_allclose(found[layer, head], expected, rtol=1e-4, atol=1e-5)
    if scores.startswith("mean") and scores.endswith("softmax"):
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    assert top_pages(found, budget).tolist() == choose(q, keys, budget, digest, scores)


def test_the_ways_to_score_a_group_differ():
    """Else names would be tested that do the same."""
    random = np.random.default_rng(1)
    q = random.normal(size=(L, HQ, D)).astype(np.float32)
    keys = random.normal(size=(L, 40 * T, HKV, D)).astype(np.float32)
    found = [boxes(keys, np.repeat(np.arange(40), T), "min-max")]
    chosen = {name: top_pages(page_scores(q, found, name), 8).tolist() for name in SCORES}
    assert all(chosen[a] != chosen[b] for a, b in itertools.combinations(SCORES, 2))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5]), max_size=12), st.integers(0, 14))
@settings(deadline=None)
def test_of_pages_that_score_alike_the_earlier_are_chosen(scores, count):
    best = sorted(range(len(scores)), key=lambda page: (-scores[page], page))[:count]
    assert top_pages(np.array([[scores]], np.float32), count).tolist() == [[sorted(best)]]


@pytest.mark.parametrize("similarity", ["mean", "max"])
def test_similarity_is_the_mean_or_largest_cosine_of_a_group(similarity):
    random = np.random.default_rng(0)
    q, other = random.normal(size=(2, L, HQ, D))
    found = query_similarity(q, other, HKV, similarity)
    np.testing.assert_allclose(found, cosine(q, other, HKV, similarity), atol=1e-12)
    np.testing.assert_allclose(query_similarity(q, 3 * q, HKV, similarity), np.ones((L, HKV)))
    assert query_similarity(q, 0 * q, HKV, similarity).tolist() == [[0.0] * HKV] * L


# ---- the ring


@given(st.integers(3, 7), st.integers(0, 3), st.lists(st.integers(1, 3), max_size=12))
@settings(deadline=None)
def test_a_ring_holds_the_newest_pages_each_in_a_slot_of_its_own(count, spare, grown):
    ring, content = PageRing(count, spare), {}
    for pages in grown:
        for number in ring.grow(pages).tolist():
            content[ring.slot(np.array(number)).item()] = number
    assert ring.last == sum(grown)
    assert ring.first == max(0, ring.last - count)
    slots = [slot for span in ring.spans(ring.first, ring.last) for slot in range(ring.slots)[span]]
    assert [content[slot] for slot in slots] == list(range(ring.first, ring.last))


def test_a_ring_waits_for_the_lease_on_what_it_would_overwrite_and_for_no_other():
    ring = PageRing(4, spare=2)
    ring.grow(4)
    ring.lease(ring.first)
    ring.grow(2)  # the spare slots
    assert ring.first == 2  # evicted, but not overwritten
    grown = threading.Event()
    thread = threading.Thread(target=lambda: (ring.grow(1), grown.set()), daemon=True)
    thread.start()
    assert not grown.wait(0.1)
    ring.lease(ring.first)
    ring.release(0)
    assert grown.wait(5)
    thread.join()
    ring.release(2)
    ring.wait_unleased()


def test_a_closed_ring_keeps_nobody_waiting():
    ring = PageRing(1, spare=0)
    ring.grow(1)
    ring.lease(0)
    failed = threading.Event()

    def grow():
        with pytest.raises(RuntimeError, match="closed"):
            ring.grow(1)
        failed.set()

    thread = threading.Thread(target=grow, daemon=True)
    thread.start()
    ring.close()
    assert failed.wait(5)
    thread.join()


# ---- recall


def pools(device, *pages, by_head=True):
    random = np.random.default_rng(0)
    made = [device.pool(MODEL, count, np.float32, by_head) for count in pages]
    for pool in made:
        pool.data[:] = random.normal(size=pool.data.shape)
        pool.cell_positions[:] = random.integers(0, 99, pool.cell_positions.shape)
    return made


@pytest.mark.parametrize("threads", [True, False])
@given(seed=st.integers(0, 99))
@settings(max_examples=examples(15))
def test_recalled_cells_are_what_lay_there_and_nothing_else_changes(threads, seed):
    device, random = HostDevice(threads), np.random.default_rng(seed)
    source, target = pools(device, 9, 7)
    streams = RecallStreams(device, MODEL, np.float32, 5, StageClock(None), urgent=False)
    moves = [
        Move(layer, head, random.integers(0, 9, n), random.permutation(7)[:n])
        for layer, head, n in (
            (layer, head, int(random.integers(0, 6))) for layer in range(L) for head in range(HKV)
        )
    ]
    data, where = target.data.copy(), target.cell_positions.copy()
    for move in moves:
        for from_slot, to_slot in zip(move.source_slots, move.target_slots, strict=True):
            from_cell = from_slot, move.layer, move.head
            to_cell = to_slot, move.layer, move.head
            data[to_cell] = source.data[from_cell]
            where[to_cell] = source.cell_positions[from_cell]
    streams.run(streams.move_in_stream, source, target, moves).done()
    np.testing.assert_array_equal(target.data, data)
    np.testing.assert_array_equal(target.cell_positions, where)
    device.close()


class Meeting:
    """A pool's array where the scatter of a head and the copy of the next wait for each other."""

    def __init__(self, array, meetings):
        self.array, self.meetings = array, meetings

    def __getitem__(self, key):
        if key[1:] != (0, 0):
            self.meetings[key[1:]].wait(5)
        return self.array[key]

    def __setitem__(self, key, value):
        layer, head = key[1:]
        following = (layer, head + 1) if head + 1 < HKV else (layer + 1, 0)
        if following in self.meetings:
            self.meetings[following].wait(5)
        self.array[key] = value


def test_cells_of_one_head_are_copied_while_those_of_the_head_before_are_scattered():
    device, trace = HostDevice(), Trace()
    source, target = pools(device, 9, 7)
    pairs = [(layer, head) for layer in range(L) for head in range(HKV)]
    meetings = {pair: threading.Barrier(2) for pair in pairs}
    source.data, target.data = Meeting(source.data, meetings), Meeting(target.data, meetings)
    streams = RecallStreams(device, MODEL, np.float32, 4, StageClock(trace), urgent=False)
    streams.run(
        streams.move_in_stream,
        source,
        target,
        [Move(*pair, np.arange(4), np.arange(4)) for pair in pairs],
    ).done()
    np.testing.assert_array_equal(target.data.array[:4], source.data.array[:4])
    spans = {
        (span.track.split()[1], span.args["layer"], span.args["head"]): span
        for span in trace._spans
    }
    for before, after in itertools.pairwise(pairs):
        scatter, copy = spans["scatter", *before], spans["copy", *after]
        assert max(scatter.start, copy.start) < min(scatter.end, copy.end)
    device.close()


# ---- memory and its readers


class Bench:
    """A memory of FreeKV with what its readers need, and the same pages kept plainly."""

    def __init__(
        self,
        slots=12,
        spare=2,
        budget=3,
        seed=0,
        threads=True,
        tau=(0.8, 0.8),
        lookahead=2,
        digest="mean-radius",
        scores="mean-scaled-softmax",
        similarity="mean",
    ):
        self.device = HostDevice(threads)
        self.random = np.random.default_rng(seed)
        self.budget = budget
        host, self.pool = (
            self.device.pool(MODEL, slots, np.float32, True),
            self.device.pool(MODEL, 4 * budget, np.float32, True),
        )
        clock = StageClock(None)
        of_questions, of_chunks = (
            RecallStreams(self.device, MODEL, np.float32, budget, clock, urgent)
            for urgent in (True, False)
        )
        speculation = Speculation(*tau, lookahead, similarity)
        self.memory = PageRecallMemory(
            MODEL, host, spare, budget, digest, scores, speculation, of_questions, of_chunks
        )
        self.plain = {}  # number of a page -> keys [L, T, Hkv, D]
        self.host_positions = {}  # -> positions [T, 3]
        self.number = 0
        self.keep = slots - spare

    def leave(self, units=1, tokens=T):
        """A chunk of `units` units leaves the window."""
        k, v = self.random.normal(size=(2, L, units * tokens, HKV, D)).astype(np.float32)
        positions = self.random.integers(0, 50, (units * tokens, 3)).astype(np.int32)
        templates = tuple(
            Page(
                -1,
                "vision",
                tokens,
                0,
                self.number + u,
                Fraction(self.number + u),
                Fraction(self.number + u + 1),
            )
            for u in range(units)
        )
        unit = np.repeat(np.arange(units), tokens)
        self.memory.absorb(
            Departing(templates, unit, k, v, positions, np.zeros((L, 1, HQ, D), np.float32))
        )
        for u in range(units):
            self.plain[self.number] = k[:, unit == u]
            self.host_positions[self.number] = positions[unit == u]
            self.number += 1
        for evicted in list(self.plain)[: -self.keep]:
            del self.plain[evicted]

    def recalls(self, of_stream=False):
        first = 2 * self.budget if of_stream else 0
        return [
            Recall(self.pool, range(first + side * self.budget, first + (side + 1) * self.budget))
            for side in range(2)
        ]

    def query(self):
        return self.random.normal(size=(L, HQ, D)).astype(np.float32)

    def near(self, q, scale):
        return (q + scale * self.query()).astype(np.float32)

    def keys_read(self, table):
        """Keys that a run over the table sees, [L][Hkv] [n, D]."""

        def seen(layer, head):
            slots = table[layer, head][table[layer, head] != NONE]
            there = self.pool.cell_positions[slots, layer, head][..., 0] != EMPTY
            return self.pool.data[slots, layer, head, 0][there]

        return [[seen(layer, head) for head in range(HKV)] for layer in range(L)]

    def assert_reads(self, table, plain, pages=None):
        pages = self.plain if pages is None else pages
        for layer, heads in enumerate(self.keys_read(table)):
            for head, keys in enumerate(heads):
                _, numbers = plain.reads.get((layer, head), (None, []))
                expected = [pages[number][layer, :, head] for number in numbers]
                np.testing.assert_array_equal(
                    keys, np.concatenate(expected) if expected else np.empty((0, D))
                )

    def close(self):
        self.device.close()


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize(
    ("lookahead", "digest", "tau", "scores", "similarity"),
    [
        (2, "mean-radius", 0.8, "mean-scaled-softmax", "mean"),
        (2, "min-max", None, "mean-score", "mean"),
        (1, "mean-radius", 0.95, "mean-scaled-softmax", "mean"),
        (1, "min-max", 0.9, "mean-softmax", "max"),
    ],
)
def test_a_question_reads_what_the_plain_statement_says_it_reads_at_every_step(
    threads, lookahead, digest, tau, scores, similarity
):
    for seed in range(4):
        bench = Bench(22, 2, 3, seed, threads, (0.8, tau), lookahead, digest, scores, similarity)
        for _ in range(8):
            bench.leave()
        view, held = bench.memory.view(), dict(bench.plain)
        reader = bench.memory.reader(view, bench.recalls())
        rule = lookahead, digest, scores, similarity
        plain = PlainQuestion(HKV, L, bench.budget, 0.8, tau, *rule)
        q, again, seen = bench.query(), [], set()
        for step in range(12):
            while True:
                bench.assert_reads(reader.table, plain, held)
                seen |= {number for _, numbers in plain.reads.values() for number in numbers}
                rerun = reader.must_rerun(q, prefill=step == 0)
                assert rerun == plain.must_rerun(q, held, prefill=step == 0)
                if not rerun:
                    break
                again.append(step)
                q = bench.near(q, 0.05)
            q = bench.near(q, [0.1, 0.5, 1.5][step % 3])
            bench.leave()  # the stream goes on, into the ring's free slots
        assert reader.reruns == plain.reruns == len(again)
        assert again[0] == 0
        assert {page.unit for page in reader.pages()} == seen
        reader.release()
        bench.close()


@pytest.mark.parametrize("lookahead", [1, 2])
def test_which_queries_chose_what_a_token_reads(lookahead):
    """Run 0 is the question, twice. With a lookahead of 2 the first token reads what the first of
    its runs chose, the next what the second chose, and from then on a token reads what the queries
    of the token two before it chose. With 1, each reads what the run before it chose."""
    bench = Bench(tau=(None, None), lookahead=lookahead)
    for _ in range(9):
        bench.leave()
    reader = bench.memory.reader(bench.memory.view(), bench.recalls())
    queries, read = [bench.query() for _ in range(6)], []
    assert reader.table.shape[-1] == 0
    assert reader.must_rerun(queries[0], prefill=True)
    assert not reader.must_rerun(queries[1], prefill=True)
    for q in queries[2:]:
        read.append(reader.selection.pages.tolist())
        assert not reader.must_rerun(q, prefill=False)
    chose = queries[2 - lookahead :][:4]
    assert read == [choose(q, list(bench.plain.values()), bench.budget) for q in chose]
    reader.release()
    bench.close()


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize(("lookahead", "tau"), [(2, 0.8), (2, None), (1, 0.9)])
def test_chunks_read_what_the_chunk_before_chose_from_all_that_had_left(threads, lookahead, tau):
    for seed in range(3):
        bench = Bench(seed=seed, threads=threads, tau=(tau, 0.8), lookahead=lookahead)
        reader = bench.memory.stream_reader(
            bench.memory.view(leased=False), bench.recalls(of_stream=True)
        )
        plain, q = PlainChunks(HKV, L, bench.budget, tau, 0.8, lookahead), bench.query()
        for chunk in range(25):
            while True:
                bench.assert_reads(reader.table, plain)
                rerun = reader.must_rerun(q, prefill=True)
                assert rerun == plain.must_rerun(q, bench.plain)
                if not rerun:
                    break
            q = bench.query() if chunk % 3 else bench.near(q, 0.1)
            if chunk > 2:
                bench.leave(units=1 + chunk % 2)
            reader.renew(bench.memory.view(leased=False))
            plain.renew(bench.plain)
        assert reader.reruns == plain.reruns
        assert bool(reader.reruns) == (tau is not None)
        bench.close()


def test_a_corrected_head_chooses_anew_and_the_others_keep_their_pages():
    bench = Bench(budget=2)
    for _ in range(9):
        bench.leave()
    reader = bench.memory.reader(bench.memory.view(), bench.recalls())
    q = bench.query()
    reader.must_rerun(q, prefill=True)
    reader.must_rerun(q, prefill=True)
    before = reader.selection.pages
    turned = q.copy()
    turned[1, 2:] *= -1  # both query heads of KV head 1, in layer 1
    assert reader.must_rerun(turned, prefill=False)
    after = reader.selection.pages
    assert (
        after[1, 1].tolist()
        == choose(turned, list(bench.plain.values()), 2)[1][1]
        != before[1, 1].tolist()
    )
    after[1, 1] = before[1, 1]
    assert after.tolist() == before.tolist()
    reader.release()
    bench.close()


def test_pages_that_lie_on_the_device_are_not_moved_again():
    bench = Bench(tau=(None, None))
    for _ in range(9):
        bench.leave()
    reader = bench.memory.reader(bench.memory.view(), bench.recalls())
    q, cell = bench.query(), bench.pool.data[0, 0, 0].nbytes
    for step in range(5):
        reader.must_rerun(q, prefill=step == 0)
    reader.release()
    assert reader.bytes_moved == 2 * L * HKV * bench.budget * cell  # each of the two sets once
    bench.close()


def test_a_question_keeps_its_pages_however_far_the_stream_goes():
    bench = Bench(slots=8, spare=2)
    for _ in range(6):
        bench.leave()
    view, held, q = bench.memory.view(), dict(bench.plain), bench.query()
    chosen = view.choose(q)
    boxes_then = bench.memory.boxes[:, :, chosen.cells[0, 0]].copy()
    data_then = bench.memory.pool.data[chosen.cells[0, 0]].copy()
    for _ in range(2):
        bench.leave()
    assert bench.memory.oldest == 2  # evicted, but still there for the question
    further = threading.Thread(target=lambda: [bench.leave() for _ in range(20)], daemon=True)
    further.start()
    further.join(0.1)
    assert further.is_alive()  # it waits for the question
    assert (
        view.choose(q).pages.tolist()
        == chosen.pages.tolist()
        == choose(q, list(held.values()), bench.budget)
    )
    np.testing.assert_array_equal(bench.memory.boxes[:, :, chosen.cells[0, 0]], boxes_then)
    np.testing.assert_array_equal(bench.memory.pool.data[chosen.cells[0, 0]], data_then)
    view.release()
    further.join(10)
    assert not further.is_alive()
    bench.close()


def streaming(bench):
    """A reader of chunks whose two sets of cells have both been read."""
    reader = bench.memory.stream_reader(
        bench.memory.view(leased=False), bench.recalls(of_stream=True)
    )
    reader.must_rerun(bench.query(), prefill=True)
    for _ in range(2):
        reader.renew(bench.memory.view(leased=False))
        assert reader.table.size
    return reader


def test_time_is_moved_on_the_device_too():
    bench = Bench(tau=(None, None))
    for _ in range(9):
        bench.leave()
    reader = streaming(bench)
    table, numbers = reader.table, reader.selection.pages
    places = bench.pool.cell_positions[table[0, 0], 0, 0].copy()
    np.testing.assert_array_equal(
        places, [bench.host_positions[number] for number in numbers[0, 0].tolist()]
    )
    bench.memory.shift(5, 3)
    reader.renew(bench.memory.view(leased=False))
    table = reader.table
    assert reader.selection.pages.tolist() == numbers.tolist()
    np.testing.assert_array_equal(
        bench.pool.cell_positions[table[0, 0], 0, 0], np.maximum(places - [5, 0, 0], 3)
    )
    bench.close()


@pytest.mark.parametrize("who", ["question", "recall"])
def test_time_is_not_moved_under_a_question_nor_under_a_recall(who, monkeypatch):
    bench, may_scatter = Bench(tau=(None, None)), threading.Event()
    scatter = RecallStreams._scatter_in_stream
    for _ in range(9):
        bench.leave()
    if who == "question":
        view = bench.memory.view()
    else:
        monkeypatch.setattr(
            RecallStreams,
            "_scatter_in_stream",
            lambda *args: (may_scatter.wait(5), scatter(*args)),
        )
        reader = bench.memory.stream_reader(
            bench.memory.view(leased=False), bench.recalls(of_stream=True)
        )
        reader.must_rerun(bench.query(), prefill=True)
        reader.renew(bench.memory.view(leased=False))
    before, moved = bench.memory.pool.cell_positions.copy(), threading.Event()
    thread = threading.Thread(target=lambda: (bench.memory.shift(5, 0), moved.set()), daemon=True)
    thread.start()
    assert not moved.wait(0.1)
    np.testing.assert_array_equal(bench.memory.pool.cell_positions, before)
    view.release() if who == "question" else may_scatter.set()
    assert moved.wait(5)
    thread.join()
    bench.close()


def test_tokens_of_a_unit_fill_pages_of_their_own():
    bench = Bench(budget=9, tau=(None, None))
    bench.leave(units=2, tokens=T + 1)  # two pages a unit: four tokens and one
    view = bench.memory.view()
    selection = view.choose(bench.query())
    assert selection.pages.tolist() == [[[0, 1, 2, 3]] * HKV] * L
    assert selection.filled[0, 0].tolist() == [4, 1, 4, 1]
    assert [page.unit for page in view.pages(selection)] == [0, 1]
    assert bench.memory.cells_in_use() == 4
    assert bench.memory.oldest == 0
    view.release()
    bench.close()


@pytest.mark.parametrize(("since", "until"), [(3, 5), (6, None), (None, 2), (2.5, 2.75), (90, 99)])
def test_a_limited_question_reads_pages_of_its_range_alone(since, until):
    """At every step of its answer, as the plain statement does of these pages alone; page n lasts
    from second n to n + 1."""
    rule = 2, "mean-radius", "mean-scaled-softmax", "mean"
    bench = Bench(22, 2, 3, 5, False, (0.8, 0.8), *rule)
    for _ in range(9):
        bench.leave()
    within = TimeRange(*(None if each is None else Fraction(each) for each in (since, until)))
    view = bench.memory.view(within=within)
    held = {
        number: keys
        for number, keys in bench.plain.items()
        if (since is None or number + 1 >= since) and (until is None or number <= until)
    }
    reader, plain = (
        bench.memory.reader(view, bench.recalls()),
        PlainQuestion(HKV, L, bench.budget, 0.8, 0.8, *rule),
    )
    q, seen = bench.query(), set()
    for step in range(8):
        while True:
            if held:
                bench.assert_reads(reader.table, plain, held)
                seen |= {number for _, numbers in plain.reads.values() for number in numbers}
            else:
                assert not reader.selection.max_cells
            rerun = reader.must_rerun(q, prefill=step == 0)
            assert rerun == (bool(held) and plain.must_rerun(q, held, prefill=step == 0))
            if not rerun:
                break
        q = bench.near(q, [0.1, 0.5, 1.5][step % 3])
        bench.leave()
    assert {page.unit for page in reader.pages()} == seen <= set(held)
    reader.release()
    assert not bench.memory.ring._leased
    bench.close()
