"""A chunk that fails ends the stream: whoever waits for an answer is given its error, at once and
whatever the question waits for."""

import threading
from concurrent.futures import wait
from fractions import Fraction

import pytest
from support.fake_engines import FakeEngineSet
from support.simulated_cuda import SimulatedEngineSet
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import SessionClosed
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"
LATER = Fraction(10**6)
CHUNK = 8  # frames
SYSTEMS = {
    "windowed": system(),
    "full": system(**FULL),
    "text joins": system(memory="{device_mb: 4, when_full: drop-oldest}").with_(
        text=load_system("videollm-online").text
    ),
}


def question(at=LATER, **options) -> Question:
    return Question(ASK, at, sampling=SHORT, **options)


def opened(engines, chosen=None, **options) -> Session:
    """A session with one chunk in memory."""
    session = Session(engines, chosen or system(), sampling=SHORT, **options)
    push(session, frames(CHUNK))
    session.inspect().pipeline.drain()
    return session


def push(session, video):
    for frame in video:
        session.push(frame)


def push_until_it_fails(session, errors=ZeroDivisionError):
    with pytest.raises(errors):
        push(session, frames(100 * CHUNK, start=CHUNK))


def breaks(engines, graph):
    getattr(engines, graph).enqueue = lambda bindings, stream: 1 / 0


def failed(answers) -> bool:
    """Whether all are failed with the chunk's error, without anything more."""
    done, left = wait(answers, timeout=10)
    return not left and all(isinstance(each.exception(), ZeroDivisionError) for each in done)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("graph", ["vision", "tokens", "llm"])
@pytest.mark.parametrize("chosen", SYSTEMS)
def test_a_chunk_that_fails_fails_every_open_question(overlap, graph, chosen):
    engines = FakeEngineSet()
    with opened(engines, SYSTEMS[chosen], overlap=overlap) as session:
        answers = [session.submit(question(at)) for at in (LATER, None)]
        answers += [session.submit(question(conversation="a")) for _ in range(3)]
        breaks(engines, graph)
        push_until_it_fails(session)
        assert failed(answers)
        answers = [session.submit(question(at)) for at in (LATER, None, Fraction(0))]
        assert failed(answers)
        with pytest.raises(ZeroDivisionError):
            session.finish()


@pytest.mark.parametrize("freshness", ["complete", "now"])
def test_answers_that_are_being_given_fail_too(freshness):
    """And one that waits for them in its conversation."""
    engines, begun, gate = FakeEngineSet(), threading.Event(), threading.Event()

    def blocks(piece):
        begun.set()
        assert gate.wait(30)

    with opened(engines, freshness=freshness) as session:
        answers = [session.submit(question(Fraction(0), conversation="a"), blocks)]
        assert begun.wait(10)
        answers += [session.submit(question(Fraction(0), conversation="a")) for _ in range(3)]
        breaks(engines, "vision")
        push_until_it_fails(session)
        assert failed(answers)
        gate.set()
        session.inspect().memory.tiers.stream_slots.wait_unleased()
        assert failed([session.submit(question(Fraction(0)))])


@pytest.mark.parametrize("overlap", [True, False])
def test_who_asks_on_another_thread_for_a_later_time_is_given_the_error(overlap):
    engines, errors = FakeEngineSet(), []
    with opened(engines, overlap=overlap) as session:

        def ask():
            try:
                session.ask(ASK, at=LATER)
            except ZeroDivisionError as error:
                errors.append(error)

        asker = threading.Thread(target=ask, daemon=True)
        asker.start()
        breaks(engines, "vision")
        push_until_it_fails(session)
        asker.join(10)
        assert len(errors) == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stream_that_failed_stays_so_though_its_engines_recover(overlap):
    engines = FakeEngineSet()
    with opened(engines, overlap=overlap) as session:
        breaks(engines, "vision")
        push_until_it_fails(session)
        del engines.vision.enqueue
        for use in (
            lambda: session.push(frames(1, start=1000)[0]),
            lambda: session.wants(Fraction(600)),
            lambda: session.ask(ASK),
            session.finish,
        ):
            with pytest.raises(ZeroDivisionError):
                use()
        assert session.summary().chunks == 1


def test_an_error_that_is_raised_again_and_again_takes_no_memory():
    engines = FakeEngineSet()
    with opened(engines) as session:
        breaks(engines, "vision")
        push_until_it_fails(session)
        assert failed([session.submit(question())])  # the queue has the error too, from now on
        for use in (lambda: session.wants(Fraction(600)), lambda: session.ask(ASK)):
            depths = []
            for _ in range(20):
                with pytest.raises(ZeroDivisionError) as failure:
                    use()
                depths.append(len(failure.traceback))
            assert len(set(depths)) == 1


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("set_type", [FakeEngineSet, SimulatedEngineSet])
def test_a_callback_of_a_failed_answer_may_ask_and_close(overlap, closes, set_type):
    engines, asked, summaries = set_type(), [], []
    session = opened(engines, overlap=overlap)

    def called(answer):
        asked.append(session.submit(question()))
        summaries.append(session.summary())
        if closes:
            session.close()

    answers = [session.submit(question(at)) for at in (LATER, None)]
    answers[0].add_done_callback(called)
    breaks(engines, "vision")
    errors = (ZeroDivisionError, SessionClosed)
    watcher = threading.Thread(target=push_until_it_fails, args=(session, errors), daemon=True)
    watcher.start()
    watcher.join(20)
    assert not watcher.is_alive()
    assert not wait(answers, timeout=10).not_done
    assert failed(asked)
    assert summaries[0].chunks == 1
    session.close()
