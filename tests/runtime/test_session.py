"""The whole runtime on a toy model in NumPy: one pass over everything, the twin that must agree,
failures, and the bounds of positions and memory."""

import gc
import threading
import weakref
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import FULL, SYSTEMS, system
from support.transcript import Transcript
from support.whole_streams import ASK, SHORT, answers, chunks, question, run

from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError, MemoryBudgetError, QuestionError, VicortError
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session


@pytest.mark.parametrize("overlap", [True, False])
def test_full_history_in_chunks_equals_one_pass_over_everything(overlap):
    engines, video = FakeEngineSet(seed=3), frames(22)
    events, _ = run(video, [question(4), question(None)], system(**FULL), engines, overlap=overlap)
    with Session(engines, system(**FULL)) as session:
        prompt = session.inspect().prompt
    # two answers that overlap may end in either order
    in_order = sorted(answers(events), key=lambda answer: answer.at)
    asked_at_4 = [*video[:8], video[8], video[8]]  # half a unit, completed by its repeat
    for answer, seen in zip(in_order, (asked_at_4, video), strict=True):
        plain = Transcript(engines, prompt.prefix)
        plain.watch(seen)
        assert answer.text == prompt.decode(plain.ask(prompt.question(ASK), 5))
        assert answer.seen_until == seen[-1].time


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_overlapped_pipeline_and_its_sequential_twin_agree_to_the_last_bit(name):
    def asked_once(overlap):
        questions = [question(at, id=str(at)) for at in (0, 3, "7.25", 11, None)]
        events, summary = run(frames(61), questions, SYSTEMS[name], overlap=overlap)
        said = {a.id: (a.text, a.seen_until, a.read, a.pages, a.tokens) for a in answers(events)}
        placed = [(c.index, c.frames, c.start, c.end, c.tokens, c.kept) for c in chunks(events)]
        return said, placed, summary.pages, summary.frames

    assert asked_once(True) == asked_once(False)


def test_one_frame_is_a_stream():
    events, summary = run(frames(1), [question(None)])
    assert (summary.frames, summary.chunks) == (1, 1)
    assert answers(events)[0].pages > 0


def test_no_frames_at_all_still_answers():
    events, summary = run([], [question(None)])
    assert (summary.frames, summary.fps, answers(events)[0].read) == (0, 0, ())


def test_many_threads_ask_while_frames_go_on():
    engines, texts, stop = FakeEngineSet(), [], threading.Event()
    with Session(
        engines, system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}")
    ) as session:
        session.push(frames(1)[0])

        def pester():
            while not stop.is_set():
                texts.append(session.ask(ASK, sampling=SHORT).text)

        threads = [threading.Thread(target=pester) for _ in range(6)]
        for thread in threads:
            thread.start()
        for frame in frames(400)[1:]:
            session.push(frame)
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
        session.finish()
        assert session.summary().frames == 400
    assert len(texts) > 6


# ---- failures, and the end ----


def test_a_stage_that_fails_fails_the_stream_and_its_questions():
    engines = FakeEngineSet()
    engines.vision.function = lambda **bindings: 1 / 0
    with Session(engines, system()) as session:
        for frame in frames(8):
            session.push(frame)
        with pytest.raises(ZeroDivisionError):
            session.ask(ASK)
        with pytest.raises(ZeroDivisionError):
            session.finish()


def test_a_session_that_cannot_be_opened_leaves_no_thread():
    engines, before = FakeEngineSet(), set(threading.enumerate())
    engines.llm.function = lambda **bindings: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Session(engines, system(), system_prompt="Answer in a word.")
    assert set(threading.enumerate()) <= before


def test_a_finished_stream_takes_questions_but_no_frames():
    with Session(FakeEngineSet(), system()) as session:
        session.push(frames(1)[0])
        session.finish()
        assert session.ask(ASK, sampling=SHORT).pages > 0
        with pytest.raises(VicortError, match="finished"):
            session.push(frames(2)[1])


def test_closing_a_session_wakes_a_thread_that_waits_for_room():
    gate, engines, failures = threading.Event(), FakeEngineSet(), []
    see = engines.vision.function
    engines.vision.function = lambda **bindings: see(**bindings) if gate.wait(timeout=30) else {}
    session = Session(engines, system())

    def push():
        try:
            for frame in frames(400):
                session.push(frame)
        except VicortError as error:
            failures.append(str(error))

    thread = threading.Thread(target=push)
    thread.start()
    threading.Timer(0.2, gate.set).start()
    session.close()
    thread.join(timeout=30)
    assert "open a new" in failures[0]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", known_systems())
def test_a_closed_session_is_freed_with_the_last_reference_to_it(name, overlap):
    """Without the garbage collector, which would hold up every thread of a process that has other
    sessions."""

    def watch():
        with Session(
            FakeEngineSet(), load_system(name), overlap=overlap, sampling=SHORT
        ) as session:
            for frame in frames(20):
                session.push(frame)
            session.ask(ASK, conversation="a")
            with pytest.raises(QuestionError):
                session.ask(ASK * 100)
            session.finish()
            session.summary()
        return [weakref.ref(part) for part in (session, session.inspect().memory)]

    gc.disable()
    try:
        assert [part() for part in watch()] == [None, None]
    finally:
        gc.enable()


