"""The gate of an alert: what is asked, and what counts where it was closed."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.alerts.alert_asker import AlertAsker
from vicort.runtime.alerts.alert_file import parse_alerts
from vicort.runtime.alerts.rule import Hysteresis
from vicort.runtime.core import Answer, AskGate
from vicort.runtime.errors import ConfigError


def alert(gate, more=""):
    (entry,) = parse_alerts(
        "streams: {front: {url: a.mp4}}\nalerts: [{name: circle, question: was there a circle, "
        f"gate: {gate}{more}}}]",
        "a.yaml",
    ).alerts
    return entry


def answer(question, yes):
    """yes: its probability; None = its gate was closed."""
    return Answer(
        question.id,
        question.at,
        question.at,
        question.text,
        "" if yes is None else "yes",
        1.0,
        1,
        () if yes is None else ((Fraction(0), question.at),),
        1,
        1,
        None,
        empty="unchanged" if yes is None else None,
        choices=None if yes is None else {"yes": yes, "no": 1 - yes},
    )


CHANCES = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=40)


@given(CHANCES, st.sampled_from(["{changed: true}", "{like: 0.1}", "{changed: true, like: 0.1}"]))
def test_where_the_gate_was_closed_the_answer_before_counts_again(chances, gate):
    asker = AlertAsker(alert(gate))
    rule, last, closed = Hysteresis(asker.entry.rule), None, 0
    for number, yes in enumerate(chances, 1):
        question = asker.next_question(Fraction(number - 1))
        is_low = last is not None and last < asker.entry.clear.below and not rule.fired
        like = 0.1 if "like" in gate and is_low else None
        assert question.gate == AskGate("changed" in gate, like, "circle")
        counted = asker.counted(answer(question, yes))
        closed += yes is None
        last = last if yes is None else yes
        expected = None if last is None else rule.add(question.at, last)
        assert asker.weigh(counted) == expected
        if last is not None:
            assert counted.choices["yes"] == last
            assert counted.read
    counts = asker.counts()
    assert (counts["asked"], counts["saved"]) == (len(chances) - closed, closed)


def test_an_alert_without_a_gate_asks_always():
    asker = AlertAsker(alert("null"))
    assert asker.next_question(Fraction(0)).gate is None
    assert "saved" not in asker.counts()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("{}", "gate is empty: give changed: true, like: 0.1 or both"),
        ("{like: 2}", "like"),
        ("{like: often}", "like"),
        ("{changes: true}", "changes"),
    ],
)
def test_a_gate_that_says_nothing_is_refused(gate, message):
    with pytest.raises(ConfigError, match=message) as error:
        alert(gate)
    assert "\n" not in str(error.value)
