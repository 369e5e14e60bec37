"""When alerts fire and clear, against the rule written as a search over all answers."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.alerts.rule import AlertRule, Enough, Hysteresis
from vicort.runtime.errors import ConfigError

TENTHS = st.integers(0, 10).map(lambda tenth: tenth / 10)
ENOUGH = st.integers(1, 4).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of)))


@st.composite
def rules(draw):
    below, above = sorted((draw(st.integers(1, 9)), draw(st.integers(1, 9))))
    return AlertRule(
        above / 10,
        Enough(*draw(ENOUGH)),
        below / 10,
        Enough(*draw(ENOUGH)),
        Fraction(draw(st.integers(0, 6))),
    )


def changes_by_search(rule, answers):
    """(state, index of the answer, indices that were counted), from all answers before each."""
    found = []
    for now, (time, _) in enumerate(answers):
        fired = bool(found) and found[-1][0] == "fired"
        start = found[-1][1] + 1 if found else 0
        enough = rule.clear if fired else rule.fire
        window = list(range(start, now + 1))[-enough.of :]
        if fired:
            hits = [index for index in window if answers[index][1] < rule.below]
        else:
            hits = [index for index in window if answers[index][1] > rule.above]
        firings = [answers[index][0] for state, index, _ in found if state == "fired"]
        cooling = not fired and bool(firings) and time - firings[-1] < rule.cooldown
        if len(hits) >= enough.count and not cooling:
            found.append(("cleared" if fired else "fired", now, window))
    return found


@given(
    rules(),
    st.lists(st.tuples(st.integers(1, 3), TENTHS), max_size=40),
)
def test_it_changes_where_a_search_over_all_answers_says_so(rule, steps):
    answers, time = [], Fraction(0)
    for step, probability in steps:
        time += step
        answers.append((time, probability))
    hysteresis, found = Hysteresis(rule), []
    for index, (at, probability) in enumerate(answers):
        if change := hysteresis.add(at, probability):
            found.append((change.state, index, [tuple(each) for each in change.readings]))
            assert change.at == at
            assert change.probability == probability
        assert hysteresis.fired == (bool(found) and found[-1][0] == "fired")
    assert found == [
        (state, index, [answers[each] for each in window])
        for state, index, window in changes_by_search(rule, answers)
    ]


@given(rules(), st.lists(TENTHS, max_size=30))
def test_changes_take_turns_and_firings_keep_the_cooldown(rule, probabilities):
    hysteresis = Hysteresis(rule)
    changes = [hysteresis.add(Fraction(at), each) for at, each in enumerate(probabilities)]
    found = [each for each in changes if each]
    assert [each.state for each in found] == (["fired", "cleared"] * len(found))[: len(found)]
    fired = [each.at for each in found if each.state == "fired"]
    assert all(later - earlier >= rule.cooldown for earlier, later in pairwise(fired))


def states(rule, probabilities):
    hysteresis = Hysteresis(rule)
    changes = (hysteresis.add(Fraction(at), each) for at, each in enumerate(probabilities))
    return [change and change.state for change in changes]


def test_the_defaults_bear_one_wrong_answer():
    assert states(AlertRule(), [0.1, 0.9, 0.1, 0.1, 0.1]) == [None] * 5
    assert states(AlertRule(), [0.9, 0.1, 0.9]) == [None, None, "fired"]
    assert states(AlertRule(), [0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1]) == [
        None,
        "fired",
        *[None] * 4,
        "cleared",
    ]


def test_a_probability_at_a_threshold_is_neither_above_nor_below():
    rule = AlertRule(0.8, Enough(1, 1), 0.4, Enough(1, 1))
    assert states(rule, [0.8, 0.81, 0.4, 0.39]) == [None, "fired", None, "cleared"]


def test_what_lasts_through_the_cooldown_fires_after_it():
    rule = AlertRule(0.5, Enough(1, 1), 0.5, Enough(1, 1), cooldown=Fraction(4))
    assert states(rule, [1, 0, 1, 1, 1]) == ["fired", "cleared", None, None, "fired"]


def test_an_answer_about_the_same_frames_is_no_new_evidence():
    hysteresis = Hysteresis(AlertRule())
    assert hysteresis.add(Fraction(1), 0.9) is None
    assert hysteresis.add(Fraction(1), 0.9) is None
    assert hysteresis.add(Fraction(1, 2), 0.9) is None
    assert hysteresis.add(Fraction(2), 0.9).state == "fired"


@given(
    rules(),
    st.fractions(Fraction(1, 20), 20, max_denominator=20),
    st.lists(st.tuples(st.sampled_from([1, 2, 7, 40, 300]), TENTHS), max_size=30),
)
def test_answers_from_before_a_gap_are_not_counted(rule, period, steps):
    """Each change, against a search over the answers that are near enough."""
    hysteresis = Hysteresis(rule, period=period)
    answers, at, start, fired = [], Fraction(0), 0, False
    firings = []
    for number, (step, probability) in enumerate(steps):
        at += step
        answers.append((at, probability))
        enough = rule.clear if fired else rule.fire
        oldest = at - enough.of * max(2 * period, 10)
        near = [each for each in answers[start:][-enough.of :] if each[0] >= oldest]
        hits = [each for _, each in near if (each < rule.below if fired else each > rule.above)]
        cooling = not fired and firings and at - firings[-1] < rule.cooldown
        change = hysteresis.add(at, probability)
        assert bool(change) == (len(hits) >= enough.count and not cooling)
        if change:
            assert [tuple(each) for each in change.readings] == near
            fired, start = not fired, number + 1
            firings += [at] if fired else []


def test_two_answers_of_two_days_do_not_fire():
    hysteresis = Hysteresis(AlertRule(), period=Fraction(1))
    assert hysteresis.add(Fraction(1), 0.9) is None
    assert hysteresis.add(Fraction(86_400), 0.9) is None
    assert hysteresis.add(Fraction(86_409), 0.9).state == "fired", "a slow answer still counts"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"above": 1.0}, "fire above 1: give a probability from 0 to less than 1"),
        ({"above": float("nan")}, "fire above nan: give"),
        ({"below": 0.0}, "clear below 0: give a probability above 0"),
        ({"below": 0.9}, "clear below 0.9 is more than fire above 0.8"),
        ({"fire": Enough(3, 2)}, "fire for 3 of 2: give N of M"),
        ({"clear": Enough(0, 2)}, "clear for 0 of 2: give N of M"),
        ({"clear": Enough(1, 5000)}, "clear for 1 of 5000: give N of M"),
        ({"cooldown": Fraction(-1)}, "cooldown -1 s is negative"),
    ],
)
def test_values_that_are_not_allowed(values, line):
    with pytest.raises(ConfigError) as refused:
        AlertRule(**values)
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match="is no probability"):
        Hysteresis(AlertRule()).add(Fraction(0), probability)
