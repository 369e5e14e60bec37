"""What a question sees: every frame until its time, or what is in memory when it is asked."""

import threading
import time
from fractions import Fraction

import pytest
from support.fake_engines import FakeEngineSet
from support.simulated_cuda import SimulatedEngineSet
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Answer, ChunkEvent, Question, Sampling
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=4)
ASK = "what color was the circle?"
FULL = 16  # frames of a chunk
JOINS = system(memory="{device_mb: 4, when_full: drop-oldest}").with_(
    text=load_system("videollm-online").text
)


class GatedVision:
    """Vision of an engine set that waits at the gate from its `free`-th run on."""

    def __init__(self, engines, free):
        self.gate, self.waits, self.runs = threading.Event(), threading.Event(), 0
        self._see, self._free = engines.vision.function, free
        engines.vision.function = self._run

    def _run(self, **bindings):
        self.runs += 1
        if self.runs > self._free:
            self.waits.set()
            assert self.gate.wait(timeout=30)
        return self._see(**bindings)


def wait_for_chunk(session):
    """Until the first chunk is in memory."""
    session.inspect().pipeline.newest.done()


def times(events):
    return [(each.index, each.start, each.end, each.kept) for each in events]


@pytest.mark.parametrize("chosen", [system(), JOINS], ids=["apart", "joins"])
def test_an_answer_now_waits_for_no_frame_that_is_not_in_memory(chosen):
    engines, video = FakeEngineSet(), frames(20)
    vision = GatedVision(engines, free=4)  # the four units of the first chunk
    with Session(engines, chosen, freshness="now", sampling=SHORT) as session:
        for frame in video[:8]:
            session.push(frame)
        wait_for_chunk(session)
        for frame in video[8:]:
            session.push(frame)
        assert vision.waits.wait(timeout=30)
        answers = [session.submit(Question(ASK, Fraction(9), sampling=SHORT)) for _ in range(2)]
        assert {answer.result(timeout=30).seen_until for answer in answers} == {video[7].time}
        vision.gate.set()
        session.finish()
        assert session.ask(ASK).seen_until == video[-1].time


@pytest.mark.parametrize("chosen", [system(), JOINS], ids=["apart", "joins"])
def test_a_turn_that_is_asked_now_sees_no_less_than_the_turn_before(chosen):
    """The first one waits for what comes before any memory, the second would not."""
    engines, video, permits = FakeEngineSet(), frames(10), threading.Semaphore(0)
    see, stored, answers = engines.vision.function, threading.Event(), []

    def seen(**bindings):
        assert permits.acquire(timeout=30)
        return see(**bindings)

    def on_event(event):
        if isinstance(event, Answer):
            answers.append(event)
        elif isinstance(event, ChunkEvent):
            stored.set()

    engines.vision.function = seen
    options = {"freshness": "now", "on_event": on_event, "sampling": SHORT}
    with Session(engines, chosen, **options) as session:
        for frame in video:
            session.push(frame)

        def ask(conversation):
            return session.submit(Question(ASK, Fraction(0), sampling=SHORT, **conversation))

        turns = [ask({"conversation": "a"})]
        permits.release(4)  # the units of the first chunk, and not that of the second
        assert stored.wait(timeout=30)
        turns.append(ask({"conversation": "a"}))
        if chosen is not JOINS:
            assert ask({}).result(timeout=30).seen_until == video[7].time
        permits.release(10)
        assert [turn.result(timeout=30).seen_until for turn in turns] == [video[-1].time] * 2
        assert [each.id for each in answers][-2:] == [turn.result().id for turn in turns]


def test_urgent_work_comes_in_between_two_units():
    engines, urgent, passed = FakeEngineSet(), threading.Event(), threading.Event()
    see, runs = engines.vision.function, []

    def seen(**bindings):
        runs.append(bindings["frames"].shape[0])
        if len(runs) == 1:
            urgent.set()
            assert passed.wait(timeout=30)
        return see(**bindings)

    engines.vision.function = seen
    with Session(engines, system(), freshness="now", sampling=SHORT) as session:
        for frame in frames(8):
            session.push(frame)
        assert urgent.wait(timeout=30)
        with session._device.urgency.urgent_work():
            passed.set()
            time.sleep(0.1)
            assert runs == [2]
        session.finish()
    assert runs == [2, 2, 2, 2]


