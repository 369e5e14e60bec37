"""Calibration: its measures against plain statements of them, and the fitted temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.benchmarks.evaluation import calibration_error
from vicort.benchmarks.evaluation.calibration_error import (
    BINS,
    bin_of,
    figures,
    resampled,
    separation,
)
from vicort.benchmarks.evaluation.calibration_error import (
    calibration_error as error_of,
)
from vicort.benchmarks.evaluation.calibration_result import FIT, CalibrationResult
from vicort.benchmarks.evaluation.rated_choices import ChoiceArrays, RatedChoices, logarithms_of
from vicort.benchmarks.evaluation.temperature import fitted_temperature, is_at_bound
from vicort.runtime.errors import ConfigError
from vicort.runtime.language.choice_calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    ChoiceCalibration,
    FittedTemperature,
)


@st.composite
def questions(draw, least=1, most=12):
    """With two to five choices each, some of one group."""
    found = []
    for _ in range(draw(st.integers(least, most))):
        logarithms = draw(st.lists(st.floats(-30, 0), min_size=2, max_size=5))
        right = draw(st.integers(0, len(logarithms) - 1))
        group = draw(st.sampled_from("abc"))
        found.append(RatedChoices("any", group, tuple(logarithms), right))
    return found


def drawn(count=4000, true_temperature=1.0, seed=0, choices=4, spread=3.0):
    """Answers that are right as often as their probabilities say at that temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (count, choices))
    scaled = np.exp(logits / true_temperature)
    shares = scaled / scaled.sum(axis=1, keepdims=True)
    right = (random.random((count, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    return [
        RatedChoices("any", str(row // 10), tuple(each), int(min(truth, choices - 1)))
        for row, (each, truth) in enumerate(zip(logits.tolist(), right, strict=True))
    ]


def plain_probabilities(question, temperature):
    top = max(question.logarithms)
    powers = [math.exp((each - top) / temperature) for each in question.logarithms]
    return [each / math.fsum(powers) for each in powers]


def plain_ece(asked, temperature):
    """As the paper has it: sum over m of |B_m| / n |acc(B_m) - conf(B_m)|."""
    bins = {}
    for question in asked:
        probabilities = plain_probabilities(question, temperature)
        best = max(probabilities)
        for m in range(1, 16):
            if (m - 1) / 15 < best <= m / 15:
                right = probabilities.index(best) == question.right
                bins.setdefault(m, []).append((best, right))
    total = 0.0
    for members in bins.values():
        accuracy = sum(right for _, right in members) / len(members)
        confidence = sum(best for best, _ in members) / len(members)
        total += len(members) / len(asked) * abs(accuracy - confidence)
    return total


@given(questions(), st.floats(0.2, 5))
def test_measures_are_those_of_their_definitions(asked, temperature):
    found = figures(ChoiceArrays.of(asked), temperature)
    chances = [plain_probabilities(each, temperature) for each in asked]
    assert found.questions == len(asked)
    assert found.ece == pytest.approx(plain_ece(asked, temperature), abs=1e-9)
    brier = [
        sum((p - (i == each.right)) ** 2 for i, p in enumerate(own))
        for each, own in zip(asked, chances, strict=True)
    ]
    assert found.brier == pytest.approx(sum(brier) / len(brier), abs=1e-9)
    surprise = [
        math.log(math.fsum(math.exp((x - each.logarithms[each.right]) / temperature)
                           for x in each.logarithms))
        for each in asked
    ]  # fmt: skip
    assert found.nll == pytest.approx(sum(surprise) / len(surprise), rel=1e-9, abs=1e-9)
    right = [own.index(max(own)) == each.right for each, own in zip(asked, chances, strict=True)]
    assert found.accuracy == pytest.approx(sum(right) / len(right))
    assert sum(each.questions for each in found.bins) == len(asked)
    assert all(each.low < each.confidence <= each.high + 1e-12 for each in found.bins)


@given(questions(), st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE))
def test_a_session_gives_the_probabilities_that_are_measured_here(asked, temperature):
    fitted = FittedTemperature(
        engines="", temperature=temperature, questions=1, ece_before=0, ece_after=0
    )
    measured = np.exp(ChoiceArrays.of(asked).log_probabilities(temperature))
    for each, row in zip(asked, measured, strict=True):
        given = ChoiceCalibration(fitted).choices(np.array(each.logarithms))
        assert row[: len(given)] == pytest.approx(given)
        assert (row[len(given) :] == 0).all()


@pytest.mark.parametrize(
    ("confidence", "number"),
    [(1e-9, 0), (1 / 15, 0), (1 / 15 + 1e-9, 1), (0.5, 7), (14 / 15, 13), (0.94, 14), (1.0, 14)],
)
def test_a_border_belongs_to_the_bin_below_it(confidence, number):
    assert bin_of(np.array([confidence])) == [number]
    assert BINS == 15


def test_errors_of_known_size():
    right = np.array([True] * 8 + [False] * 2)
    assert error_of(np.full(10, 0.8), right) == pytest.approx(0)
    assert error_of(np.full(10, 0.9), right) == pytest.approx(0.1)
    # errors of two bins do not make up for each other
    halves = np.array([0.9] * 5 + [0.7] * 5)
    assert error_of(halves, np.array([True] * 4 + [False] + [True] * 4 + [False])) == pytest.approx(
        0.1
    )


@given(st.lists(st.tuples(st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.booleans()), max_size=14))
def test_separation_counts_pairs(answers):
    pairs = [
        (good > bad) + (good == bad) / 2
        for good, is_right in answers
        for bad, other in answers
        if is_right and not other
    ]
    confidence = np.array([each for each, _ in answers])
    right = np.array([each for _, each in answers], bool)
    expected = sum(pairs) / len(pairs) if pairs else None
    assert separation(confidence, right) == pytest.approx(expected)


@given(questions(least=3, most=20))
def test_no_temperature_of_a_grid_is_better_than_the_fitted_one(asked):
    arrays = ChoiceArrays.of(asked)
    fitted = fitted_temperature(arrays)
    assert MIN_TEMPERATURE <= fitted <= MAX_TEMPERATURE
    best = arrays.surprise(fitted).mean()
    for temperature in np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 40):
        assert best <= arrays.surprise(temperature).mean() + 1e-7


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_answers_is_found(true):
    asked = drawn(true_temperature=true)
    assert fitted_temperature(ChoiceArrays.of(asked)) == pytest.approx(true, rel=0.06)


def test_right_answers_alone_lead_to_the_lower_bound_and_wrong_ones_to_the_upper():
    sure = [RatedChoices("any", "a", (0.0, -2.0), right) for right in (0, 0, 0)]
    assert is_at_bound(low := fitted_temperature(ChoiceArrays.of(sure)))
    assert low < 1
    wrong = [RatedChoices("any", "a", (0.0, -2.0), right) for right in (1, 1, 0)]
    assert is_at_bound(high := fitted_temperature(ChoiceArrays.of(wrong)))
    assert high > 1
    assert not is_at_bound(fitted_temperature(ChoiceArrays.of(drawn(500))))


def test_answers_that_are_right_as_often_as_said_have_the_error_of_chance():
    found = figures(ChoiceArrays.of(drawn()), 1.0)
    assert found.ece == pytest.approx(found.ece_by_chance, abs=0.01)
    assert found.ece_by_chance < 0.02
    low, high = found.nll_interval
    assert low < found.nll < high
    overconfident = figures(ChoiceArrays.of(drawn(true_temperature=2.5)), 1.0)
    assert overconfident.ece > 4 * overconfident.ece_by_chance
    assert overconfident.confidence > overconfident.accuracy


def test_whole_groups_are_resampled():
    """Two groups, one all right and one all wrong: a draw has one of three errors."""
    asked = [RatedChoices("any", group, (0.0, -50.0), int(group == "b")) for group in "aaabbb"]
    errors = resampled(ChoiceArrays.of(asked), 1.0)["ece"]
    assert {round(float(each), 6) for each in errors} == {0.0, 0.5, 1.0}
    assert np.mean(errors == 0.5) == pytest.approx(0.5, abs=0.05)


def test_resampled_means_are_means_of_resampled_questions(monkeypatch):
    monkeypatch.setattr(calibration_error, "RESAMPLES", 5)
    asked = drawn(60, seed=3)
    arrays = ChoiceArrays.of(asked)
    found = resampled(arrays, 1.7)
    draws = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, 5)
    names = sorted({each.group for each in asked})
    for number, draw in enumerate(draws):
        chosen = [each for each in asked for _ in range(draw[names.index(each.group)])]
        plain = figures(ChoiceArrays.of(chosen), 1.7)
        assert found["ece"][number] == pytest.approx(plain.ece)
        assert found["brier"][number] == pytest.approx(plain.brier)
        assert found["nll"][number] == pytest.approx(plain.nll)


def test_a_temperature_is_fitted_on_its_part_alone():
    fit, report = drawn(800, 2.0, seed=1), drawn(800, 2.0, seed=2)
    result = CalibrationResult.of({FIT: fit, "report": report})
    assert result.temperature == fitted_temperature(ChoiceArrays.of(fit))
    assert result.fitted_on == len(fit)
    assert result.reported.before == figures(ChoiceArrays.of(report), 1.0)
    assert result.reported.after.ece < result.reported.before.ece / 2
    assert result.reported.ece_change[1] < 0
    assert result.reported.nll_change[1] < 0
    assert not result.remarks


def test_a_temperature_that_makes_others_worse_is_remarked():
    result = CalibrationResult.of({FIT: drawn(400, 3.0), "report": drawn(400, 0.7)})
    assert any("does not carry over" in remark for remark in result.remarks)


@pytest.mark.parametrize("part", [FIT, "report"])
def test_without_questions_there_is_no_calibration(part):
    with pytest.raises(ConfigError, match="there is no answered question with choices to"):
        CalibrationResult.of({part: drawn(5)})


def test_an_impossible_choice_has_a_finite_logarithm():
    assert logarithms_of({"yes": 1.0, "no": 0.0}) == (0.0, pytest.approx(math.log(1e-12)))
