"""FreeKV on streams: against its plain statement, against its sequential twin, and bounded on long
streams."""

import json
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.plain_freekv import PlainChunks, PlainQuestion
from support.plain_stream import PlainStream
from support.sizes import slow
from support.streams import frames

from vicort.runtime.core import Answer, ChunkEvent, Question, Sampling
from vicort.runtime.devices.trace import Trace
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.memory.long_term.page_recall import PageRecallMemory
from vicort.runtime.memory.long_term.recall_streams import RecallStreams
from vicort.runtime.memory.long_term.speculative import Speculative
from vicort.runtime.policies.system import load_system, parse_system
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"


def freekv(parameters="budget: 12", window=1, host_mb=0.5, device_mb=4):
    return parse_system(
        f"""
        name: test
        drop: {{policy: none}}
        ingest: {{policy: recent-chunks, chunks: {window}}}
        long_term: {{policy: page-recall, {parameters}}}
        memory: {{device_mb: {device_mb}, host_mb: {host_mb}, when_full: drop-oldest}}
        """,
        "test.yaml",
    )


def watch(video, system, engines=None, questions=(), **options):
    """Answers and chunks of a stream, every page in long-term memory at its end, and counters."""
    events = []
    with Session(
        engines or FakeEngineSet(), system, on_event=events.append, sampling=SHORT, **options
    ) as session:
        for at in questions:
            session.submit(
                Question(ASK, None if at is None else Fraction(at), str(at), sampling=SHORT)
            )
        for frame in video:
            session.push(frame)
        session.finish()
        memory = session.inspect().memory
        slots = memory.long_term.ring.slot(
            np.arange(memory.long_term.ring.first, memory.long_term.ring.last)
        )
        contents = (
            memory.long_term.pool.data[slots].tobytes(),
            memory.long_term.pool.cell_positions[slots].tobytes(),
        )
        summary = session.summary()
    answers = {
        e.id: (e.text, e.seen_until, e.read, e.pages, e.tokens, e.tokens_read)
        for e in events
        if isinstance(e, Answer)
    }
    chunks = [
        (e.index, e.frames, e.start, e.end, e.tokens, e.kept)
        for e in events
        if isinstance(e, ChunkEvent)
    ]
    return answers, chunks, contents, (summary.pages, summary.moved_mb, summary.reruns)


@pytest.mark.parametrize(
    ("parameters", "settings"),
    [
        ("budget: 12", (3, 0.8, 0.8, 2)),
        ("budget: 8, tau_prefill: null, tau_decode: 0.95", (2, None, 0.95, 2)),
        (
            "budget: 8, tau_prefill: 0.99, tau_decode: null, lookahead: 1",
            (2, 0.99, None, 1),
        ),
        (
            "budget: 8, tau_decode: 0.95, lookahead: 1, group_scores: max-query, "
            "group_similarity: max",
            (2, 0.8, 0.95, 1, "mean-radius", "max-query", "max"),
        ),
    ],
)
def test_a_stream_is_read_as_the_plain_statement_reads_it(parameters, settings):
    engines, video = FakeEngineSet(seed=5), frames(72)
    with Session(engines, freekv(parameters), sampling=SHORT) as session:
        prompt = session.inspect().prompt
        plain = PlainStream(engines, prompt.prefix, 1, *settings)
        reruns = 0
        for start in range(0, len(video), 8):
            for frame in video[start : start + 8]:
                session.push(frame)
            plain.watch(video[start : start + 8])
            if start in (24, 64):
                tokens, again = plain.ask(prompt.question(ASK), 5)
                assert session.ask(ASK).text == prompt.decode(tokens)
                reruns += again
        assert session.summary().reruns == plain.reruns + reruns
        assert bool(plain.reruns) == (settings[1] is not None)
        memory = session.inspect().memory.long_term
        assert memory.ring.last == len(plain.pages)
        for number, (k, v, positions) in plain.pages.items():
            slot = memory.ring.slot(np.array(number))
            np.testing.assert_allclose(memory.pool.data[slot, :, :, 0].swapaxes(1, 2), k, atol=2e-5)
            np.testing.assert_allclose(memory.pool.data[slot, :, :, 1].swapaxes(1, 2), v, atol=2e-5)
            assert (memory.pool.cell_positions[slot] == positions).all()


PARAMETERS = [
    "budget: 12",
    "budget: 12, tau_prefill: 0.99, tau_decode: 0.9, digest: min-max",
    "budget: 12, tau_prefill: null, tau_decode: null",
    "budget: 12, lookahead: 1",
    "budget: 12, chunks: false",
]


