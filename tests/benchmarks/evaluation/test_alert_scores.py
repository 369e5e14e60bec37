"""How firings are matched with what was visible, against every possible assignment."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicort.benchmarks.evaluation.alert_readings import Readings, Standing
from vicort.benchmarks.evaluation.alert_scores import AlertScore, match, together
from vicort.benchmarks.evaluation.alert_streams import make_alert_stream
from vicort.benchmarks.evaluation.alert_tuning import HeardStream, TriedRule, best, choose, rules
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.world import SHAPES
from vicort.runtime.alerts.rule import AlertRule, Enough, Hysteresis

STRETCHES = st.lists(st.integers(0, 40), max_size=8, unique=True).map(
    lambda borders: list(zip(*[iter(sorted(borders))] * 2, strict=False))
)
FIRED = st.lists(st.integers(0, 45), max_size=5, unique=True)


def most(fired, stretches, tolerance) -> int:
    """The largest number of firings that any assignment gives a stretch of their own."""
    for count in range(min(len(fired), len(stretches)), 0, -1):
        for some, others in product(combinations(fired, count), permutations(stretches, count)):
            pairs = zip(some, others, strict=True)
            if all(start <= at <= end + tolerance for at, (start, end) in pairs):
                return count
    return 0


@given(FIRED, STRETCHES, st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_as_many_firings_count_as_in_the_best_assignment(fired, stretches, tolerance):
    found = match(fired, stretches, tolerance)
    assert len(found.delays) == most(fired, stretches, tolerance)
    assert len(found.delays) + len(found.false_at) == len(fired)
    assert len(found.delays) + len(found.missed) == len(stretches)
    for at in found.false_at:  # it fits none, or others came in each that it fits
        fits = [each for each in stretches if each[0] <= at <= each[1] + tolerance]
        assert not set(fits) & set(found.missed)


def test_a_second_firing_and_one_that_comes_too_late_are_false_alarms():
    found = match([5.0, 7.0, 13.5, 30.0], [(4.0, 8.0), (10.0, 12.0), (20.0, 21.0)], tolerance=1.0)
    assert found.delays == (1.0,)
    assert found.false_at == (7.0, 13.5, 30.0)
    assert found.missed == ((10.0, 12.0), (20.0, 21.0))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1),
    st.integers(1, 9),
)
def test_the_figures_are_those_of_all_alerts_together(counts, hours):
    scores = [AlertScore(hours, hit, false, missed, [1.0] * hit) for hit, false, missed in counts]
    whole = together(scores)
    hit, false, missed = (sum(each) for each in zip(*counts, strict=True))
    assert whole.false_an_hour == false / hours
    if hit:
        precision, recall = hit / (hit + false), hit / (hit + missed)
        assert whole.precision == precision
        assert whole.recall == recall
        assert whole.f1 == pytest.approx(2 * precision * recall / (precision + recall))
        assert whole.delay(95) == 1.0
    else:
        assert whole.delay(95) is None
        assert not whole.f1


def test_hours_of_several_streams_add_up():
    score = AlertScore()
    for matching in (match([1.0], [(0.0, 2.0)]), match([], [(0.0, 2.0)])):
        score.add(AlertScore.of(matching, hours=0.5))
    assert score.to_json() == {
        "hours": 1.0, "events": 2, "matched": 1, "missed": 1, "false alarms": 0, "precision": 1.0,
        "recall": 0.5, "f1": 0.6667, "delay_p50_s": 1.0, "delay_p95_s": 1.0,
        "false_alarms_an_hour": 0.0,
    }  # fmt: skip


@given(
    st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.6, 0.9]), max_size=60),
    st.sampled_from(list(rules())),
)
@settings(max_examples=200, deadline=None)
def test_readings_that_are_left_out_change_nothing(probabilities, rule):
    readings = Readings()
    for index, probability in enumerate(probabilities):
        readings.add(Fraction(index, 2), {"star": probability})
    life = Hysteresis(rule)
    changes = [life.add(Fraction(index, 2), each) for index, each in enumerate(probabilities)]
    fired = [float(each.at) for each in changes if each and each.state == "fired"]
    assert readings.fired("star", rule) == fired if probabilities else True


def test_alerts_are_asked_when_a_unit_is_complete_as_often_as_said():
    def due(every: str, fps: int) -> list[int]:
        standing = Standing(("star",), Fraction(every), Fraction(1))
        return [unit for unit in range(9) if standing.is_due(unit, Fraction(fps))]

    assert due("1/2", 4) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert due("1", 4) == [1, 3, 5, 7]
    assert due("1", 2) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert due("3", 2) == [2, 5, 8]


@pytest.fixture(scope="module")
def stream():
    return make_alert_stream(3, "training", 900.0, look_without_photo)


def test_a_question_reads_its_window_and_no_time_before_the_stream():
    standing = Standing(("star", "ring"), Fraction(1), Fraction(3, 2))
    early, late = (list(standing.questions(Fraction(at))) for at in (1, 9))
    assert [(each.text, each.since) for each in late] == [
        ("was there a star?", Fraction(15, 2)), ("was there a ring?", Fraction(15, 2)),
    ]  # fmt: skip
    assert {each.since for each in early} == {0}
    assert all(each.constraint.choices == ("yes", "no") for each in late)


def test_a_stream_follows_from_its_seed_and_is_mostly_empty(stream):
    again = make_alert_stream(3, "training", 900.0, look_without_photo)
    other = make_alert_stream(4, "training", 900.0, look_without_photo)
    assert again.things == stream.things != other.things
    assert (again.image(700.0) == stream.image(700.0)).all()
    shown = sum(thing.end - thing.start for thing in stream.things)
    assert 0 < shown < 0.2 * stream.duration
    assert len(stream.scenes) > 3
    assert sum(scene.stream.duration for scene in stream.scenes) == stream.duration


def test_a_shape_comes_again_only_after_a_while_and_no_scene_is_cut_while_one_is_there(stream):
    for shape in SHAPES:
        stretches = stream.stretches(shape)
        assert list(stretches) == sorted(stretches)
        for (_, end), (start, _) in pairwise(stretches):
            assert start - end > 6
    for scene in stream.scenes:
        assert not any(thing.start < scene.start < thing.end for thing in stream.things)


def test_what_is_visible_is_drawn(stream):
    """The picture changes where a thing begins, more than from one moment to the next."""
    thing = stream.things[0]
    before, after = (stream.image(thing.start + shift) for shift in (-0.05, 0.05))
    center = stream.scenes[0].stream.things[0].center(thing.start + 0.05)
    width, height = stream.size
    column = round(width / 2 + center[0] * height)
    row = round(height / 2 + center[1] * height)
    shapes_with_holes = ("ring",)
    assert thing.shape in shapes_with_holes or (before[row, column] != after[row, column]).any()


def readings_of(stream, high: float, low: float, delay: int) -> Readings:
    """Of a model that is sure `delay` askings after a shape came, and sees one once in between."""
    readings, quiet = Readings(), stream.things[0].start - 10
    for step in range(int(stream.duration * 2)):
        at = Fraction(step, 2)
        readings.add(
            at,
            {
                shape: high
                if any(start + delay / 2 <= at < end for start, end in stream.stretches(shape))
                or (shape == "star" and quiet <= at < quiet + 0.5)
                else low
                for shape in SHAPES
            },
        )
    return readings


def test_the_rule_is_chosen_on_what_alerts_answered(stream):
    heard = [HeardStream(stream, readings_of(stream, high=0.9, low=0.05, delay=0))]
    chosen = choose(heard, SHAPES)
    assert chosen.reaches_goals
    assert chosen.score.f1 == 1.0
    # one wrong reading, so one answer is too few
    assert chosen.rule.fire == Enough(3, 3)
    assert chosen.rule.clear == Enough(5, 5)
    assert chosen.rule.above < 0.9


def tried(fire: int, clear: int = 3, **score) -> TriedRule:
    rule = AlertRule(fire=Enough(fire, fire), clear=Enough(clear, clear))
    return TriedRule(rule, AlertScore(**score))


def test_a_rule_that_misses_a_goal_is_chosen_only_where_no_other_is_left():
    good = tried(1, hours=10.0, matched=97, false=2, missed=3, delays=[1.4] * 97)
    late = tried(2, hours=10.0, matched=100, delays=[1.6] * 100)
    noisy = tried(3, hours=1.0, matched=99, false=2, delays=[0.5] * 99)
    poor = tried(4, hours=10.0, matched=90, missed=10, delays=[0.5] * 90)
    assert good.reaches_goals
    assert not any(each.reaches_goals for each in (late, noisy, poor))
    assert best([late, good, noisy, poor]) is good
    assert best([noisy, late, poor]) is late
    assert best([poor, tried(1, hours=1.0, missed=10)]) is poor  # one that never fires


def test_figures_count_in_proportion_to_their_goals():
    figures = tried(1, hours=2.0, matched=98, false=1, missed=3, delays=[0.75] * 98)
    assert figures.shares == pytest.approx((4 / 200 / 0.03, 0.5, 0.5))
    slower = tried(2, hours=2.0, matched=99, false=1, missed=1, delays=[0.9] * 99)
    assert best([figures, slower]) is slower  # as many false alarms, and fewer missed
    quieter = tried(2, hours=2.0, matched=98, false=0, missed=4, delays=[0.9] * 98)
    assert best([figures, slower, quieter]) is quieter


def test_of_equal_rules_the_one_that_wants_most_answers_is_chosen():
    common = {"hours": 2.0, "matched": 50, "delays": [0.75]}
    one, three, five = tried(2, 2, **common), tried(3, 3, **common), tried(1, 5, **common)
    assert best([one, three, five]) is five
    assert best([one, three]) is three