def test_a_complete_answer_waits_for_every_frame_until_its_time():
    engines, video = FakeEngineSet(), frames(12)
    vision = GatedVision(engines, free=1)  # the first chunk is one run
    with Session(engines, system(), sampling=SHORT) as session:
        for frame in video:
            session.push(frame)
        answer = session.submit(Question(ASK, video[-1].time, sampling=SHORT))
        assert vision.waits.wait(timeout=30)
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.1)
        vision.gate.set()
        assert answer.result(timeout=30).seen_until == video[-1].time


@pytest.mark.parametrize("overlap", [True, False])
def test_while_memory_is_empty_an_answer_now_waits_for_the_frames_there_are(overlap):
    video = frames(4)
    with Session(
        FakeEngineSet(), system(), freshness="now", overlap=overlap, sampling=SHORT
    ) as session:
        for frame in video:
            session.push(frame)
        assert session.ask(ASK).seen_until == video[-1].time


@pytest.mark.parametrize("overlap", [True, False])
def test_a_question_at_the_end_sees_all(overlap):
    """Also of a chunk that is not in memory yet."""
    engines, video, events = FakeEngineSet(), frames(21), []
    see = engines.vision.function

    def seen_slowly(**bindings):
        time.sleep(0.1)
        return see(**bindings)

    options = {"freshness": "now", "overlap": overlap, "sampling": SHORT}
    with Session(engines, system(), on_event=events.append, **options) as session:
        session.submit(Question(ASK, None, sampling=SHORT))
        for frame in video:
            session.push(frame)
        session.settle()
        engines.vision.function = seen_slowly
        session.finish()
    (answer,) = (each for each in events if isinstance(each, Answer))
    assert answer.seen_until == video[-1].time


@pytest.mark.parametrize("name", known_systems())
def test_what_is_stored_is_that_of_a_stream_without_questions(name):
    """Also: units that are encoded one by one give what the whole chunk gives."""
    if load_system(name).text.joins:
        pytest.skip("its questions are part of the stream")

    def stored(freshness, asks):
        events, engines = [], FakeEngineSet(chunk_frames=FULL)
        found = load_system(name)
        host = 0 if found.memory.host_mb == 0 else 1
        chosen = found.with_(memory={"device_mb": 3, "host_mb": host})
        options = {"on_event": events.append, "sampling": SHORT}
        with Session(engines, chosen, freshness=freshness, **options) as session:
            for number, frame in enumerate(frames(100)):
                session.push(frame)
                if number == FULL:
                    wait_for_chunk(session)
                if number in asks:
                    session.submit(Question(ASK, Fraction(0), sampling=SHORT))
            session.finish()
            last = session.ask(ASK)
        chunks = [each for each in events if isinstance(each, ChunkEvent)]
        return times(chunks), last.text, last.read, last.probability

    assert stored("now", range(FULL, 100, 7)) == stored("complete", ())


@pytest.mark.parametrize("order", range(4))
def test_on_a_gpu_a_question_that_comes_first_waits_for_what_it_reads(order):
    """The simulated driver refuses a read of what may still be written."""
    events, video = [], frames(96)
    engines = SimulatedEngineSet(order=order, lag=0.002 * (order % 3))
    options = {"on_event": events.append, "sampling": SHORT, "freshness": "now"}
    with Session(engines, system(), **options) as session:
        for number, frame in enumerate(video):
            session.push(frame)
            if number == 8:
                wait_for_chunk(session)
            if number > 20 and number % 5 == 0:
                session.submit(Question(ASK, Fraction(0), sampling=SHORT))
        session.finish()
    answers = [each for each in events if isinstance(each, Answer)]
    assert len(answers) == 15
    assert all(answer.seen_until <= video[-1].time for answer in answers)
    assert sum(each.frames for each in events if isinstance(each, ChunkEvent)) == 96


@pytest.mark.parametrize("wrong", ["later", "", None, 3])
def test_another_word_is_refused_with_the_words_that_are_allowed(wrong):
    with pytest.raises(ConfigError, match="give one of complete, now"):
        Session(FakeEngineSet(), system(), freshness=wrong)
