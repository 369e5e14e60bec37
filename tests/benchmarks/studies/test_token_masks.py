"""The study of what limits cost runs, and its numbers fit together."""

import pytest
from support.byte_tokenizer import WIDTH, save_byte_tokenizer

from vicort.benchmarks.studies import token_masks
from vicort.benchmarks.studies.token_masks import CONSTRAINTS, MEASURED, draw_text, prepared
from vicort.runtime.core import Constraint
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(token_masks, "WIDTH", WIDTH)
    save_byte_tokenizer(tmp_path)
    return tmp_path


def test_every_token_of_a_drawn_text_is_measured(folder):
    grammars, seconds = prepared(folder)
    assert seconds > 0
    found = {name: [] for name in MEASURED}
    tokens = draw_text(grammars, Constraint(regex="[ab]{8}"), 1, found)
    assert len(grammars._prompt.decode(tokens)) == 8
    for times in found.values():
        assert len(times) == len(tokens)
        assert min(times) >= 0


def test_each_constraint_has_its_times(folder):
    report = token_masks.masks(folder, texts=1)
    for name in CONSTRAINTS:
        assert report[name]["compiling, ms"] > 0
        assert report[name]["computing, ms"]["n"] == report[name]["with setting logits, ms"]["n"]
        whole = report[name]["with setting logits, ms"]["p50"]
        assert 0 < report[name]["computing, ms"]["p50"] <= whole


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is missing"):
        prepared(tmp_path)


@pytest.mark.slow
def test_free_and_limited_answers_take_turns(tiny_engines):
    with EngineSet.open(tiny_engines) as engines:
        report = token_masks.tokens(engines, rounds=2)
    assert {each["n"] for each in report.values()} == {2}
    assert all(each["min"] > 0 for each in report.values())
