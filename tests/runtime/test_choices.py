"""Questions with choices: exact probabilities, in every system, alone and as a batch."""

import math
from concurrent.futures import CancelledError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.every_system import SYSTEMS, asked, engines, pictures
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, system
from support.transcript import Transcript

from vicort.runtime.core import Constraint, Question, Sampling
from vicort.runtime.errors import QuestionError
from vicort.runtime.session import Session

WORDS = ("red", "blue", "circle", "square", "and", "nothing", "yes", "no")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
CHOICES = st.lists(TEXTS, min_size=1, max_size=6, unique=True).map(tuple)
ENDS = (7, 11)  # end tokens of the toy model, wherever they mean something else
ASKED = ("what color was the circle?", "was there a star?", "what is there now?")


def toy():
    return engines(eos_tokens=ENDS, vocabulary=120)


def choosing(at, text, choices, **changes):
    return Question(text, at, constraint=Constraint(choices=choices), **changes)


def plain(video, text, choices):
    """(choice -> probability, probability of all other texts) by one pass over everything for each
    token."""
    model = toy()
    with Session(model, system(**FULL)) as session:
        prompt = session.inspect().prompt
    chances = []
    for choice in choices:
        transcript, chance = Transcript(model, prompt.prefix), 1.0
        transcript.watch(video)
        transcript.say(prompt.question(text))
        for token in prompt.words(choice):
            chance *= transcript.chances()[token]
            transcript.say([token])
        chances.append(chance * sum(transcript.chances()[end] for end in ENDS))
    total = math.fsum(chances)
    shares = {choice: chance / total for choice, chance in zip(choices, chances, strict=True)}
    return shares, 1 - total


def answers(chosen, video, questions):
    with Session(toy(), chosen) as session:
        futures = [session.submit(question) for question in questions]
        for frame in video:
            session.push(frame)
        session.finish()
        return [future.result() for future in futures]


@settings(max_examples=examples(8), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ASKED), CHOICES), min_size=1, max_size=5))
def test_choices_have_the_probabilities_of_their_texts(asked_of):
    video = frames(6)
    for answer, (text, choices) in zip(
        answers(system(**FULL), video, [choosing(None, *each) for each in asked_of]),
        asked_of,
        strict=True,
    ):
        shares, outside = plain(video, text, choices)
        assert answer.choices == pytest.approx(shares, rel=1e-3)
        assert answer.outside == pytest.approx(outside, abs=1e-6)
        assert answer.text == max(answer.choices, key=answer.choices.get)
        assert answer.complete
        assert answer.read == ((video[0].time, video[-1].time),)


def said(answer):
    shares = tuple(answer.choices.items())
    return answer.read, answer.pages, answer.tokens_read, answer.seen_until, shares, answer.outside


