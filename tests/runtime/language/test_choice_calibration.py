"""The temperature of an engine set's choices: what it does to probabilities, and its file."""

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.core import Answer
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.language.choice_calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    ChoiceCalibration,
    FittedTemperature,
    engines_of,
)

LOGARITHMS = st.lists(st.floats(-200, 0), min_size=1, max_size=12)
TEMPERATURES = st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE)


def fitted(temperature=2.0, engines="", **changes):
    values = {"questions": 10, "ece_before": 0.2, "ece_after": 0.1} | changes
    return FittedTemperature(engines=engines, temperature=temperature, **values)


@pytest.fixture
def folder(tmp_path):
    """An engine set as far as it matters here."""
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


@given(LOGARITHMS, TEMPERATURES)
def test_choices_are_powers_of_their_probabilities_made_to_sum_to_one(logarithms, temperature):
    """Against the plain ratio: p_i = 1 / sum_j (P_j / P_i)^(1 / T)."""
    given = ChoiceCalibration(fitted(temperature)).choices(np.array(logarithms))
    for own, probability in zip(logarithms, given, strict=True):
        exponents = [(other - own) / temperature for other in logarithms]
        plain = 0.0 if max(exponents) > 700 else 1 / math.fsum(map(math.exp, exponents))
        assert probability == pytest.approx(plain, rel=1e-9, abs=1e-300)
    assert given.sum() == pytest.approx(1)


@given(LOGARITHMS)
def test_without_a_temperature_they_are_shares_of_the_models_probabilities(logarithms):
    logarithms = [each / 4 for each in logarithms]  # whose exponentials are no zeros
    total = math.fsum(map(math.exp, logarithms))
    assert ChoiceCalibration().choices(np.array(logarithms)) == pytest.approx(
        [math.exp(each) / total for each in logarithms]
    )


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=8, unique=True), TEMPERATURES)
def test_the_order_of_the_choices_is_that_of_the_model(logarithms, temperature):
    given = ChoiceCalibration(fitted(temperature)).choices(np.array(logarithms))
    ranked = given[np.argsort(logarithms)]
    assert (np.diff(ranked) >= 0).all()
    assert given[int(np.argmax(logarithms))] == given.max()


def test_log_probabilities_of_float32_and_an_impossible_choice_are_taken():
    given = ChoiceCalibration(fitted(4.0)).choices(np.array([-1, -np.inf, -5], np.float32))
    assert given.dtype == np.float64
    assert given == pytest.approx([math.e / (math.e + 1), 0, 1 / (math.e + 1)])


def test_a_set_without_the_file_is_at_temperature_1(folder):
    assert ChoiceCalibration.of_folder(folder) == ChoiceCalibration()
    assert ChoiceCalibration().temperature == 1


def test_what_was_stored_is_read(folder):
    stored = fitted(1.7320508, engines_of(folder))
    stored.store(folder)
    assert ChoiceCalibration.of_folder(folder) == ChoiceCalibration(stored)
    fitted(3.0, engines_of(folder)).store(folder)  # a second time
    assert ChoiceCalibration.of_folder(folder).temperature == 3
    assert sorted(os.listdir(folder)) == ["calibration.json", "manifest.json"]


def test_a_temperature_of_other_engines_is_refused(folder):
    fitted(2.0, engines_of(folder)).store(folder)
    (folder / "manifest.json").write_text('{"another": "build"}')
    with pytest.raises(EngineError, match="was written for another engine set: remove the file"):
        ChoiceCalibration.of_folder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": 0.049}, "temperature is 0.049"),
        ({"temperature": 20.1}, "temperature is 20.1"),
        ({"temperature": -1.5}, "temperature is -1.5"),
        ({"temperature": "2"}, "temperature is '2'"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"questions": 0}, "questions is 0"),
        ({"questions": 1.5}, "questions is 1.5"),
        ({"ece_before": 1.1}, "ece_before is 1.1"),
        ({"ece_after": -0.1}, "ece_after is -0.1"),
        ({"schema_version": 2}, "schema_version is 2"),
        ({"temperatures": [1, 2]}, "temperatures is "),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line_with_the_command(folder, change, words):
    content = fitted(2.0, engines_of(folder)).model_dump() | change
    (folder / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match=words) as refused:
        ChoiceCalibration.of_folder(folder)
    assert "\n" not in str(refused.value)
    command = f"vicort-eval calibration --store --engine-dir {folder}"
    assert command in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"[" * 60_000, b"\xff\xfe", b"{}" + b" " * (1 << 16)]
)
def test_a_damaged_file_is_one_line(folder, content):
    (folder / "calibration.json").write_bytes(content)
    with pytest.raises(EngineError, match="remove the file; ") as refused:
        ChoiceCalibration.of_folder(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", sorted(fitted().model_dump().keys() - {"schema_version"}))
def test_a_field_that_is_missing_is_named(folder, field):
    content = fitted(2.0, engines_of(folder)).model_dump()
    del content[field]
    (folder / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match=f"{field} .*[Rr]equired"):
        ChoiceCalibration.of_folder(folder)


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(folder, kind):
    path = folder / "calibration.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "nothing.json")
    with pytest.raises(EngineError, match="is no regular file: remove the file"):
        ChoiceCalibration.of_folder(folder)


def test_a_folder_that_may_not_be_written_is_one_line(folder):
    with pytest.raises(ConfigError, match=r"calibration\.json cannot be written"):
        fitted(2.0).store(folder / "missing")


def test_values_that_would_be_refused_are_never_stored():
    for changes in ({"temperature": 21.0}, {"ece_after": 2.0}, {"questions": 0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            fitted(**changes)


def test_an_answer_event_has_six_decimals_of_a_probability():
    """Three would make 1 and 0 of nearly all that a sure model says."""
    choices = {"yes": 0.9996124, "no": 0.0003876}
    answer = Answer("", 0, None, "", "yes", 1.0, 1, (), 0, 0, None, choices=choices, outside=1.2e-5)
    written = json.loads(json.dumps(answer.to_json()))
    assert written["choices"] == {"yes": 0.999612, "no": 0.000388}
    assert written["outside"] == 1.2e-5
