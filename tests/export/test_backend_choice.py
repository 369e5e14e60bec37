"""Which backend a set becomes, by what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.engine_sets import engine_set
from support.int8_product import QKV, product

from vicort.export import backend_choice
from vicort.export.backend_choice import ANSWER_TOKENS, EngineTimes, choose, engine_times
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import FILE_NAME, Manifest, Weights, read_manifest


def manifests(weights: Weights | None) -> list[Manifest]:
    found = read_manifest(engine_set("openvino"))
    return [
        found.model_copy(update={"backend": backend, "weights": weights, "files": {}})
        for backend in ("openvino", "onnxruntime")
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set with one graph, of an int8 product."""
    folder = tmp_path / "set"
    folder.mkdir()
    onnx.save(product(np.random.default_rng(0), 64, 64, None, QKV)[0], folder / "vision.onnx")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def operators(folder: Path) -> set[str]:
    graph = onnx.load(folder / "vision.onnx", load_external_data=False).graph
    return {node.op_type for node in graph.node}


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("fastest", ["openvino", "onnxruntime"])
def test_a_set_becomes_that_of_the_fastest_backend(weights, fastest, folder, monkeypatch):
    seen = {}

    def measured(place: Path) -> EngineTimes:
        backend = json.loads((place / FILE_NAME).read_text())["backend"]
        seen[backend] = operators(place)
        assert (place / "tokenizer.json").read_text() == "{}"
        return EngineTimes(0, 1, 0.1 if backend == fastest else 0.2)

    monkeypatch.setattr(backend_choice, "engine_times", measured)
    said: list[str] = []
    chosen = choose(folder, manifests(weights), said.append)
    packed = {"MatMulNBits"} if weights else {"DequantizeLinear", "MatMul"}
    assert seen == {"openvino": {"DequantizeLinear", "MatMul"}, "onnxruntime": packed}
    assert chosen.backend == fastest
    assert operators(folder) == seen[fastest]
    found = json.loads((folder / FILE_NAME).read_text())
    assert found["backend"] == fastest
    assert set(found["files"]) == {path.name for path in folder.iterdir()} - {FILE_NAME}
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    assert f"chose {fastest}" in said[-1]


@pytest.mark.parametrize(
    ("openvino", "onnxruntime", "taken"),
    [
        (1.0, 1.0, "openvino"),
        (1.0, 0.9, "openvino"),
        (1.0, 0.81, "openvino"),
        (1.0, 0.79, "onnxruntime"),
        (0.5, 1.0, "openvino"),
    ],
)
def test_where_times_differ_little_the_preferred_backend_is_taken(
    openvino, onnxruntime, taken, folder, monkeypatch
):
    """So that two builds on one machine give the same."""
    seconds = {"openvino": openvino, "onnxruntime": onnxruntime}

    def measured(place: Path) -> EngineTimes:
        return EngineTimes(0, seconds[json.loads((place / FILE_NAME).read_text())["backend"]], 0)

    monkeypatch.setattr(backend_choice, "engine_times", measured)
    said: list[str] = []
    assert choose(folder, manifests(None), said.append).backend == taken
    assert said[-1].startswith(f"chose {taken}: ")
    if (taken == "openvino") != (openvino <= onnxruntime):
        assert "preferred, as onnxruntime does not take 20% less time" in said[-1]


def test_an_answer_counts_as_much_as_a_chunk():
    slow_answers = EngineTimes(ready=1, chunk=10, token=1)
    slow_chunks = EngineTimes(ready=9, chunk=10 + ANSWER_TOKENS / 2, token=0.4)
    assert slow_chunks.job < slow_answers.job


def test_engines_are_measured_on_this_machine():
    found = engine_times(engine_set("onnxruntime"))
    assert 0 < found.token < found.chunk < found.ready


@pytest.mark.parametrize(("enough", "run"), [(0.0, [1]), (60.0, [1, 8])])
def test_a_chunk_that_takes_long_is_not_run_whole(enough, run, monkeypatch):
    """A chunk of the embedded model is 8 units."""
    units = []

    def noted(engines: EngineSet, count: int) -> backend_choice.Runs:
        units.append(count)
        return backend_choice._token_runs(engines)

    monkeypatch.setattr(backend_choice, "ENOUGH_S", enough)
    monkeypatch.setattr(backend_choice, "_least_seconds", lambda runs, stream: 0.5)
    monkeypatch.setattr(backend_choice, "_unit_runs", noted)
    found = engine_times(engine_set("onnxruntime"))
    assert units == run
    assert found.chunk == (4.0 if run == [1] else 0.5)