def alike(one, other):
    assert one.choices == pytest.approx(other.choices, rel=1e-4, abs=1e-9)
    assert one.outside == pytest.approx(other.outside, rel=1e-4, abs=1e-9)
    assert one.probability == pytest.approx(other.probability, rel=1e-4)
    assert one.first_probability == pytest.approx(other.first_probability, rel=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_batch_is_its_questions_alone_and_the_first_turn_of_a_conversation(name):
    """The first turn of a conversation is run in two steps, in pages of its own."""
    video, at = pictures(31), Fraction(29, 2)
    choices = (("red", "blue", "red circle"), ("yes", "no"), ("yes", "no", "no and red"))
    questions = [choosing(at, *each) for each in zip(ASKED, choices, strict=True)]
    together = answers(SYSTEMS[name], video, questions)
    for number, question in enumerate(questions):
        (alone,) = answers(SYSTEMS[name], video, [question])
        turn = choosing(at, question.text, choices[number], conversation="a")
        (first,) = answers(SYSTEMS[name], video, [turn])
        alike(together[number], alone)
        assert said(together[number])[:4] == said(alone)[:4]
        alike(together[number], first)


def test_questions_about_one_moment_are_one_run():
    model, video = toy(), frames(9)
    with Session(model, system(**FULL)) as session:
        for frame in video:
            session.push(frame)
        session.settle()
        for count in (1, 2, 3):
            before = len(model.llm.runs)
            at = session.now + Fraction(1, 8)
            futures = [
                session.submit(choosing(at, ASKED[number], ("yes", "no")))
                for number in range(count)
            ]
            session.wants(at + Fraction(1, 100))
            for future in futures:
                future.result()
            runs = model.llm.runs[before:]
            forks = 1 if count == 1 else 0  # of the open chunk, which the next questions share
            assert len(runs) == 1 + forks, runs


def test_more_questions_than_a_run_holds_are_several():
    video, choices = frames(9), ("yes", "no", "red circle and blue square")
    questions = [choosing(None, ASKED[number % 3], choices) for number in range(40)]
    given = answers(system(**FULL), video, questions)
    for number, answer in enumerate(given):
        alike(answer, given[number % 3])


def test_a_later_turn_sees_the_choice_that_was_given():
    def second(first_choices):
        turns = [
            choosing(None, ASKED[0], first_choices, conversation="a"),
            choosing(None, ASKED[1], ("yes", "no"), conversation="a"),
        ]
        return answers(system(**FULL), frames(9), turns)[1].choices["yes"]

    assert second(("red",)) == second(("red",))
    assert second(("red",)) != second(("blue",))


def test_choices_are_drawn_by_temperature_and_seed():
    def texts(temperature, seeds):
        questions = [
            choosing(None, ASKED[0], ("red", "blue"), sampling=Sampling(temperature, seed=seed))
            for seed in seeds
        ]
        return [answer.text for answer in answers(system(**FULL), frames(3), questions)]

    assert len(set(texts(0.0, range(20)))) == 1
    assert texts(300.0, range(20)) == texts(300.0, range(20))
    assert set(texts(300.0, range(20))) == {"red", "blue"}


def test_a_cancelled_question_leaves_its_batch():
    with Session(toy(), system(**FULL)) as session:
        futures = [session.submit(choosing(Fraction(2), each, ("yes", "no"))) for each in ASKED]
        futures[1].cancel()
        for frame in frames(9):
            session.push(frame)
        session.finish()
        with pytest.raises(CancelledError):
            futures[1].result()
        assert futures[0].result().choices
        assert futures[2].result().choices


def test_what_an_asker_does_with_his_answer_does_not_reach_the_others():
    def fails(future):
        raise SystemExit

    with Session(toy(), system(**FULL)) as session:
        futures = [session.submit(choosing(Fraction(2), each, ("yes", "no"))) for each in ASKED]
        for frame in frames(3):
            session.push(frame)
        futures[0].add_done_callback(fails)
        session.push(frames(9)[8])
        session.finish()
        assert futures[2].result().choices


def test_a_choice_that_is_too_long_is_refused_at_once():
    long = choosing(None, ASKED[0], ("red", " ".join(["red"] * 40)))
    refused = pytest.raises(QuestionError, match=r"'red red .* has 40 tokens, at most 32")
    with Session(toy(), system(**FULL)) as session, refused:
        session.submit(long)


def test_answers_say_nothing_of_choices_that_were_not_asked_for():
    (answer,) = answers(system(**FULL), frames(9), [asked(8)])
    assert answer.choices is None
    assert not {"choices", "outside", "logprobs"} & set(answer.to_json())


@pytest.mark.parametrize("overlap", [True, False])
def test_the_twin_gives_the_same_choices(overlap):
    with Session(toy(), system(**FULL), overlap=overlap) as session:
        futures = [session.submit(choosing(Fraction(2), each, ("yes", "no"))) for each in ASKED]
        for frame in frames(9):
            session.push(frame)
        session.finish()
        given = [future.result().choices["yes"] for future in futures]
    expected = answers(
        system(**FULL), frames(9), [choosing(Fraction(2), each, ("yes", "no")) for each in ASKED]
    )
    np.testing.assert_allclose(given, [answer.choices["yes"] for answer in expected], rtol=1e-6)


def test_questions_of_one_call_are_one_run_even_where_their_time_has_passed():
    model = toy()
    with Session(model, system(**FULL)) as session:
        for frame in frames(9):
            session.push(frame)
        session.settle()
        before = len(model.llm.runs)
        futures = session.submit_all([choosing(Fraction(1), each, ("yes", "no")) for each in ASKED])
        given = [future.result() for future in futures]
        assert len(model.llm.runs) - before == 2  # one is of the open chunk's fork
    assert {answer.requested for answer in given} == {Fraction(1)}
    assert {answer.at for answer in given} == {frames(9)[8].time}


def test_of_several_questions_all_are_asked_or_none():
    with Session(toy(), system(**FULL), max_questions=2) as session:
        good = choosing(None, ASKED[0], ("yes", "no"))
        with pytest.raises(QuestionError, match=r"0 questions wait .* at most 2 may"):
            session.submit_all([good] * 3)
        with pytest.raises(QuestionError):
            session.submit_all([good, choosing(None, " ", ("yes", "no"))])
        futures = session.submit_all([good, good])
        session.push(frames(1)[0])
        session.finish()
        assert [future.result().id for future in futures] == ["q6", "q7"]


@pytest.mark.parametrize("conversation", [None, "a"])
def test_the_choice_is_given_out_as_one_piece(conversation):
    pieces = []
    with Session(toy(), system(**FULL)) as session:
        session.push(frames(1)[0])
        question = choosing(session.now, ASKED[0], ("yes", "no"), conversation=conversation)
        answer = session.submit(question, pieces.append).result()
    assert pieces == [answer.text]


def test_a_question_that_fails_is_the_only_one_of_its_moment_that_does(monkeypatch):
    with Session(toy(), system(**FULL)) as session:
        take = session._answerer._snapshot_in_stream

        def some(question, *rest):
            if question.text == ASKED[1]:
                raise RuntimeError("no snapshot")
            return take(question, *rest)

        monkeypatch.setattr(session._answerer, "_snapshot_in_stream", some)
        futures = session.submit_all(
            [choosing(Fraction(2), each, ("yes", "no")) for each in (*ASKED, ASKED[0])]
        )
        for frame in frames(9):
            session.push(frame)
        session.finish()
        with pytest.raises(RuntimeError, match="no snapshot"):
            futures[1].result()
        assert all(futures[number].result().choices for number in (0, 2, 3))
        assert session.inspect().memory.tiers.scratch_slots.live == 0


def test_what_a_batch_read_is_free_when_its_answers_are_given():
    leased = []
    with Session(toy(), system(**FULL)) as session:
        slots = session.inspect().memory.tiers.stream_slots
        future = session.submit(choosing(Fraction(2), ASKED[0], ("yes", "no")))
        future.add_done_callback(lambda done: leased.append(dict(slots._leases)))
        for frame in frames(9):
            session.push(frame)
        session.finish()
    assert leased == [{}]


def test_a_question_that_is_cancelled_while_its_batch_runs_has_no_answer():
    given, futures = [], []

    def note(event):
        if event.name == "answer":
            given.append(event.id)
            futures[1].cancel()

    with Session(toy(), system(**FULL), on_event=note) as session:
        futures += session.submit_all(
            [choosing(Fraction(2), each, ("yes", "no"), id=each[-7:]) for each in ASKED]
        )
        for frame in frames(9):
            session.push(frame)
        session.finish()
        assert futures[2].result().choices
    assert given == [ASKED[0][-7:], ASKED[2][-7:]]