# ---- positions and bounds ----


def test_positions_stay_in_the_trained_range_however_long_the_stream():
    engines = FakeEngineSet(max_position=200, layers=1)
    largest = []
    read = engines.llm.function

    def watched(**bindings):
        largest.append(
            max(
                bindings["pos"].max(),
                bindings["where"][bindings["table"][bindings["table"] >= 0]].max(initial=-1),
            )
        )
        return read(**bindings)

    engines.llm.function = watched
    picture = frames(1)[0]
    with Session(engines, system(), overlap=False) as session:
        for i in range(3000):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
            if i % 500 == 499:
                session.ask(ASK, sampling=SHORT)
    assert 100 < max(largest) < 200


# frames before the silence, which cuts the first or the second chunk in the middle
@pytest.mark.parametrize("before", [4, 12])
def test_a_silence_longer_than_the_trained_range_loses_no_token_and_leaves_no_position_outside(
    before,
):
    engines = FakeEngineSet(max_position=200, layers=1)
    real, largest, read = [], [], engines.llm.function

    def watched(**bindings):
        real.append(int((bindings["pos"][:, 0] >= 0).sum()))
        largest.append(int(bindings["pos"].max()))
        return read(**bindings)

    engines.llm.function = watched
    picture, kept = frames(1)[0], []
    times = [*range(before), *range(9000, 9004)]  # seconds
    with Session(
        engines, system(), fps=1, overlap=False, on_event=lambda event: kept.append(event.kept)
    ) as session:
        real.clear()  # the prompt
        for i, at in enumerate(times):
            session.push(type(picture)(picture.image, Fraction(at), i))
    assert real == kept == [16] * (len(times) // 8)
    assert max(largest) < 200


def test_after_rebasing_cached_time_agrees_with_time_to_come():
    picture = frames(1)[0]
    chosen = system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}")
    with Session(FakeEngineSet(max_position=200, layers=1), chosen, overlap=False) as session:
        for i in range(3000):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
        memory, timeline = session.inspect().memory, session.inspect().memory.timeline
        assert timeline.offset > 1000
        assert memory.tiers.host_slots.live
        for unit in memory.tiers.units:
            assert memory.tiers.first_position(unit).tolist() == [
                max(timeline.first, timeline.step(memory.tiers.locations(unit)[0].page.start)),
                2,
                2,
            ]


def test_a_page_recalled_from_the_host_reads_like_one_that_never_left():
    def asked_once(memory):
        engines = FakeEngineSet(seed=6)
        chosen = system(retrieval="{policy: similar-chunks, top: 4}", memory=memory)
        questions = [
            question(at, text, id=f"{at}{text}")
            for at in (20, 40, None)
            for text in (ASK, "what came after the star?")
        ]
        events, summary = run(frames(200), questions, chosen, engines)
        return {a.id: (a.text, a.read) for a in answers(events)}, summary.pages["host"]

    spilled, on_host = asked_once("{device_mb: 0.92, host_mb: 2, when_full: drop-oldest}")
    kept, none = asked_once("{device_mb: 4, when_full: drop-oldest}")
    assert spilled == kept
    assert on_host > 0 == none


def test_full_history_refuses_when_memory_or_time_is_full():
    tight = system(**(FULL | {"memory": "{device_mb: 0.92, when_full: refuse}"}))
    with pytest.raises(MemoryBudgetError, match="device_mb"):
        run(frames(2000), chosen=tight)
    with pytest.raises(MemoryBudgetError, match="positions"):
        run(frames(2000), chosen=system(**FULL), engines=FakeEngineSet(max_position=100))


def test_a_budget_too_small_for_one_chunk_names_the_smallest_that_works():
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        Session(FakeEngineSet(), system(memory="{device_mb: 0.001, when_full: drop-oldest}"))
    smallest = str(caught.value).split()[-1]
    run(frames(40), chosen=system(memory=f"{{device_mb: {smallest}, when_full: drop-oldest}}"))


# ---- int8 pages ----


def test_long_term_memory_over_int8_pages_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^system livevlm has .* built without --kv int8$"):
        Session(FakeEngineSet(kv="int8"), load_system("livevlm"))


def test_int8_pages_change_little_and_something():
    """What a question reads is near what it reads from pages of floats."""
    first = []
    for kv in ("float", "int8"):
        engines, logits = FakeEngineSet(kv=kv), []
        with Session(engines, system(), overlap=False, sampling=Sampling(max_tokens=1)) as session:
            for frame in frames(40):
                session.push(frame)
            choose = engines.head.function
            engines.head.function = partial(_kept, logits, choose)
            session.ask(ASK)
        first.append(logits[0])
    exact, rounded = first
    off = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < off < 0.05


def _kept(kept, read, /, **run):
    outputs = read(**run)
    kept.append(outputs["logits"])
    return outputs
