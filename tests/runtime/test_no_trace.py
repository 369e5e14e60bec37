"""A question leaves no trace: what the stream remembers and answers later is the same without it.

And a question about a moment gets the answer of a stream that ends then.
"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.every_system import ASK, RANGES, SHORT, SYSTEMS, asked, engines, pictures
from support.remembered import remembered
from support.sizes import examples

from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

# which read the same whether a chunk is full or not, until something is evicted
ALIKE = (
    "timechat-online",
    "distinct",
    "full-history",
    "simplestream",
    "uniform",
    "vicostream",
    "full",
)


def streamed(engines, chosen, count, questions, overlap, fps=None):
    """What is remembered at the end of a stream, its last answer, and the answers before."""
    with Session(engines, chosen, fps=fps, overlap=overlap, sampling=SHORT) as session:
        futures = [session.submit(each) for each in questions]
        for frame in pictures(count):
            session.push(frame)
        session.finish()
        answers = [each.result() for each in futures]
        state = remembered(session)
        last = session.ask(ASK)
        values = (last.text, last.probability, last.first_probability, last.read, last.tokens_read)
        return state, values, answers


@pytest.mark.parametrize("name", SYSTEMS)
@settings(max_examples=examples(30), deadline=None)
@given(
    st.integers(1, 36),
    st.lists(
        st.tuples(st.integers(0, 70), st.sampled_from([None, "a"]), RANGES), min_size=1, max_size=6
    ),
    st.booleans(),
    st.sampled_from([60, 1 << 20]),
)
def test_questions_leave_no_trace(name, count, questions, overlap, positions):
    """Whatever their number, times, ranges and conversations, also where time is re-based. A
    question after the end is left out: until then the last picture stays on the screen."""
    chosen, questions = SYSTEMS[name], [each for each in questions if each[0] <= 2 * (count - 1)]
    if chosen.overflow.refuses:
        positions = 1 << 20
    toy = engines(max_position=positions)
    plain, with_questions = (
        streamed(toy, chosen, count, each, overlap)[:2]
        for each in ([], [asked(*question) for question in questions])
    )
    assert with_questions == plain


@pytest.mark.parametrize("name", ALIKE)
@settings(max_examples=examples(30), deadline=None)
@given(st.integers(2, 30), st.lists(st.integers(0, 60), max_size=3), st.booleans())
def test_a_question_gets_the_answer_of_a_stream_that_ends_then(name, count, earlier, overlap):
    chosen, toy = SYSTEMS[name], engines()
    at = 2 * (count - 1)
    more = [asked(each) for each in earlier if each <= at]
    *_, answers = streamed(toy, chosen, count + 9, [*more, asked(at)], overlap, "source")
    _, (*values, read, tokens_read), _ = streamed(toy, chosen, count, [], overlap, "source")
    answer = answers[-1]
    assert [answer.text, answer.probability, answer.first_probability] == values
    assert (answer.read, answer.tokens_read) == (read, tokens_read)
    assert answer.seen_until == Fraction(count - 1, 2)


@pytest.mark.parametrize("name", known_systems())
def test_every_system_sees_the_newest_frame(name):
    """Also where it is half a unit, and again after a question at the same moment."""
    with Session(engines(), load_system(name), fps="source", sampling=SHORT) as session:
        for number, frame in enumerate(pictures(11)):
            session.push(frame)
            answers = [session.ask(ASK) for _ in range(1 + number % 2)]
            assert {answer.seen_until for answer in answers} == {frame.time}
            if name != "timechat-online":  # which keeps nothing of a picture that has not changed
                assert answers[-1].read[-1][1] == frame.time


@pytest.mark.parametrize("name", ["distinct", "codecflow"])
def test_questions_leave_no_trace_in_the_embedded_model(name, tiny_engines):
    """Units that the vision engine encodes alone, for questions, are those of the whole chunk."""
    times = [3, 10, 11, 26, 26, 41]
    with EngineSet.open(tiny_engines) as opened:
        plain, with_questions = (
            streamed(opened, load_system(name), 44, [asked(at) for at in each], overlap=True)[:2]
            for each in ([], times)
        )
    assert with_questions == plain
