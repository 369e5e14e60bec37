"""Calls of the full TensorRT, which takes a GPU to build or run anything, against what its Python
bindings say of themselves (`tests/fixtures/tensorrt-VERSION.txt`)."""

import ast
import inspect
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.fake_tensorrt import FakeArray, FakeStream
from support.recorded_tensorrt import RecordedTensorRT
from support.tensorrt_listing import FIXTURES, listing_of
from torch import nn

from vicort.export import build, tensorrt_plans
from vicort.export.graphs import export_program
from vicort.export.tensorrt_plans import PlanJob
from vicort.export.torch_tensorrt import compile_directly
from vicort.runtime.engines import tensorrt
from vicort.runtime.engines.tensorrt import TensorRT, TensorRTEngine
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec

VERSIONS = [path.stem.removeprefix("tensorrt-") for path in sorted(FIXTURES.glob("tensorrt-*.txt"))]
GRAPH = GraphSpec(
    file="x.plan",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("C", 4)),),
    outputs=(TensorSpec(name="y", dtype="bfloat16", shape=("C",)),),
    dimensions={"C": Dimension(min=1, opt=8, max=64)},
)
SHAPES = {"x": (-1, 4), "y": (-1,)}
ATTRIBUTES = {  # that TensorRT reads
    "IPluginV3OneCore": "plugin_name plugin_version plugin_namespace",
    "IPluginV3OneBuildV2": "num_outputs",
    "IPluginCreatorV3One": "name plugin_version plugin_namespace field_names",
}
SPEC = SimpleNamespace(
    interleaved=False,
    pool_dtype="bfloat16",
    kv_heads=2,
    page_tokens=4,
    head_dim=32,
    sections=(4, 6, 6),
    frequencies=tuple([0.5] * 16),
)


@pytest.fixture(params=VERSIONS)
def full(request, tmp_path, monkeypatch) -> TensorRT:
    """TensorRT of a recorded version; its plans and networks have the tensors of GRAPH."""
    module = RecordedTensorRT(FIXTURES / f"tensorrt-{request.param}.txt")
    kinds = {"x": module.DataType.FLOAT, "y": module.DataType.BF16}
    modes = {"x": module.TensorIOMode.INPUT, "y": module.TensorIOMode.OUTPUT}

    def tensor(name):
        def make(network, index):
            found = module.new("ITensor")
            found.name, found.shape = name, SHAPES[name]
            vars(found)["dtype"] = kinds[name]
            return found

        return make

    module.answers |= {
        "get_plugin_registry": module.new("IPluginRegistry"),
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_outputs": 1,
        "INetworkDefinition.num_layers": 2,
        "INetworkDefinition.get_input": tensor("x"),
        "INetworkDefinition.get_output": tensor("y"),
        "ILayer.type": module.LayerType.PLUGIN_V3,
        "ITimingCache.serialize": b"times",
        "Builder.build_serialized_network": b"a plan",
        "OnnxParser.num_errors": 1,
        "OnnxParser.get_error": module.new("ParserError"),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda engine, index: "xy"[index],
        "ICudaEngine.get_tensor_mode": lambda engine, name: modes[name],
        "ICudaEngine.get_tensor_dtype": lambda engine, name: kinds[name],
        "ICudaEngine.get_tensor_shape": lambda engine, name: SHAPES[name],
        "IExecutionContext.update_device_memory_size_for_shapes": 4096,
    }
    monkeypatch.setattr(tensorrt_plans, "user_cache", lambda: tmp_path / "cache")
    found = TensorRT(module, "tensorrt")
    monkeypatch.setattr(tensorrt_plans, "load_tensorrt", lambda flavour: found)
    return found


def built(tmp_path, **changes):
    job = {"model": tmp_path / "x.onnx", "plan": tmp_path / "x.plan", "graph": GRAPH}
    return tensorrt_plans.build(
        PlanJob(**job | {"flavour": "tensorrt"} | changes), lambda phase, done: None
    )


def engine_of(full: TensorRT, tmp_path: Path, **changes) -> TensorRTEngine:
    (tmp_path / "x.plan").write_bytes(b"a plan")
    manifest = SimpleNamespace(
        versions={"tensorrt": full.version}, target="sm_90", build_command="vicort-build m"
    )
    return TensorRTEngine(
        tmp_path / "x.plan", GRAPH.model_copy(update=changes), manifest, full, None
    )


