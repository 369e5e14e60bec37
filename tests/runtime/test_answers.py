"""Conversations, the tokens of an answer, and what they are chosen by."""

import json
import shutil
from fractions import Fraction
from functools import partial

import pytest
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import FULL, system
from support.transcript import Transcript
from support.whole_streams import ASK, SHORT, answers, question, run

from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.memory.slots import Slots
from vicort.runtime.session import Session


def test_questions_come_back_in_time_order_whatever_order_they_were_given_in():
    events, _ = run(frames(30), [question(at, id=str(at)) for at in (9, 2, 6)], overlap=False)
    assert [a.id for a in answers(events)] == ["2", "6", "9"]


def test_a_conversation_sees_its_earlier_turns_and_others_do_not():
    def second(first, conversation):
        with Session(FakeEngineSet(seed=5), system(**FULL), overlap=False) as session:
            for frame in frames(16):
                session.push(frame)
            session.ask(first, conversation="a", sampling=SHORT)
            return session.ask(
                "what shape was green?", conversation=conversation, sampling=Sampling(max_tokens=20)
            ).text

    assert second("what color was the circle?", "a") != second("what came after the star?", "a")
    assert second("what color was the circle?", None) == second("what came after the star?", None)
    assert second("what color was the circle?", "b") == second("what came after the star?", None)


def test_a_conversation_goes_on_behind_its_earlier_turns_and_all_video():
    engines, video, second = FakeEngineSet(seed=11), frames(60), "what came after the star?"
    with Session(engines, system(**FULL), sampling=SHORT) as session:
        prompt, plain = session.inspect().prompt, None
        kept = session._answerer.conversations
        earlier_turns = partial(kept.turns, Question("", conversation="a"))
        plain = Transcript(engines, prompt.prefix)
        for part, text, earlier in (
            (video[:8], ASK, False),
            (video[8:], second, True),
            ([], ASK, True),
        ):
            for frame in part:
                session.push(frame)
            if part:
                plain.watch(part)
            turns = [(turn.question, turn.text) for turn in earlier_turns()] if earlier else []
            expected = plain.ask(prompt.question(text, turns), 5)
            assert session.ask(text, conversation="a").text == prompt.decode(expected)


def test_questions_leave_nothing_behind():
    with Session(FakeEngineSet(), system(**FULL)) as session:
        for frame in frames(16):
            session.push(frame)
        first = session.ask(ASK, sampling=SHORT)
        pages = session.summary().pages
        again = [session.submit(question(0)) for _ in range(12)]
        assert {answer.result().text for answer in again} == {first.text}
        assert session.summary().pages == pages


def test_a_long_conversation_stays_within_its_pages():
    with Session(FakeEngineSet(layers=1), system(**FULL), overlap=False) as session:
        session.inspect().memory.tiers.conversation_slots = Slots(
            session.inspect().memory.tiers.conversation_slots.all.start, 20
        )
        session.push(frames(1)[0])
        for i in range(12):
            session.ask(ASK, conversation=str(i % 3), sampling=Sampling(max_tokens=12))
        slots = session.inspect().memory.tiers.conversation_slots
        assert slots.count - 6 < slots.live <= slots.count


def test_answers_stream_and_the_pieces_make_the_text():
    pieces = []
    with Session(FakeEngineSet(), system()) as session:
        for frame in frames(8):
            session.push(frame)
        answer = session.ask(ASK, sampling=Sampling(max_tokens=12), on_token=pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1
    assert answer.tokens == 12
    assert answer.ttft_ms > 0


def test_sampling_is_seeded():
    def say(seed):
        with Session(FakeEngineSet(), system(), overlap=False) as session:
            session.push(frames(1)[0])
            return session.ask(
                ASK, sampling=Sampling(temperature=3.0, seed=seed, max_tokens=30)
            ).text

    assert say(1) == say(1)
    assert say(1) != say(2)


def asked_once(engines=None, sampling=SHORT, **options):
    """The answer, and the pieces in which it came, after one chunk."""
    pieces = []
    with Session(engines or FakeEngineSet(), system(), overlap=False, **options) as session:
        for frame in frames(8):
            session.push(frame)
        answer = session.ask(ASK, sampling=sampling, on_token=pieces.append)
    return answer, pieces


@pytest.mark.parametrize("length", [1, 3])
def test_an_answer_ends_before_a_stop_text_which_is_never_streamed(length):
    whole, _ = asked_once(sampling=Sampling(max_tokens=12))
    middle = len(whole.text) // 2
    word = whole.text[middle : middle + length]
    answer, pieces = asked_once(sampling=Sampling(max_tokens=12, stop=("never said", word)))
    assert answer.text == "".join(pieces) == whole.text[: whole.text.index(word)]
    assert answer.tokens < whole.tokens


def test_an_answer_that_begins_with_a_stop_text_is_no_turn_of_its_conversation():
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        session.push(frames(1)[0])
        word = session.ask(ASK, sampling=SHORT).text[:1]
        stop = Sampling(max_tokens=12, stop=(word,))
        assert session.ask(ASK, conversation="a", sampling=stop).text == ""
        assert session.ask(ASK, conversation="a", sampling=SHORT).tokens == 5


def test_the_models_own_sampling_is_taken_where_the_question_says_nothing(tmp_path):
    folder = shutil.copytree(FakeEngineSet().folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 3.0, "repetition_penalty": 1.3})
    )

    def say(**options):
        engines = FakeEngineSet()
        engines.folder = folder
        return asked_once(engines, Sampling(max_tokens=30, **options))[0].text

    plain = asked_once(sampling=Sampling(max_tokens=30))[0].text
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0}
    assert say(**greedy) == plain
    assert say(seed=1) != say(seed=2)
    assert say() == say(temperature=3.0, top_k=50, top_p=1.0, repetition_penalty=1.3)
    assert say(temperature=0.0) != plain  # the penalty is left


def test_the_penalty_counts_the_words_of_the_question():
    """So large a penalty leaves none of them in an answer that says each word once."""
    question = "what color was the circle there now objects last a up left which came first"
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        for frame in frames(8):
            session.push(frame)
        penalised = Sampling(max_tokens=30, repetition_penalty=1000)
        said = session.ask(question, sampling=penalised).text.split()
    assert len(set(said)) == len(said) > 5
    assert not set(said) & set(question.split())


def test_a_system_prompt_comes_first_and_is_counted():
    said = "what color was the circle there now"
    long = Sampling(max_tokens=30)
    plain, changed = (asked_once(sampling=long, system_prompt=text)[0] for text in (None, said))
    assert changed.text != plain.text
    with Session(FakeEngineSet(), system(), overlap=False, system_prompt=said) as session:
        assert len(session.inspect().prompt.prefix) > len(said.split())


def test_a_system_prompt_that_is_too_long_is_refused_with_its_length():
    with pytest.raises(
        ConfigError, match=r"a prompt of \d+ tokens, these engines take 32: shorten"
    ):
        asked_once(system_prompt="circle " * 40)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Question(" "), "empty"),
        (Question("what " * 60), "ask a shorter one"),
        (Question(ASK, Fraction(-1)), "negative"),
        (Question("<|video_pad|>"), "control token"),
        (Question(ASK, sampling=Sampling(max_tokens=10**6)), "room for"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_at_once(bad, words):
    with Session(FakeEngineSet(), system()) as session, pytest.raises(QuestionError, match=words):
        session.submit(bad)