@pytest.mark.parametrize("parameters", [*PARAMETERS[:2], *slow(*PARAMETERS[2:])])
def test_overlapped_and_sequential_agree_to_the_last_bit_however_long_a_recall_takes(
    parameters, monkeypatch
):
    scatter, random = RecallStreams._scatter_in_stream, np.random.default_rng(0)

    def late(self, *args):
        time.sleep(random.choice([0, 0, 0.002]))
        scatter(self, *args)

    monkeypatch.setattr(RecallStreams, "_scatter_in_stream", late)
    options = {"questions": (0, 9, "21.25", "21.25", 30, None)}
    system = freekv(parameters, host_mb=0.06)
    overlapped, sequential = (
        watch(frames(122), system, overlap=overlap, **options) for overlap in (True, False)
    )
    assert overlapped == sequential
    # of 56 to 64 pages that left the window: old ones were evicted meanwhile
    assert 0 < overlapped[3][0]["host"] < 50


def test_a_token_is_read_while_the_recall_after_it_is_still_running(monkeypatch):
    """The recall that follows the question's second pass ends only when the engine has read the
    answer's first token."""
    engines = FakeEngineSet()
    scatter, must_rerun = RecallStreams._scatter_in_stream, Speculative.must_rerun
    read, question_read, token_read, waited = (
        engines.llm.function,
        threading.Event(),
        threading.Event(),
        [],
    )

    def watched(**bindings):
        out = read(**bindings)
        if question_read.is_set():
            token_read.set()
        return out

    def watched_must_rerun(reader, q, prefill):
        # the question's second pass has ended: from now on choices run in the background
        if prefill and reader.reruns:
            question_read.set()
        return must_rerun(reader, q, prefill)

    def late(streams, *args):
        if question_read.is_set():
            waited.append(token_read.wait(5))
        scatter(streams, *args)

    monkeypatch.setattr(RecallStreams, "_scatter_in_stream", late)
    monkeypatch.setattr(Speculative, "must_rerun", watched_must_rerun)
    engines.llm.function = watched
    with Session(
        engines, freekv("budget: 8, chunks: false, tau_decode: null"), sampling=SHORT
    ) as session:
        for frame in frames(60):
            session.push(frame)
        session.ask(ASK)
    assert waited
    assert all(waited)


class Witness:
    """Checks at every run what its reader should have read."""

    def __init__(self, monkeypatch, budget, tau):
        self.pages = {}
        self.runs = 0
        self.budget = budget
        self.tau = tau
        absorb, table, must_rerun, renew = (
            PageRecallMemory.absorb,
            Speculative.table,
            Speculative.must_rerun,
            Speculative.renew,
        )
        plain, pages_of, lock = {}, {}, threading.RLock()

        def watched_absorb(memory, departing):
            with lock:
                before = memory.ring.last
                absorb(memory, departing)
                slots = memory.ring.slot(np.arange(before, memory.ring.last))
                self.pages |= {
                    number: memory.pool.data[slot, :, :, 0, : memory.tokens[slot]]
                    .swapaxes(1, 2)
                    .copy()
                    for number, slot in zip(range(before, memory.ring.last), slots, strict=True)
                }

        def reader_of(reader):
            if reader not in plain:
                model = reader._memory.model
                kind = PlainChunks if reader._of_stream else PlainQuestion
                plain[reader] = kind(model.kv_heads, model.layers, budget, tau, tau)
                pages_of[reader] = {
                    n: keys
                    for n, keys in self.pages.items()
                    if reader._view.first <= n < reader._view.last
                }
            return plain[reader]

        def watched_table(reader):
            reads, found = reader_of(reader).reads, table.fget(reader)
            numbers = reader.selection.pages
            for (layer, head), (_, pages) in reads.items():
                assert numbers[layer, head].tolist() == pages
                slots = found[layer, head]
                tokens = reader._pool.cell_positions[slots, layer, head, :, 0] >= 0
                keys = reader._pool.data[slots, layer, head, 0][tokens]
                np.testing.assert_array_equal(
                    keys, np.concatenate([self.pages[page][layer, :, head] for page in pages])
                )
                self.runs += 1
            return found

        def watched_must_rerun(reader, q, prefill):
            mine = reader_of(reader)
            expected = (
                mine.must_rerun(q.copy(), pages_of[reader])
                if reader._of_stream
                else mine.must_rerun(q.copy(), pages_of[reader], prefill)
            )
            again = must_rerun(reader, q, prefill)
            assert again == expected
            return again

        def watched_renew(reader, view):
            renew(reader, view)
            mine = reader_of(reader)
            pages_of[reader] = {
                n: keys for n, keys in self.pages.items() if view.first <= n < view.last
            }
            mine.renew(pages_of[reader])

        monkeypatch.setattr(PageRecallMemory, "absorb", watched_absorb)
        monkeypatch.setattr(Speculative, "table", property(watched_table))
        monkeypatch.setattr(Speculative, "must_rerun", watched_must_rerun)
        monkeypatch.setattr(Speculative, "renew", watched_renew)


