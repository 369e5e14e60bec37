"""Answers with a constraint, from a question to its event, on a toy model that knows bytes."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from support.byte_tokenizer import VIDEO, WIDTH, save_byte_tokenizer
from support.every_system import SYSTEMS
from support.fake_engines import FakeEngineSet
from support.plain_schema import obeys
from support.shared import once
from support.sizes import slow
from support.streams import frames
from support.systems import FULL, system
from tokenizers import Tokenizer

from vicort.runtime.core import Constraint, Question, Sampling
from vicort.runtime.errors import QuestionError
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

ASK = "what is there?"
END = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "a": {"type": "array", "items": {"type": "null"}, "minItems": 0, "maxItems": 1},
    },
    "required": ["n", "a"],
    "additionalProperties": False,
}
AS_JSON = Constraint(json_schema=json.dumps(SCHEMA))
LONG = Sampling(max_tokens=100)


def engines(ends=(END,), **changes):
    folder = once("byte-tokenizer", save_byte_tokenizer)
    video = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(VIDEO)
    made = FakeEngineSet(
        seed=3, vocabulary=WIDTH, video_token=video, eos_tokens=ends, **{"max_rows": 64} | changes
    )
    made.folder = folder
    return made


def session(chosen=None, overlap=True, **changes):
    opened = Session(engines(**changes), chosen or system(**FULL), overlap=overlap, sampling=LONG)
    for frame in frames(12):
        opened.push(frame)
    return opened


def joining():
    return load_system("full-history").with_(text={"joins": True})


QUICK = ("full", "distinct", "freekv", "rekv")


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in SYSTEMS if name not in QUICK))])
def test_every_system_gives_json_that_obeys_its_schema(name):
    with session(SYSTEMS[name], overlap=name != "full") as stream:
        sampled = replace(LONG, temperature=1.0, seed=4)
        greedy = [stream.ask(ASK, constraint=AS_JSON, conversation="a") for _ in range(2)]
        for answer in [*greedy, stream.ask(ASK, constraint=AS_JSON, sampling=sampled)]:
            assert answer.complete
            assert obeys(json.loads(answer.text), SCHEMA)


def test_text_that_joins_the_stream_is_limited_too():
    with session(joining()) as stream:
        answers = [stream.ask(ASK, constraint=AS_JSON) for _ in range(2)]
        stream.push(frames(1, start=20)[0])
        assert all(obeys(json.loads(answer.text), SCHEMA) for answer in answers)


def test_the_overlapped_stream_and_its_twin_answer_alike():
    answers = []
    for overlap in (True, False):
        with session(overlap=overlap) as stream:
            answer = stream.ask(ASK, constraint=AS_JSON, logprobs=3)
            answers.append((answer.text, answer.probability, answer.logprobs))
    assert answers[0] == answers[1]


def test_the_pieces_of_an_answer_are_its_text():
    with session() as stream:
        pieces = []
        answer = stream.ask(ASK, constraint=AS_JSON, on_token=pieces.append)
        assert "".join(pieces) == answer.text


def test_an_answer_that_can_only_end_takes_no_run_more():
    """Logits are made for each of its tokens, and not for its end."""
    with session() as stream:
        head = stream._answerer.engines.head
        before = len(head.runs)
        answer = stream.ask(ASK, constraint=Constraint(regex="yes"))
        assert answer.complete
        assert len(head.runs) - before == answer.tokens


@pytest.mark.parametrize(
    ("regex", "sampling", "complete", "text"),
    [
        ("yes", Sampling(max_tokens=1), None, None),
        ("abc", Sampling(max_tokens=1), False, None),
        ("abc", Sampling(max_tokens=3), True, "abc"),
        ("abc", Sampling(max_tokens=50, stop=("b",)), False, "a"),
        ("a{1000}", Sampling(max_tokens=10), False, None),
    ],
)
def test_an_answer_is_complete_where_it_fulfils_its_constraint(regex, sampling, complete, text):
    with session() as stream:
        answer = stream.ask(ASK, constraint=Constraint(regex=regex), sampling=sampling)
        if complete is None:
            complete = answer.text == regex
        assert answer.complete is complete
        assert text is None or answer.text == text
        assert answer.to_json()["complete"] is complete


def test_a_free_answer_is_complete_where_it_ends_itself():
    everything = tuple(range(WIDTH))
    with session(ends=everything) as stream:
        assert stream.ask(ASK).complete
    with session(ends=()) as stream:
        answer = stream.ask(ASK, sampling=Sampling(max_tokens=6))
        assert not answer.complete
        assert answer.tokens == 6
        stop = Sampling(max_tokens=6, stop=(answer.text[1],))
        assert stream.ask(ASK, sampling=stop).complete


def test_probabilities_are_those_before_the_constraint():
    """As a free answer's first token has them."""
    with session() as stream:
        free = stream.ask(ASK, logprobs=20)
        ranked = dict(free.logprobs[0].top)
        limited = stream.ask(ASK, constraint=Constraint(regex="[a-z]"), logprobs=20)
        assert dict(limited.logprobs[0].top) == ranked
        assert limited.first_probability == pytest.approx(
            math.exp(limited.logprobs[0].logprob), rel=1e-5
        )
        assert limited.first_probability < free.first_probability
        every = [each.logprob for each in free.logprobs]
        assert free.probability == pytest.approx(math.exp(np.mean(every)), rel=1e-5)


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_each_token_is_reported_with_its_alternatives(alternatives):
    with session() as stream:
        answer = stream.ask(ASK, sampling=Sampling(max_tokens=6), logprobs=alternatives)
        assert len(answer.logprobs) == answer.tokens
        for each in answer.logprobs:
            logs = [log for _, log in each.top]
            assert len(logs) == alternatives
            assert logs == sorted(logs, reverse=True)
            assert all(log < 1e-6 for log in logs)
            assert not logs or each.logprob == logs[0]  # greedy
            assert not logs or each.token == each.top[0][0]
        written = json.loads(json.dumps(answer.to_json()))["logprobs"]
        assert len(written) == answer.tokens
        assert set(written[0]) == {"token", "logprob", "top"}
        assert stream.ask(ASK, sampling=Sampling(max_tokens=6)).logprobs == ()
        assert "logprobs" not in stream.ask(ASK, sampling=Sampling(max_tokens=6)).to_json()


@pytest.mark.parametrize("alternatives", [-1, 21, True, 1.5, "3"])
def test_a_number_of_alternatives_that_is_none_is_refused(alternatives):
    with session() as stream, pytest.raises(QuestionError, match="0 to 20"):
        stream.ask(ASK, logprobs=alternatives)


def test_choices_have_no_logprobs():
    with session() as stream, pytest.raises(QuestionError, match="no logprobs"):
        stream.ask(ASK, constraint=Constraint(["no", "yes"]), logprobs=1)


def test_a_bad_constraint_is_refused_before_the_question_waits():
    with session() as stream:
        question = Question(ASK, Fraction(1000), constraint=Constraint(regex="("))
        with pytest.raises(QuestionError, match="unclosed"):
            stream.submit(question)


def test_pieces_for_an_event_loop_are_limited_too():
    import asyncio

    async def ask(stream):
        return [piece async for piece in stream.ask_stream(ASK, constraint=AS_JSON)]

    with session() as stream:
        assert obeys(json.loads("".join(asyncio.run(ask(stream)))), SCHEMA)
