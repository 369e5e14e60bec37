"""Sessions for any thread: order of frames, the caller's clock, and closing under calls that are
under way."""

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import (
    ConfigError,
    QuestionError,
    SessionClosed,
    SourceError,
    VicortError,
)
from vicort.runtime.session import Session
from vicort.runtime.shared_session import (
    MAX_GAP_SECONDS,
    MICROSECONDS,
    AnswerStopped,
    SharedSession,
    StreamFinished,
    TimeOrderError,
)

SHORT = Sampling(max_tokens=5)
PICTURE = np.zeros((8, 8, 3), np.uint8)
ASK = "what color was the circle?"


def shared(engines=None, system=system(), **options) -> SharedSession:  # noqa: B008 (frozen)
    options = {"fps": "source"} | options
    return SharedSession(
        Session(engines or FakeEngineSet(), system, sampling=SHORT, **options), SHORT
    )


def hear(session, **options):
    pieces = []
    heard = session.ask(ASK, lambda piece: pieces.append(piece) or True, **options)
    assert "".join(pieces) == heard.answer.text
    return heard


@settings(max_examples=examples(8))
@given(st.lists(st.integers(-(10**7), 10**7), max_size=12), st.sampled_from([0, 10**15, -(2**62)]))
def test_frames_count_only_if_they_come_later(steps, origin):
    """Whatever the clock's zero: a frame is taken if it is after all that were taken, and is
    refused, without a trace, if it is not."""
    session, newest, taken = shared(overlap=False), None, 0
    for step in steps:
        time_us = step if newest is None else newest + step
        if newest is None or step > 0:
            session.push(origin + time_us, lambda: PICTURE)
            newest, taken = time_us, taken + 1
        else:
            with pytest.raises(TimeOrderError):
                session.push(origin + time_us, lambda: PICTURE)
    assert session.summary().frames == taken
    heard = hear(session)
    assert heard.at_us == (0 if newest is None else origin + newest)
    session.close()


def test_another_clock_is_refused():
    session = shared()
    session.push(0, lambda: PICTURE)
    with pytest.raises(TimeOrderError, match="19675 days"):
        session.push(1_700_000_000 * MICROSECONDS, lambda: PICTURE)
    session.push(MAX_GAP_SECONDS * MICROSECONDS, lambda: PICTURE)
    session.close()


def test_a_picture_that_is_not_sampled_is_never_made():
    session, made = shared(fps=2), []
    for i in range(50):
        session.push(i * 40_000, lambda: made.append(1) or PICTURE)
    assert len(made) == session.summary().frames == 4
    session.close()


def test_answers_are_those_of_the_session():
    engines = FakeEngineSet()
    with Session(engines, system(), fps="source", sampling=SHORT) as plain:
        for frame in frames(11):
            plain.push(frame)
        expected = plain.ask(ASK, sampling=SHORT)
    session = shared(engines)
    for frame in frames(11):
        session.push(7 + int(frame.time * MICROSECONDS), lambda frame=frame: frame.image)
    heard = hear(session)
    assert (heard.answer.text, heard.answer.seen_until) == (expected.text, expected.seen_until)
    assert heard.seen_until_us == 7 + expected.seen_until * MICROSECONDS
    session.close()


@pytest.mark.parametrize(
    ("since", "until", "read"),
    [
        (None, None, (0, 11)),
        (3_000_000, None, (2, 11)),
        (-5, 1_500_000, (0, 1)),
        (4_000_000, 7_000_000, (4, 7)),
        (50_000_000, 60_000_000, None),
    ],
)
def test_a_range_is_on_the_clock_of_the_frames(since, until, read):
    """A frame each second, two of them a unit."""
    session, origin = shared(system=system(**FULL)), 10**15
    for second in range(12):
        session.push(origin + second * MICROSECONDS, lambda: PICTURE)
    limits = {
        name: None if time is None else origin + time
        for name, time in (("since_us", since), ("until_us", until))
    }
    heard = hear(session, **limits)
    assert heard.answer.read == ((read,) if read else ())
    with pytest.raises(QuestionError):
        hear(session, since_us=None, until_us=origin - 1)
    session.close()


