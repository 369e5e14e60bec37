"""LiveVLM on streams: what a question reads is what the plain statement chooses, on a toy model and
on real engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet, rotate
from support.sink_buckets import PlainMemory, attention_shares, page_scores, sink_buckets_system
from support.streams import frames

from vicort.runtime.core import Frame, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.session import Session

TOKENS, PAGE, SHARE = 112, 8, 0.4
SETTINGS = f"tokens: {TOKENS}, keep: 0.5, capacity: 1, observed: 8, page: {PAGE}, share: {SHARE}"
SMALL = sink_buckets_system(SETTINGS)
SHORT = Sampling(max_tokens=4)
ASK = "what color was the circle?"


class Watched:
    """An engine that records the bindings of its runs."""

    def __init__(self, engine) -> None:
        self.engine, self.runs = engine, []

    @property
    def signature(self):
        return self.engine.signature

    def enqueue(self, bindings, stream):
        done = self.engine.enqueue(bindings, stream)
        self.runs.append(
            {name: np.array(bindings[name]) for name in ("pos", "pool", "where", "table", "q")}
        )
        return done


def record_departures(session: Session) -> list[Departing]:
    """A list to which every chunk is added that leaves the window from now on."""
    memory, chunks = session.inspect().memory.long_term, []
    absorb = memory.absorb

    def recorded(departing):
        chunks.append(departing)
        absorb(departing)

    memory.absorb = recorded
    return chunks


@pytest.fixture(params=["toy", "onnxruntime", "openvino"])
def engines(request, build_tiny) -> Iterator[EngineSet]:
    if request.param == "toy":
        yield FakeEngineSet(seed=4)
        return
    with EngineSet.open(build_tiny(request.param)) as opened:
        yield opened


def test_a_question_reads_what_the_plain_statement_chooses(engines):
    """Its second run reads the window and, in each layer, the pages that the queries of its first
    run choose; so do the runs of its answer."""
    model = engines.manifest.model
    engines.llm = Watched(engines.llm)
    chunks, device_mb = (24, 4) if model.name == "toy" else (6, 24)
    system = sink_buckets_system(SETTINGS, device_mb=device_mb)
    with Session(engines, system, overlap=False, fps="source", sampling=SHORT) as session:
        departed = record_departures(session)
        for frame in frames(chunks * model.chunk_frames, size=model.fixed_size):
            session.push(frame)
        engines.llm.runs.clear()
        answer = session.ask(ASK)
        window = session.inspect().memory.ingest_table()
    first, second, *later = engines.llm.runs
    np.testing.assert_array_equal(first["pos"], second["pos"])
    shared = {slot for slot in window.slots[0, 0].tolist() if slot >= 0}
    assert len(departed) == chunks - 2
    for layer in range(model.layers):
        keys, positions = chosen(departed, layer, first["q"][layer], model)
        for head in range(model.kv_heads):
            before = set(first["table"][0, layer, head].tolist())
            assert shared < before
            slots = [
                slot
                for slot in second["table"][0, layer, head].tolist()
                if slot >= 0 and slot not in before
            ]
            where, pool = second["where"][slots, layer, head], second["pool"][slots, layer, head, 0]
            np.testing.assert_array_equal(pool[where[..., 0] >= 0], keys[:, head])
            np.testing.assert_array_equal(where[where[..., 0] >= 0], positions)
    assert answer.tokens_read == len(positions) + sum(
        page.tokens for page in window.pages if page.kind == "vision"
    )
    assert all(np.array_equal(run["table"], second["table"]) for run in later)


def chosen(
    departed: list[Departing], layer: int, q: np.ndarray, model
) -> tuple[np.ndarray, np.ndarray]:
    """Keys [n, Hkv, D] and positions [n, 3] that the plain statement reads in a layer, in the order
    of the stream."""
    policy = SMALL.long_term
    plain = PlainMemory(policy, TOKENS)
    turn = partial(rotate, sections=model.rotary_sections, theta=model.rotary_theta)
    for number, chunk in enumerate(departed):
        one = slice(layer, layer + 1)
        (shares,) = attention_shares(
            chunk.k[one], chunk.positions, chunk.queries[one, -policy.observed :], turn
        )
        plain.absorb(shares, [(number, i) for i in range(len(chunk.unit))])
    names = [name for _, name in plain.tokens]
    # it was full, and merged
    assert len(names) <= TOKENS < sum(len(chunk.unit) for chunk in departed) * policy.keep
    scores = page_scores(np.array([departed[c].k[layer, i] for c, i in names]), q, PAGE)
    best = sorted(range(len(scores)), key=lambda page: (-scores[page], page))[
        : math.ceil(SHARE * len(scores))
    ]
    read = [name for page in sorted(best) for name in names[PAGE * page : PAGE * (page + 1)]]
    return np.array([departed[c].k[layer, i] for c, i in read]), np.array(
        [departed[c].positions[i] for c, i in read]
    )


def test_the_overlapped_pipeline_and_its_sequential_twin_agree_to_the_last_bit():
    def results(overlap):
        with Session(FakeEngineSet(seed=6), SMALL, overlap=overlap, sampling=SHORT) as session:
            futures = [
                session.submit(Question(ASK, Fraction(at), str(at))) for at in (0, 9, 20, 29)
            ]
            for frame in frames(61):
                session.push(frame)
            session.finish()
            answers = [
                (a.text, a.seen_until, a.read, a.pages, a.tokens, a.tokens_read)
                for a in (future.result() for future in futures)
            ]
            memory = session.inspect().memory.long_term
            count = memory._buckets.tokens
            kept = (
                memory.pool.data[: count // 4],
                memory.pool.cell_positions[: count // 4],
                memory._scores[:, :count],
                memory._units[:, :count],
            )
            return answers, [part.tobytes() for part in kept], session.summary().pages

    assert results(True) == results(False)


def test_many_questions_while_a_full_memory_merges():
    """No question waits without end, and none reads a unit that is not complete."""
    times = [Fraction(at, 2) for at in range(140, 152)]
    with Session(
        FakeEngineSet(seed=2, layers=1), SMALL, sampling=Sampling(max_tokens=2)
    ) as session:
        futures = [session.submit(Question(ASK, at, str(at))) for at in times]
        for frame in frames(160):
            session.push(frame)
        session.finish()
        for at, future in zip(times, futures, strict=True):
            answer = future.result(timeout=60)
            assert answer.read[-1][1] == answer.seen_until <= at
        assert session.inspect().memory.long_term._buckets.levels[0] > 0  # it merged
        assert session.inspect().memory.long_term._leases._leases == {}


def test_thousands_of_chunks_leave_pages_flat_and_the_first_minute_readable():
    engines = FakeEngineSet(chunk_frames=2, layers=1, max_position=400)
    picture, pages = frames(1)[0].image, []
    with Session(
        engines,
        SMALL,
        overlap=False,
        fps="source",
        sampling=SHORT,
        on_event=lambda _: pages.append(session.summary().pages),
    ) as session:
        for i in range(2 * 1500):
            session.push(Frame(picture, Fraction(i, 2), i))
        answer = session.ask(ASK)
        memory = session.inspect().memory
        pools = memory.pool, memory.long_term.pool
        largest = max(int(pool.cell_positions.max()) for pool in pools)
    assert (
        max(p["host"] for p in pages[-500:])
        == max(p["host"] for p in pages[500:1000])
        <= TOKENS // 4
    )
    assert {p["device"] for p in pages[-500:]} == {pages[500]["device"]}
    assert largest < 400
    assert answer.memory_from < 60
    assert len(answer.read) > 1
