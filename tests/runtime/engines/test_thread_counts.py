"""The number of threads changes times only, also where there are more threads than cores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.engine_sets import BACKENDS, engine_set

from vicort.export.verify import (
    feature_inputs,
    frame_inputs,
    head_inputs,
    language_inputs,
)
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.backend import CpuBackend
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_run import Arrays, output_arrays
from vicort.runtime.manifest import GraphName, GraphSpec, ModelSpec, TensorSpec, read_manifest

THREADS = (1, 3)
WIDTH = 2048  # of the 3B model
FLOAT = np.dtype(np.float32)


def inputs(name: GraphName, model: ModelSpec) -> list[Arrays]:
    """Runs of a graph: few and many rows."""
    random = np.random.default_rng(0)
    match name:
        case "vision":
            return [frame_inputs(model, units, random) for units in (1, 3)]
        case "llm":
            return [language_inputs(model, FLOAT, *size, random) for size in ((1, 9), (70, 20))]
        case "head":
            return [head_inputs(model, FLOAT, random)]
        case _:
            return [feature_inputs(model, FLOAT, random)]


def bits(engine: Engine, bound: Arrays) -> bytes:
    outputs = output_arrays(engine, bound)
    engine.enqueue(bound | outputs, InlineStream("test")).done()
    return b"".join(array.tobytes() for array in outputs.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["vision", "llm", "head", "tokens"])
def test_every_graph_gives_the_same_bits_with_any_number_of_threads(backend, name):
    folder = engine_set(backend)
    manifest = read_manifest(folder)
    graph = manifest.graphs[name]
    found = set()
    for threads in THREADS:
        engine = CpuBackend(backend, threads).load(folder / graph.file, graph, streams=2)
        found.add(tuple(bits(engine, bound) for bound in inputs(name, manifest.model)))
    assert len(found) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_as_wide_as_that_of_a_real_model_does_too(backend, tmp_path):
    random = np.random.default_rng(0)
    weight = random.standard_normal((WIDTH, WIDTH), np.float32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ("C", WIDTH)) for n in "xy")
    constant = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    net = helper.make_graph([node], "product", [x], [y], [constant])
    opsets = [helper.make_opsetid("", 21)]
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(net, opset_imports=opsets, ir_version=10), path)
    tensors = [TensorSpec(name=name, dtype="float32", shape=("C", WIDTH)) for name in "xy"]
    graph = GraphSpec(
        file=path.name,
        inputs=tensors[:1],
        outputs=tensors[1:],
        dimensions={"C": {"min": 1, "opt": 1, "max": 200}},
    )
    rows = [random.standard_normal((count, WIDTH), np.float32) for count in (1, 200)]
    found = set()
    for threads in THREADS:
        engine = CpuBackend(backend, threads).load(path, graph, streams=1)
        found.add(tuple(bits(engine, {"x": each}) for each in rows))
    assert len(found) == 1
