"""The study of number formats: intervals, pairing, errors of products, and what its JSON holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir
import pytest
import torch
from support.int8_product import product

from vicort.benchmarks.evaluation.ages import Row
from vicort.benchmarks.studies import number_formats, paired_answers, product_errors
from vicort.export.int8_products import Arithmetic, use_operators
from vicort.runtime.errors import ConfigError

STREAMS = 10


def answered(stream: int, shape: str, answer: str) -> Row:
    return Row(
        *("fp32", stream, 8, 1.0, shape, "8 units", "what color?", "red", answer),
        *(answer == "red", 1.0, 10, 2, 9.0, 9.0, 0.0),
    )


def rows(*wrong: tuple[int, str], word: str = "blue") -> list[Row]:
    """Two questions in each stream, all right but `wrong`."""
    return [
        answered(stream, shape, word if (stream, shape) in wrong else "red")
        for stream in range(STREAMS)
        for shape in ("circle", "square")
    ]


def test_the_interval_is_that_of_agresti_and_min():
    """Worked by hand: n = 102, b = 5.5, c = 1.5, so (c - b)/n = -0.039216, and the half width is
    1.959964 * sqrt(7 - 16/102)/102 = 0.050266."""
    low, high = paired_answers.paired_interval(lost=5, won=1, asked=100)
    assert (low, high) == pytest.approx((-0.089482, 0.011050), abs=2e-6)


def test_an_interval_has_a_width_where_no_answer_changes():
    low, high = paired_answers.paired_interval(0, 0, 1000)
    assert high == -low == pytest.approx(1.959964 / 1002)


def test_pairs_are_by_question_whatever_the_order():
    other = rows((3, "square"))[::-1]
    pairs = paired_answers.pair(rows(), other)
    assert [each.change for each in pairs].count(-1) == 1
    assert all(each.reference.key == each.other.key for each in pairs)


@pytest.mark.parametrize("other", [rows()[1:], rows() + rows()[:1], []])
def test_other_questions_are_refused(other):
    with pytest.raises(ConfigError, match="not to the same questions"):
        paired_answers.pair(rows(), other)


def test_wrong_in_another_way_differs_and_costs_nothing():
    found = paired_answers.compare(
        paired_answers.pair(rows((1, "circle")), rows((1, "circle"), word="green"))
    )
    assert found["answers that differ"] == 1
    assert found["difference, points"] == 0


def test_streams_are_drawn_whole():
    """Two changes in one stream widen the interval more than two in two streams."""
    together = paired_answers.pair(rows(), rows((3, "circle"), (3, "square")))
    apart = paired_answers.pair(rows(), rows((3, "circle"), (5, "square")))
    assert (
        paired_answers.bootstrap_interval(together)[0] < paired_answers.bootstrap_interval(apart)[0]
    )


def test_the_goal_is_not_shown_by_the_same_things_asked_again():
    few = paired_answers.pair(rows(), rows())
    found = paired_answers.compare(few * 60)
    assert found["interval, points"][1] < 1 < found["interval over things, points"][1]
    assert not found["within_goal"]


def test_the_goal_is_shown_by_enough_things():
    many = [answered(stream, "circle", "red") for stream in range(300)]
    assert paired_answers.compare(paired_answers.pair(many, many))["within_goal"]


def test_the_result_compares_each_format_with_fp32_of_its_backend(tmp_path, monkeypatch):
    monkeypatch.setattr(number_formats, "stored", lambda folder: {"set": folder.name})
    sets = [number_formats.FormatSet("openvino", each) for each in ("fp32", "int4")]
    for each, found in zip(sets, (rows(), rows((2, "circle"))), strict=True):
        lines = "".join(json.dumps(vars(row) | {"system": each.name}) + "\n" for row in found)
        (tmp_path / f"{each.name}.jsonl").write_text(lines)
    options = argparse.Namespace(work=tmp_path, streams=STREAMS)
    found = json.loads(json.dumps(number_formats.answers(sets, options)))["candidates"]
    assert "beside fp32" not in found["openvino-fp32"]
    int4 = found["openvino-int4"]
    assert int4["accuracy"]["percent"] == 95
    assert int4["by age"]["8 units"]["asked"] == 20
    assert int4["beside fp32"]["difference, points"] == -5
    assert int4["set"] == "openvino-int4"


def test_answers_that_are_recorded_are_not_asked_again(tmp_path, monkeypatch):
    chosen = number_formats.FormatSet("openvino", "int8")
    (tmp_path / f"{chosen.name}.jsonl").write_text(json.dumps(vars(rows()[0])) + "\n")  # stream 0
    monkeypatch.setattr(number_formats.EngineSet, "open", lambda *a, **k: Opened())
    monkeypatch.setattr(number_formats.Candidate, "of", lambda *a, **k: None)
    videos = [SimpleNamespace(name=str(each)) for each in range(3)]
    monkeypatch.setattr(number_formats, "dataset", lambda *a: SimpleNamespace(videos=videos))
    monkeypatch.setattr(
        number_formats, "rows_of", lambda name, video, c: [answered(int(video.name), "x", "red")]
    )
    options = argparse.Namespace(work=tmp_path, streams=3)
    assert not number_formats.ask(chosen, options, ends=0)  # the time is up
    assert number_formats.ask(chosen, options, ends=float("inf"))
    record = number_formats.read_rows(Path(tmp_path / f"{chosen.name}.jsonl"))
    assert [row.stream for row in record] == [0, 1, 2]


def test_a_whole_record_opens_no_engines(tmp_path):
    chosen = number_formats.FormatSet("openvino", "int8")  # there is no such set
    lines = "".join(json.dumps(vars(row)) + "\n" for row in rows())
    (tmp_path / f"{chosen.name}.jsonl").write_text(lines)
    assert number_formats.ask(chosen, argparse.Namespace(work=tmp_path, streams=STREAMS), ends=0)


@pytest.mark.parametrize(
    ("arithmetic", "kind"),
    [
        (None, "int8"),
        (Arithmetic(many_rows=True), "int8"),
        (Arithmetic(many_rows=True, rounded=True), "int8, activations too"),
    ],
)
def test_kinds_of_matrices_are_read_from_a_graph(arithmetic, kind, tmp_path):
    model = onnx_ir.from_proto(product(np.random.default_rng(0), 128, 32, None)[0])
    if arithmetic:
        use_operators(model, arithmetic)
    onnx_ir.save(model, tmp_path / "product.onnx")
    assert list(number_formats.kinds(tmp_path / "product.onnx")) == [kind]


class Opened:
    """An engine set that is never asked."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_errors_of_a_product():
    product = product_errors.MatrixProduct("small", 256, 64, "layers.0.mlp.joined.weight")
    found = product_errors.errors_of(product, product_errors.gaussian)
    for kind, least, most in (("int8", 0.003, 0.02), ("int4", 0.05, 0.15)):
        assert all(least < each < most for each in found[kind].values())
    assert found["int4"]["openvino"] == pytest.approx(found["int4"]["product"], rel=0.05)


def test_errors_of_a_vision_product_with_int8_activations():
    """Only they are rounded: without them, onnxruntime's product is that of the stored weights."""
    product = product_errors.MatrixProduct("small", 256, 64, "encoder.blocks.0.attn.qkv.weight")
    found = product_errors.errors_of(product, product_errors.gaussian)
    assert list(found) == ["shape", "int8"]
    errors = found["int8"]
    assert errors["onnxruntime"] == pytest.approx(errors["product"], rel=1e-3)
    assert errors["product"] < 0.9 * errors["onnxruntime, activations int8"] < 0.02


def test_a_relative_error():
    assert product_errors.relative(torch.tensor([3.0, 5]), torch.tensor([3.0, 4])) == 0.2
