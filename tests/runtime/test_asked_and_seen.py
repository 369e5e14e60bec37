"""When a question was asked, what it saw, and why an answer is empty, on a toy model in NumPy."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime.core import Question, Sampling
from vicort.runtime.session import Session

ASK = "what color was the circle?"
SHORT = Sampling(max_tokens=3)
STEPS = st.lists(st.none() | st.integers(0, 30), max_size=25)  # a frame, or a question about then


def asked(at):
    return Question(ASK, Fraction(at, 4), sampling=SHORT)


@settings(max_examples=examples(40), deadline=None)
@given(STEPS, STEPS, st.booleans(), st.sampled_from(["complete", "now"]))
def test_an_answer_says_when_it_was_asked(before, after, overlap, freshness):
    """The rule: a question about a time that the stream has passed is asked at the newest frame,
    and names its own time as requested; no question sees a frame after its time."""
    fed, expected = iter(frames(len(before) + 1)), []
    options = {"overlap": overlap, "freshness": freshness, "fps": "source"}
    with Session(FakeEngineSet(layers=1), system(**FULL), **options) as session:
        newest = None
        for step in before:
            if step is None:
                frame = next(fed)
                newest = frame.time
                session.push(frame)
            else:
                expected.append((newest, session.submit(asked(step))))
        session.finish()
        answers = [
            (Fraction(step, 4), now, future.result())
            for step, (now, future) in zip(
                (each for each in before if each is not None), expected, strict=True
            )
        ]
        for step in after:
            if step is not None:
                answers.append((Fraction(step, 4), newest, session.submit(asked(step)).result()))
    for own, now, answer in answers:
        assert answer.at == max(own, now or 0)
        assert answer.requested == (own if now is not None and own < now else None)
        assert ("requested" in answer.to_json()) == (answer.requested is not None)
        if answer.seen_until is None:
            assert answer.read == ()
            assert now is None
        else:
            assert answer.seen_until <= answer.at
            assert answer.read


def test_what_saw_nothing_says_so():
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        nothing = session.ask(ASK, sampling=SHORT)
        session.push(frames(1)[0])
        first = session.ask(ASK, sampling=SHORT)
    assert (nothing.at, nothing.seen_until, nothing.read, nothing.memory_from) == (
        0,
        None,
        (),
        None,
    )
    assert nothing.to_json()["seen_until"] is None
    assert (first.seen_until, first.read) == (0, ((0, 0),))


def test_a_question_before_the_first_frame_sees_none():
    """Which comes at 1 s here."""
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        futures = [session.submit(asked(quarters)) for quarters in (0, 3, 4)]
        for frame in frames(4, start=2):
            session.push(frame)
        session.finish()
        answers = [each.result() for each in futures]
    assert [each.at for each in answers] == [0, Fraction(3, 4), 1]
    assert [each.seen_until for each in answers] == [None, None, 1]
    assert [each.read for each in answers] == [(), (), ((1, 1),)]


@pytest.mark.parametrize("why", ["ended-at-once", "stop-text", "no-text", None])
def test_an_empty_answer_says_why(why, monkeypatch):
    with Session(FakeEngineSet(eos_tokens=(3,)), system(), overlap=False) as session:
        session.push(frames(1)[0])
        sampling = SHORT
        if why == "ended-at-once":
            ends = session.model.eos_tokens[0]
            monkeypatch.setattr("vicort.runtime.answer_run.TokenChoice.choose", lambda *words: ends)
        elif why == "stop-text":
            word = session.ask(ASK, sampling=SHORT).text[:1]
            sampling = Sampling(max_tokens=12, stop=(word,))
        elif why == "no-text":
            monkeypatch.setattr("vicort.runtime.answer_run.TextStream.add", lambda *words: "")
            monkeypatch.setattr("vicort.runtime.answer_run.TextStream.finish", lambda *words: "")
        answer = session.ask(ASK, sampling=sampling)
    assert answer.empty == why
    assert (answer.text == "") == (why is not None)
    assert (answer.tokens == 0) == (why == "ended-at-once")
    assert answer.to_json().get("empty") == why
