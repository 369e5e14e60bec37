"""Credits of E.T. Bench, against the same rules in plain words."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.benchmarks.evaluation.event_rules import overlaps, spans_of
from vicort.benchmarks.evaluation.items import Reply
from vicort.benchmarks.evaluation.rules import RULES

# whole seconds and quarters: exact in fp32
PLACE = st.integers(0, 200).map(lambda quarters: quarters / 4)
SPAN = st.tuples(PLACE, PLACE).filter(lambda pair: pair[0] != pair[1]).map(sorted)
SPANS = st.lists(SPAN, min_size=1, max_size=4)


def credit(rule: str, truth, text: str) -> float:
    return RULES[rule](json.dumps(truth), [Reply("x", Fraction(1), text)])


def shared(one, other) -> float:
    """Intersection over union."""
    both = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return both / ((one[1] - one[0]) + (other[1] - other[0]) - both)


def said(spans) -> str:
    return "It was at " + ", ".join(f"{start} - {end} seconds" for start, end in spans)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 2.5 - 4.8 seconds.", [(2.5, 4.8)]),
        ("4.8-2", [(2, 4.8)]),  # in their order
        ("1 - 2, then 5 - 9", [(1, 2), (5, 9)]),
        ("from 3 to 7.5 s", [(3, 7.5)]),
        ("3 to 7, or 1 - 2", [(1, 2)]),  # a hyphen goes before a word
        ("It starts at 3 s.\nIt ends at 8 s.", [(3, 8)]),
        ("It happens from 3.\nIt happens until 8.", [(3, 8)]),
        ("starts at 3, ends at 8", []),  # one sentence has one number
        ("at 3\nat 8", []),  # about no start, end or happening
        ("1..5 - 3", []),
        ("never", []),
        ("", []),
    ],
)
def test_the_spans_of_a_reply(text, spans):
    assert spans_of(text) == spans


@given(right=SPANS, given_=SPANS)
def test_overlaps_are_intersection_over_union(right, given_):
    expected = [[shared(one, other) for other in given_] for one in right]
    assert np.allclose(overlaps(right, given_), expected, atol=1e-6)


def reached(overlap: float) -> float:
    return sum(overlap >= threshold for threshold in (0.1, 0.3, 0.5, 0.7)) / 4


def is_clear(overlap: float) -> bool:
    """Whether fp32 cannot decide otherwise."""
    return all(abs(overlap - threshold) > 1e-6 for threshold in (0.1, 0.3, 0.5, 0.7))


@given(right=SPANS, given_=SPANS)
def test_the_first_span_has_the_share_of_thresholds_that_it_reaches(right, given_):
    single, best = shared(right[0], given_[0]), max(shared(one, given_[0]) for one in right)
    if is_clear(single):
        assert credit("first-span", right[0], said(given_)) == reached(single)
    if is_clear(best):
        assert credit("first-span-of-any", right, said(given_)) == reached(best)


@given(right=SPANS, given_=SPANS)
def test_all_spans_have_an_f1_at_each_threshold(right, given_):
    table = [[shared(one, other) for other in given_] for one in right]
    if not all(is_clear(each) for row in table for each in row):
        return
    scores = []
    for threshold in (0.1, 0.3, 0.5, 0.7):
        found = sum(max(row) >= threshold for row in table) / len(right)
        exact = sum(max(row[n] for row in table) >= threshold for n in range(len(given_)))
        exact /= len(given_)
        scores.append(2 * found * exact / (found + exact) if found + exact else 0)
    assert credit("all-spans", right, said(given_)) == pytest.approx(sum(scores) / 4)


@given(right=SPANS, given_=SPANS)
def test_seconds_in_common_have_an_f1(right, given_):
    one, other = (
        {second for start, end in spans for second in range(round(start), round(end))}
        for spans in (right, given_)
    )
    both = len(one & other)
    f1 = 2 * both / (len(one) + len(other)) if both else 0
    assert credit("seconds-in-common", right, said(given_)) == pytest.approx(f1)


@given(right=SPANS, moment=PLACE)
def test_a_moment_is_right_within_a_span(right, moment):
    inside = any(start <= moment <= end for start, end in right)
    assert credit("moment-within", right, f"at {moment} s, or at 3") == inside


@pytest.mark.parametrize("rule", ["all-spans", "seconds-in-common", "moment-within"])
@pytest.mark.parametrize("text", ["", "never", "I do not know"])
def test_a_reply_without_a_time_has_no_credit(rule, text):
    assert credit(rule, [[1, 2]], text) == 0
    assert credit("first-span", [1, 2], text) == credit("first-span-of-any", [[1, 2]], text) == 0