def test_the_embedded_model_reads_what_the_plain_statement_says_run_by_run(
    tiny_engines, monkeypatch
):
    witness = Witness(monkeypatch, budget=8, tau=0.8)
    picture = np.random.default_rng(0).integers(0, 256, (12, 112, 112, 3), np.uint8)
    frame = frames(1)[0]
    video = [type(frame)(picture[i // 6 % 12], Fraction(i, 2), i) for i in range(16 * 6)]
    with EngineSet.open(tiny_engines) as engines:
        answers, _, _, (pages, _, reruns) = watch(
            video, freekv("budget: 32", host_mb=6, device_mb=64), engines, questions=(30, 41, None)
        )
    assert set(answers) == {"30", "41", "None"}
    assert pages["host"] == len(witness.pages) > 100
    assert witness.runs > 50
    assert reruns >= 3  # each question reads twice


def test_overlapped_and_sequential_agree_on_the_embedded_model(tiny_engines):
    random = np.random.default_rng(1)
    frame, picture = frames(1)[0], random.integers(0, 256, (20, 112, 112, 3), np.uint8)
    video = [type(frame)(picture[i // 4 % 20], Fraction(i, 2), i) for i in range(16 * 5)]
    with EngineSet.open(tiny_engines) as engines:
        results = [
            watch(
                video,
                freekv("budget: 64, tau_prefill: 0.95", host_mb=4, device_mb=64),
                engines,
                (11, 30, None),
                overlap=overlap,
            )
            for overlap in (True, False)
        ]
    assert results[0] == results[1]
    assert results[0][3][2] > 3


def test_recalls_stand_in_the_trace(tmp_path):
    trace = Trace()
    watch(frames(60), freekv(), questions=(20, None), trace=trace)
    trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {
        f"recall {verb} {whose}" for verb in ("copy", "scatter") for whose in ("chunk", "question")
    } <= tracks


def test_positions_stay_in_the_trained_range_and_memory_in_its_bytes_however_long_the_stream():
    engines = FakeEngineSet(max_position=200, layers=1)
    largest, picture, read = [], frames(1)[0], engines.llm.function

    def watched(**bindings):
        places = bindings["where"][
            np.maximum(bindings["table"], 0),
            np.arange(1)[:, None, None],
            np.arange(2)[None, :, None],
        ]
        largest.append(max(bindings["pos"].max(), places[bindings["table"] >= 0].max(initial=-1)))
        return read(**bindings)

    engines.llm.function = watched
    with Session(engines, freekv("budget: 8", host_mb=0.03), overlap=False) as session:
        memory = session.inspect().memory.long_term
        for i in range(3000):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
            if i % 500 == 499:
                session.ask(ASK, sampling=SHORT)
        assert memory.ring.last - memory.ring.first == memory.ring.count
        assert memory.ring.last > 10 * memory.ring.slots
        arrays = memory.pool.data, memory.pool.cell_positions, memory.boxes
        assert sum(array.nbytes for array in arrays) <= 0.03e6
    assert 100 < max(largest) < 200


def test_a_session_closes_while_a_recall_is_running(monkeypatch):
    scatter, started = RecallStreams._scatter_in_stream, threading.Event()

    def slow(self, *args):
        started.set()
        time.sleep(0.05)
        scatter(self, *args)

    monkeypatch.setattr(RecallStreams, "_scatter_in_stream", slow)
    with Session(FakeEngineSet(), freekv(), sampling=SHORT) as session:
        for frame in frames(40):
            session.push(frame)
        session.submit(Question(ASK, sampling=SHORT))
        assert started.wait(5)


def test_a_budget_too_small_names_the_smallest_that_works():
    with pytest.raises(MemoryBudgetError, match=r"memory\.host_mb to at least") as caught:
        Session(FakeEngineSet(), freekv(host_mb=0.001))
    watch(frames(40), freekv(host_mb=str(caught.value).split()[-1]))


def test_the_system_file_says_what_the_paper_says():
    policy = load_system("freekv").long_term
    assert (policy.budget, policy.digest, policy.tau_prefill, policy.tau_decode) == (
        1024,
        "mean-radius",
        0.8,
        0.8,
    )
    assert policy.chunks
    assert policy.lookahead == 2
    assert policy.group_scores == "mean-scaled-softmax"
    assert policy.group_similarity == "mean"


@pytest.mark.parametrize(
    "wrong",
    ["tau_decode: 2", "group_scores: median", "group_similarity: least", "lookahead: 3"],
)
def test_what_is_refused(wrong):
    with pytest.raises(ConfigError, match=wrong.split(":")[0]) as caught:
        freekv(wrong)
    assert "\n" not in str(caught.value)
