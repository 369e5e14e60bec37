"""What the probability of an answer is worth: what is counted, and a quick run."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from vicort.benchmarks.studies import answer_probabilities
from vicort.benchmarks.studies.answer_probabilities import (
    Rated,
    RepeatedQuestion,
    Yes,
    below,
    ended,
    has_come,
)
from vicort.export.tiny.world import make_stream


def test_right_and_wrong_answers_are_counted_below_each_probability():
    answers = [Rated(True, 0.95), Rated(True, 0.5), Rated(False, 0.29), Rated(False, 0.6)]
    assert below(answers) == {
        "wrong": {"of": 2, "0.3": 1, "0.5": 1, "0.7": 2, "0.9": 2},
        "right": {"of": 2, "0.3": 0, "0.5": 0, "0.7": 1, "0.9": 1},
    }


def test_the_first_yes_that_is_sure_enough_ends_a_run():
    early_and_unsure = RepeatedQuestion(True, (Yes(False, 0.7), Yes(True, 0.85), Yes(True, 0.99)))
    never_came = RepeatedQuestion(False, (Yes(False, 0.92),))
    unseen = RepeatedQuestion(True, ())
    assert ended([early_and_unsure, never_came, unseen]) == {
        "came": 2,
        "never came": 1,
        "ended rightly": {"0.0": 0, "0.8": 1, "0.9": 1, "0.98": 1},
        "ended wrongly": {"0.0": 2, "0.8": 1, "0.9": 1, "0.98": 0},
    }


def test_a_shape_has_come_once_it_is_there():
    stream = make_stream(3, 2, lead=2.0)
    first, last = stream.things
    assert not has_come(stream, first.shape, Fraction(1))
    assert has_come(stream, first.shape, Fraction(3))
    assert not has_come(stream, last.shape, Fraction(3))
    assert has_come(stream, last.shape, Fraction(60))
    assert "star" not in {first.shape, last.shape}
    assert not has_come(stream, "star", Fraction(60))


@pytest.mark.slow
def test_a_quick_run_leaves_a_whole_result(tiny_engines, tmp_path, capsys):
    out = tmp_path / "result.json"
    options = ["--engine-dir", str(tiny_engines), "--streams", "1", "--out", str(out)]
    assert answer_probabilities.main(options) == 0
    result = json.loads(out.read_text())
    assert {*result["by picture"]} >= {"black", "white", "gradient", "noise", "test pattern"}
    asked = [sum(each[side]["of"] for side in ("wrong", "right")) for each in
             result["by picture"].values()]  # fmt: skip
    assert len(set(asked)) == 1
    assert asked[0] > 20
    assert result["own world"]["right"]["of"] > result["own world"]["wrong"]["of"]
    assert result["until"]["came"] + result["until"]["never came"] == 7
    capsys.readouterr()
