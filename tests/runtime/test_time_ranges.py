"""Questions about a part of the stream, against a plain statement: a temporal unit is read only if
its [start, end] overlaps the range, and a policy chooses as if no other unit were in memory."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.every_system import ASK, RANGES, SHORT, SYSTEMS, asked, engines, pictures
from support.sizes import examples

from vicort.runtime.core import Answer, Page, Question, TimeRange
from vicort.runtime.errors import QuestionError
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

# which read every unit that they remember
READ_ALL = ("full-history", "full", "sliding", "timechat-online", "simplestream")
times = st.fractions(0, 30, max_denominator=4)


def overlaps(start, end, since, until):
    """The rule."""
    return not (since is not None and end < since) and not (until is not None and start > until)


@given(
    st.lists(times, unique=True, max_size=40).map(sorted),
    st.none() | times,
    st.none() | times,
)
def test_the_units_of_a_range_are_those_that_overlap_it(moments, since, until):
    units = [
        Page(-1, "vision", 1, 0, 0, *each)
        for each in zip(moments[::2], moments[1::2], strict=False)
    ]
    within = TimeRange(since, until)
    inside = [unit for unit in units if overlaps(unit.start, unit.end, since, until)]
    assert units[within.slice_of(units, lambda unit: unit)] == inside
    assert [unit for unit in units if within.overlaps(unit.start, unit.end)] == inside


def unit_times(ranges, units):
    """Of the stream's units those whose times lie in `ranges`."""
    return [each for each in units if any(s <= each[0] and each[1] <= e for s, e in ranges)]


@pytest.mark.parametrize("name", SYSTEMS)
@settings(max_examples=examples(10), deadline=None)
@given(st.integers(1, 36), st.integers(0, 70), RANGES.filter(bool), st.booleans())
def test_a_limited_question_reads_units_of_its_range_alone(name, count, at, within, overlap):
    """Of those that an unlimited one may read; and all of them, where a system reads all."""
    at = min(at, 2 * (count - 1))
    limited, whole = asked(at, within=within), asked(at)
    options = {"fps": "source", "overlap": overlap, "sampling": SHORT}
    with Session(engines(), SYSTEMS[name], **options) as session:
        futures = [session.submit(each) for each in (limited, whole)]
        for frame in pictures(count):
            session.push(frame)
        session.finish()
        answer, everything = (each.result() for each in futures)
    assert (answer.since, answer.until) == (limited.since, limited.until)
    assert (answer.seen_until, answer.memory_from) == (
        everything.seen_until,
        everything.memory_from,
    )
    # frames are half a second apart, and two of them are a unit, or one alone at the end; in a
    # system that repeats them, each is one
    taken = [Fraction(number, 2) for number in range(count) if Fraction(number, 2) <= answer.at]
    step = 1 if SYSTEMS[name].frames.repeat else 2
    units = [(taken[i], taken[min(i + step, len(taken)) - 1]) for i in range(0, len(taken), step)]
    inside = [each for each in units if overlaps(*each, limited.since, limited.until)]
    read = unit_times(answer.read, units)
    assert set(read) <= set(inside)
    # nothing else lies in what is read
    covered = {moment for s, e in answer.read for moment in taken if s <= moment <= e}
    assert covered == {moment for each in read for moment in each}
    if name in READ_ALL:
        readable = unit_times(everything.read, units)
        assert read == [each for each in inside if each in readable]
    if not inside:
        assert (answer.read, answer.pages, answer.tokens_read) == ((), 0, 0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_range_of_all_time_changes_nothing(name):
    """Neither the answer nor what is read of which memory."""
    results = []
    for since in (None, Fraction(0)):
        with Session(engines(), SYSTEMS[name], sampling=SHORT) as session:
            for frame in pictures(31):
                session.push(frame)
            answer = session.ask(ASK, since=since)
        results.append(
            (answer.text, answer.probability, answer.read, answer.pages, answer.tokens_read)
        )
    assert results[0] == results[1]


@pytest.mark.parametrize(("recent", "read"), [(1, (8, 11)), (2, (4, 11))])
def test_the_recent_chunks_are_the_latest_of_the_range(recent, read):
    """Chunks of four units of half a second, frames a quarter apart."""
    system = load_system("vicostream").with_(
        retrieval={"policy": "similar-chunks", "top": 0, "recent": recent}
    )
    with Session(engines(), system, fps="source", sampling=SHORT) as session:
        for frame in pictures(64):
            session.push(frame)
        answer = session.ask(ASK, until=Fraction(11))
    # seconds 8 to 11: a chunk has 8 frames, so four seconds, of which the last unit begins at 11
    assert answer.read == ((Fraction(read[0]), Fraction(23, 2)),)


def test_nothing_of_the_range_is_remembered():
    with Session(engines(), SYSTEMS["full"], sampling=SHORT) as session:
        for frame in pictures(9):
            session.push(frame)
        answer = session.ask(ASK, since=Fraction(100), until=Fraction(200))
        plain = session.ask(ASK)
    assert answer.read == ()
    assert answer.memory_from == 0
    written = answer.to_json()
    assert (written["read"], written["since"], written["until"]) == ([], 100, 200)
    assert not {"since", "until"} & set(plain.to_json())


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (Fraction(5), Fraction(4), "since 5 s is after its until 4 s"),
        (Fraction(-1), None, "since -1 s is negative"),
        (None, -0.5, "until -0.5 s is negative"),
        ("soon", None, "since 'soon' is no number"),
        (None, float("nan"), "until nan is no number"),
        (True, None, "since True is no number"),
        (10**13, None, "since 10000000000000 is no number"),
    ],
)
def test_ranges_that_are_none_are_refused_before_anything_is_queued(since, until, says):
    with Session(engines(), SYSTEMS["full"], sampling=SHORT) as session:
        with pytest.raises(QuestionError) as refused:
            session.submit(Question(ASK, Fraction(9), since=since, until=until))
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not len(session._questions)


def test_a_range_is_exact():
    """0.1 means one tenth, as the time of a question does."""
    with Session(engines(), SYSTEMS["full"], sampling=SHORT) as session:
        session.push(pictures(1)[0])
        answer = session.ask(ASK, since=0.1, until=0.3)
    assert (answer.since, answer.until) == (Fraction(1, 10), Fraction(3, 10))
    assert isinstance(answer, Answer)


@pytest.mark.parametrize("name", ["streaming-window", "videollm-online"])
def test_text_that_joined_the_stream_is_read_all_the_same(name):
    """A limited question reads no unit, and yet the text of an earlier one."""
    probabilities = []
    for earlier in (False, True):
        with Session(engines(), load_system(name), sampling=SHORT) as session:
            for frame in pictures(9):
                session.push(frame)
            if earlier:
                session.ask("is there a circle?")
            answer = session.ask(ASK, since=Fraction(100))
            assert answer.read == ()
            probabilities.append(answer.probability)
    assert probabilities[0] != probabilities[1]