def test_a_finished_stream_takes_questions_but_no_frames():
    session = shared()
    session.push(0, lambda: PICTURE)
    session.finish()
    session.finish()
    with pytest.raises(StreamFinished):
        session.push(1, lambda: PICTURE)
    assert hear(session).seen_until_us == 0
    session.close()


def test_stopping_ends_the_ask_and_nothing_else():
    session = shared()
    heard = []
    with pytest.raises(AnswerStopped):
        session.ask(ASK, lambda piece: bool(heard.append(piece)))
    assert len(heard) == 1
    session.finish()
    assert hear(session).answer.text.startswith(heard[0])
    session.close()


def test_questions_without_words_are_refused():
    session = shared()
    with pytest.raises(QuestionError, match="empty"):
        session.ask(" \n", lambda piece: True)
    session.close()


def test_after_the_close_every_verb_says_so():
    session = shared()
    session.close()
    for verb in (
        session.close,
        session.finish,
        session.summary,
        lambda: hear(session),
        lambda: session.push(0, lambda: PICTURE),
    ):
        with pytest.raises(SessionClosed):
            verb()


class Gate(FakeEngineSet):
    """Vision waits at a gate."""

    def __init__(self):
        super().__init__()
        self.opened, self.reached = threading.Event(), threading.Event()
        see = self.vision.function

        def wait(**inputs):
            self.reached.set()
            assert self.opened.wait(20)
            return see(**inputs)

        self.vision.function = wait


def test_a_close_ends_calls_that_wait_and_waits_for_them():
    engines = Gate()
    session = shared(engines)
    with ThreadPoolExecutor(4) as threads:
        for i in range(2):
            session.push(i, lambda: PICTURE)
        asks = [threads.submit(hear, session) for _ in range(2)]
        push = threads.submit(lambda: [session.push(2 + i, lambda: PICTURE) for i in range(1000)])
        assert engines.reached.wait(20)
        closing = threads.submit(session.close)
        engines.opened.set()
        closing.result(20)
        assert all(call.done() for call in (*asks, push))
        for call in (*asks, push):
            assert call.exception() is None or isinstance(call.exception(), SessionClosed)
        assert isinstance(push.exception(), SessionClosed)


def test_a_close_from_within_a_callback_does_not_wait_for_itself():
    session = shared()
    session.push(0, lambda: PICTURE)

    def close(piece):
        if not closed:
            closed.append(session.close())
        return True

    closed = []
    with pytest.raises(SessionClosed):
        session.ask(ASK, close)
    assert closed == [None]


def test_answers_that_a_close_overtakes_fail():
    """They used to be left open for ever when their turn had not come."""
    engines = Gate()
    session = Session(engines, system(), fps="source", sampling=SHORT)
    for frame in frames(2):
        session.push(frame)
    answers = [
        session.submit(question)
        for question in [*_questions(6, Fraction(0)), *_questions(1, Fraction(10**6))]
    ]
    assert engines.reached.wait(20)
    threading.Timer(0.2, engines.opened.set).start()
    session.close()
    assert all(answer.done() for answer in answers)
    assert isinstance(answers[-1].exception(), VicortError)


def _questions(count, at):
    return [Question(ASK, at, sampling=SHORT) for _ in range(count)]


def test_a_source_is_watched_to_its_end_and_only_by_a_new_stream():
    session = shared(fps=2)
    session.watch("testsrc:seconds=3,size=32x24", 0)
    assert session.summary().frames == 6
    with pytest.raises(TimeOrderError):
        session.watch("testsrc:", 0)
    with pytest.raises(ConfigError, match="pace -1"):
        session.watch("testsrc:", -1)
    session.close()


def test_a_frame_that_the_model_does_not_take_is_an_error_with_the_name_of_its_source():
    session = shared(FakeEngineSet(grid=None, max_pixels=256), fps=2)
    spec = "testsrc:seconds=3,size=2000x8"
    with pytest.raises(SourceError, match=f"^{spec}: at 0.000 s, a frame of 2000x8: one side"):
        session.watch(spec, 0)
    session.close()


def test_a_close_ends_a_source_that_is_paced():
    session = shared(fps=2)
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(session.watch, "testsrc:seconds=3600,size=32x24", 0.01)
        threading.Event().wait(0.2)
        session.close()
        assert isinstance(watching.exception(5), SessionClosed)