@pytest.mark.parametrize("strip", [False, True], ids=["whole", "stripped"])
def test_a_plan_is_built_by_calls_that_every_version_takes(full, tmp_path, strip, monkeypatch):
    monkeypatch.setattr(tensorrt_plans.Kernels, "read", lambda path: SimpleNamespace(spec=SPEC))
    found = built(tmp_path, strip=strip, kernels=tmp_path / "kernels.zip")
    assert found.plugin_layers == 2
    assert (tmp_path / "x.plan").read_bytes() == b"a plan"
    (times,) = (tmp_path / "cache" / "vicort").iterdir()
    assert times.read_bytes() == b"times"
    calls = full.module.calls
    assert calls["IOptimizationProfile.set_shape"] == calls["IPluginRegistry.register_creator"] == 1
    assert calls["IBuilderConfig.set_flag"] == 2 * strip


def test_what_the_parser_refuses_is_read_from_its_error(full, tmp_path):
    answers = {"node_name": "/a", "node_operator": "Einsum", "desc": "not so"}
    full.module.answers |= {"OnnxParser.parse_from_file": False} | {
        f"ParserError.{name}": value for name, value in answers.items()
    }
    with pytest.raises(EngineError, match=r"node /a \(Einsum\) of x\.onnx: not so"):
        built(tmp_path)


def test_an_engine_is_loaded_run_captured_and_timed_by_calls_that_every_version_takes(
    full, tmp_path
):
    engine, stream = engine_of(full, tmp_path), FakeStream([])
    bindings = {"x": FakeArray((5, 4), np.float32), "y": FakeArray((5,), "bfloat16")}
    for _ in range(3):
        engine.enqueue(bindings, stream)
    assert engine.graph_report(stream) == {"graphs": 1, "refusals": []}
    assert engine.layer_times(bindings, stream, 1) == {}
    assert full.module.calls["IExecutionContext.execute_async_v3"] == 5


def test_a_stripped_plan_is_refitted_by_calls_that_every_version_takes(full, tmp_path):
    engine_of(full, tmp_path, refit_from="x.onnx")
    calls = full.module.calls
    assert calls["OnnxParserRefitter.refit_from_file"] == calls["Refitter.refit_cuda_engine"] == 1


def test_a_plan_that_is_refused_is_one_line_in_every_version(full, tmp_path):
    full.module.answers["Runtime.deserialize_cuda_engine"] = None
    full.logger.log(SimpleNamespace(name="ERROR"), "another GPU")
    with pytest.raises(
        EngineError, match=r"cannot load it \(another GPU\), it was built for sm_90"
    ):
        engine_of(full, tmp_path)


def test_tensorrt_can_call_what_it_is_given_in_every_version(full):
    """The plugin, its creator, the logger and the monitors: each method takes the arguments that
    TensorRT passes, and each attribute that it reads is there."""
    creator = tensorrt._derive(tensorrt.PluginCreator, full.module.IPluginCreatorV3One)
    parts = [f"IPluginV3{part}" for part in ("", "OneCore", "OneBuildV2", "OneRuntime")]
    plugin = tensorrt._derive(tensorrt.BoundedAttention, *(getattr(full.module, p) for p in parts))
    given = {
        "ILogger": full.logger,
        "IProfiler": tensorrt._derive(tensorrt.LayerTimes, full.module.IProfiler)(),
        "IProgressMonitor": tensorrt_plans.progress_monitor(full, lambda phase, done: None),
        "IPluginCreatorV3One": creator(full.module),
    } | dict.fromkeys(parts, plugin(full.module, None, {}))
    for name, found in given.items():
        for member, (node, *_) in getattr(full.module, name).MEMBERS.items():
            if member in ("__init__", "destroy") or isinstance(node, ast.AnnAssign):
                continue
            assert member in dir(type(found).__mro__[1]), f"{name}.{member} is not ours"
            count = len(node.args.args) - (member != "get_aliased_input")  # its self is not listed
            inspect.signature(getattr(found, member)).bind(*[None] * count)
    for name, members in ATTRIBUTES.items():
        for member in members.split():
            assert member in getattr(full.module, name).MEMBERS
            assert getattr(given[name], member)


