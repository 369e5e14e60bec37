"""A doubtful question is run again over more of memory, before anything of its answer is given
out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.every_system import DROPPING, SHORT, asked, engines, pictures
from support.sizes import examples
from support.systems import system

from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.retrieval import DistinctChunks
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

ROOMY = "{device_mb: 4, when_full: drop-oldest}"
SPILLING = "{device_mb: 0.91, host_mb: 0.3, when_full: drop-oldest}"


def reading(units, again=None, **sections):
    again = f", again: {again}" if again else ""
    retrieval = f"{{policy: distinct-chunks, units: {units}{again}}}"
    return system(retrieval=retrieval, **{"drop": DROPPING, "memory": ROOMY} | sections)


def answers(chosen, count, questions):
    """Of questions about a stream, each with what was given out of it."""
    with Session(engines(), chosen, sampling=SHORT) as session:
        given = [[] for _ in questions]
        futures = [
            session.submit(asked(*each), on_token=pieces.append)
            for each, pieces in zip(questions, given, strict=True)
        ]
        for frame in pictures(count):
            session.push(frame)
        session.finish()
        return [
            (future.result(), "".join(pieces))
            for future, pieces in zip(futures, given, strict=True)
        ]


def shown(answer):
    return answer.text, answer.probability, answer.read, answer.tokens_read, answer.pages


QUESTIONS = st.lists(
    st.tuples(st.integers(200, 360), st.sampled_from([None, "a"])), min_size=2, max_size=6
)


@settings(max_examples=examples(40), deadline=None)
@given(
    st.integers(9, 60), st.lists(st.integers(0, 110), min_size=1, max_size=4), st.floats(0.01, 1)
)
def test_only_a_doubtful_question_is_answered_from_more(count, times, below):
    questions = [(at,) for at in times if at <= 2 * (count - 1)]
    narrow, wide, again = (
        answers(chosen, count, questions)
        for chosen in (
            reading(4),
            reading(9),
            reading(4, f"{{units: 9, below: {below}}}"),
        )
    )
    for (first, _), (second, _), (found, pieces) in zip(narrow, wide, again, strict=True):
        doubtful = first.first_probability < below and first.read != second.read
        assert shown(found) == shown(second if doubtful else first)
        assert found.asked_again == doubtful == ("asked_again" in found.to_json())
        assert pieces == found.text


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(130, 180), QUESTIONS)
def test_the_second_run_reads_the_host_too_and_follows_conversations(count, questions):
    """As a system does that reads as much at once."""
    questions = [each for each in questions if each[0] <= 2 * (count - 1)]
    wide, again = (
        answers(chosen, count, questions)
        for chosen in (
            reading(9, drop="{policy: none}", memory=SPILLING),
            reading(4, "{units: 9, below: 1}", drop="{policy: none}", memory=SPILLING),
        )
    )
    assert [shown(each) for each, _ in again] == [shown(each) for each, _ in wide]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 80))
def test_with_little_memory_both_runs_read_what_fits(first, more, units):
    policy = DistinctChunks(units=first, recent=0, again={"units": first + more, "below": 0.5})
    limited = policy.limited(units, 8)
    assert limited.units == min(first, units)
    assert limited.max_units(8) == limited.wider().units == min(first + more, units)
    assert (limited.again is None) == (units <= first)


def test_a_second_run_over_no_more_is_refused():
    with pytest.raises(ConfigError, match=r"again\.units 32 is not more than the"):
        load_system("distinct").with_(retrieval={"units": 48, "again": {"units": 32, "below": 0.9}})
