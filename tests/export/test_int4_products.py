"""int4 products as onnxruntime's operator: the same integers, compared through OpenVINO, which
reads both forms and multiplies in float32."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.sizes import examples

from vicort.export import int4_products
from vicort.export.graphs import EXPANDED_FILE, Written, write_graph
from vicort.export.int4_products import use_operator
from vicort.export.onnxruntime_products import repack
from vicort.runtime.engines.onnxruntime import UNWANTED
from vicort.runtime.engines.openvino import _properties
from vicort.runtime.errors import EngineError

LANGUAGE_FILES = ("llm.onnx", EXPANDED_FILE)


def packed(integers: np.ndarray) -> bytes:
    low, high = integers.reshape(-1, 2).T & 15
    return (low | high << 4).astype(np.uint8).tobytes()


def residual_product(
    random: np.random.Generator, groups: int, group: int, zeros: bool
) -> onnx.ModelProto:
    """y = x + x W, W [n,n] of int4 integers."""
    n, kind = groups * group, TensorProto.UINT4 if zeros else TensorProto.INT4
    least = 0 if zeros else -8
    values = random.integers(least, least + 16, (n, n))
    scales = random.random((groups, n), np.float32) / n
    inputs = [
        helper.make_tensor("values", kind, (n, n), packed(values), raw=True),
        helper.make_tensor("scales", TensorProto.FLOAT, (groups, n), scales.tobytes(), raw=True),
    ]
    if zeros:
        points = packed(random.integers(0, 16, (groups, n)))
        inputs.append(helper.make_tensor("zeros", kind, (groups, n), points, raw=True))
    names = [each.name for each in inputs]
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], axis=0, block_size=group),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["x", "xw"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("C", n)) for name in "xy")
    graph = helper.make_graph(nodes, "product", [x], [y], inputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def by_openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", _properties(threads=1, streams=1)
    )
    return next(iter(compiled([x]).values()))


@settings(max_examples=examples(36), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([16, 32, 128]), st.booleans())
def test_the_operator_has_the_same_integers_scales_and_zero_points(seed, groups, group, zeros):
    random = np.random.default_rng(seed)
    model = residual_product(random, groups, group, zeros)
    replaced = onnx_ir.from_proto(model)
    assert use_operator(replaced) == 1
    written = onnx_ir.to_proto(replaced)
    assert [node.op_type for node in written.graph.node] == ["MatMulNBits", "Add"]
    x = random.standard_normal((3, groups * group), np.float32)
    right = by_openvino(model, x)
    assert np.abs(by_openvino(written, x) - right).max() < 1e-5 * np.abs(right).max()


def test_other_products_are_left_alone():
    model = onnx_ir.from_proto(residual_product(np.random.default_rng(0), 1, 16, False))
    values = model.graph.initializers["values"]
    values.const_value = onnx_ir.tensor(np.ones((16, 16), np.int8))
    values.dtype = onnx_ir.DataType.INT8
    assert use_operator(model) == 0
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "Add"]


def written_set(folder: Path, seed: int) -> onnx.ModelProto:
    """The language graphs of a set, with weights that both share."""
    folder.mkdir()
    model = residual_product(np.random.default_rng(seed), 3, 128, True)
    written: Written = {}
    for name in LANGUAGE_FILES:
        list(write_graph(onnx_ir.from_proto(model), folder / name, written))
    return model


def test_a_set_of_hard_links_is_packed_and_the_files_it_was_linked_to_stay(tmp_path: Path):
    model = written_set(tmp_path / "set", seed=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert sorted(before) == ["llm.bin", "llm.expanded.onnx", "llm.onnx"]
    shutil.copytree(tmp_path / "set", tmp_path / "linked", copy_function=os.link)
    seen: list[tuple[str, float]] = []
    repack(tmp_path / "linked", progress=lambda phase, done: seen.append((phase, done)))
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "linked").iterdir()) == sorted(before)
    x = np.random.default_rng(0).standard_normal((3, 384), np.float32)
    right = by_openvino(model, x)
    for name in LANGUAGE_FILES:
        found = onnx.load(tmp_path / "linked" / name)
        assert [node.op_type for node in found.graph.node] == ["MatMulNBits", "Add"]
        assert np.abs(by_openvino(found, x) - right).max() < 1e-5 * np.abs(right).max()
    # the progress rises to the end, with each weight
    done = [each for _, each in seen]
    assert done == sorted(done)
    assert (len(done), done[-1]) == (4, 1)  # integers and scales; zero points are in the graph
    assert [phase for phase, _ in seen][:: len(seen) - 1] == [
        f"packing {name}" for name in LANGUAGE_FILES
    ]


def test_memory_holds_one_product_at_a_time(tmp_path: Path, monkeypatch):
    """A product is packed when it is written, not before, and is not kept."""
    written_set(tmp_path / "set", seed=2)
    alive: list[weakref.ref] = []

    def counted(constant) -> np.ndarray:
        assert not [each for each in alive if each() is not None]
        integers = unpacked(constant)
        alive.append(weakref.ref(integers))
        return integers

    unpacked = int4_products._unpacked
    monkeypatch.setattr(int4_products, "_unpacked", counted)
    repack(tmp_path / "set")
    assert len(alive) == 4  # values and zero points, of two graphs


@pytest.mark.parametrize("fault", ["missing", "cut off", "elsewhere"])
def test_weights_that_are_not_there_are_one_line(fault, tmp_path: Path):
    folder = tmp_path / "set"
    written_set(folder, seed=1)
    weights = folder / "llm.bin"
    if fault == "cut off":
        weights.write_bytes(weights.read_bytes()[:2000])
    else:
        weights.rename(tmp_path / "other.bin")
    if fault == "elsewhere":
        weights.symlink_to(tmp_path / "other.bin")
    with pytest.raises(EngineError, match="build the set again") as caught:
        repack(folder)
    assert str(caught.value).isprintable()
    assert sorted(path.name for path in folder.glob("packed-*")) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_onnxruntime_multiplies_with_the_integers_even_before_a_residual_addition(
    replaced: bool, tmp_path: Path
):
    model = onnx_ir.from_proto(residual_product(np.random.default_rng(0), 2, 128, False))
    if replaced:
        use_operator(model)
    list(write_graph(model, tmp_path / "net.onnx"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        tmp_path / "net.onnx",
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=UNWANTED,
    )
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node] == ["MatMulNBits", "Add"]