def test_names_of_enumerations_are_those_of_every_version(full):
    module = full.module
    assert set(tensorrt.TYPES) <= set(module.DataType.__members__)
    assert {"INT32", "FLOAT32"} <= set(module.PluginFieldType.__members__)
    strongly_typed = tensorrt_plans._network_flags(full)
    wanted = 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert strongly_typed == (wanted if full.version.startswith("10.") else 0)


def test_a_call_that_the_bindings_do_not_have_is_found():
    """That is, the other tests of this file can fail."""
    module = RecordedTensorRT(FIXTURES / f"tensorrt-{VERSIONS[-1]}.txt")
    config = module.new("IBuilderConfig")
    for wrong, said in [
        (lambda: config.set_flags(1), "set_flags"),
        (lambda: config.set_flag(), "missing"),
        (lambda: config.set_flag("TF32"), "is no BuilderFlag"),
        (lambda: setattr(config, "max_aux_streams", "0"), "is no int"),
        (lambda: setattr(config, "aux_streams", 0), "aux_streams"),
        (lambda: module.BuilderFlag.FP16, "FP16"),
        (lambda: module.new("OnnxParser").parse_from_file(Path("x")), "is no str"),
    ]:
        with pytest.raises((AttributeError, TypeError), match=said):
            wrong()


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x.float()


@pytest.fixture
def torch_tensorrt(monkeypatch):
    """Takes what torch-tensorrt takes, and answers with `plan`; asked: the arguments."""
    names: dict = {}
    exec((FIXTURES / "torch-tensorrt.txt").read_text(), names)
    signature = inspect.signature(names["convert_exported_program_to_serialized_trt_engine"])

    class Input:
        def __init__(self, **facts):
            names["Input"](**facts)
            self.facts = facts

    def convert(*args, **options):
        found.asked = signature.bind(*args, **options).arguments
        if isinstance(found.plan, Exception):
            raise found.plan
        return found.plan

    found = SimpleNamespace(Input=Input, plan=b"a plan", asked={})
    found.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", found)
    monkeypatch.setattr(
        "vicort.export.torch_tensorrt.export_program",
        lambda module, graph, device: export_program(module, graph, "cpu"),
    )
    return found


def test_torch_tensorrt_is_asked_for_every_size_and_by_names_that_it_has(torch_tensorrt, tmp_path):
    graph = GRAPH.model_copy(update={"outputs": (GRAPH.outputs[0],)})
    found = compile_directly(Doubled(), graph, tmp_path / "x.plan")
    assert (tmp_path / "x.plan").read_bytes() == b"a plan"
    assert found.plan_names == {"y": "output0"}
    (given,) = torch_tensorrt.asked["arg_inputs"]
    shapes = {"min_shape": (1, 4), "opt_shape": (8, 4), "max_shape": (64, 4)}
    assert given.facts == {"name": "x", "dtype": torch.float32} | shapes
    # its pass makes causal attention of attention with any bias, where this is not said
    assert torch_tensorrt.asked["attn_bias_is_causal"] is False
    assert torch_tensorrt.asked["max_aux_streams"] == 0


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (b"", "returned no x.plan"),
        (RuntimeError("no converter\nthe graph"), "x.plan: no converter: leave"),
    ],
)
def test_a_plan_that_torch_tensorrt_does_not_make_is_one_line(torch_tensorrt, tmp_path, plan, said):
    torch_tensorrt.plan = plan
    with pytest.raises(EngineError, match=said):
        compile_directly(Doubled(), GRAPH, tmp_path / "x.plan")


def test_a_plan_of_torch_tensorrt_is_not_stripped(full, monkeypatch, capfd):
    monkeypatch.setattr("vicort.runtime.engines.tensorrt.load_tensorrt", lambda flavour: full)
    options = ["tiny", "--backend", "tensorrt", "--frontend", "torch-tensorrt", "--strip"]
    assert build.main(options) == 2
    assert "--strip --frontend torch-tensorrt: weights" in capfd.readouterr().err


@pytest.mark.slow
def test_the_bindings_that_are_installed_say_what_was_recorded():
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("pip install --no-deps tensorrt-cu13-bindings")
    version = metadata.version("tensorrt-cu13-bindings")
    site = Path(find_spec("tensorrt_bindings").submodule_search_locations[0]).parent
    assert listing_of(site, version) == (FIXTURES / f"tensorrt-{version}.txt").read_text()
