"""Plans that TensorRT for RTX really builds, without a GPU: what is in them, and what is said when
it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.engine_sets import TOKENIZER, checkpoint
from support.interpreter import stand_in
from support.reference_model import write_random_checkpoint
from support.sizes import slow
from support.tensorrt_sets import (
    ONE_GPU,
    plan_graphs,
    stored_runs,
    tiny_checkpoint,
    tiny_model,
    tiny_name,
    tiny_onnx,
    tiny_set,
)

from vicort.export import build, tensorrt_plans
from vicort.export.engine_set_writer import PlanOptions, draft_manifest, is_built, write_engine_set
from vicort.export.graphs import (
    export_graph,
    export_program,
    plan_signatures,
    remove_functions,
    signatures,
    write_graph,
)
from vicort.export.kernels.compile import kernel_spec
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_dynamic_vision, load_language, load_vision
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tensorrt_plans import (
    BuiltPlan,
    PlanJob,
    build_plan,
    listed_tensors,
    profile_shape,
)
from vicort.export.verify import language_inputs
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.engines.openvino import OpenVinoEngine
from vicort.runtime.engines.reference import REFERENCE_FILE
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.manifest import (
    FILE_NAME,
    MAX_ENDS,
    Dimension,
    GraphSpec,
    Manifest,
    TensorSpec,
    read_manifest,
)

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def job(tmp_path, name: str, plugin: bool = True, **changes) -> PlanJob:
    """One graph of the tiny model."""
    file = name if plugin else f"{name}.expanded"
    graph = plan_graphs(plugin)[name]
    kernels = tiny_set() / KERNELS_FILE if graph.plugin_layers else None
    facts = {
        "model": tiny_onnx() / f"{file}.onnx",
        "plan": tmp_path / graph.file,
        "graph": graph,
        "kernels": kernels,
    }
    return PlanJob(**(facts | {"flavour": "tensorrt_rtx"} | changes))


def refused(asked: PlanJob) -> str:
    with pytest.raises(EngineError) as caught:
        build_plan(asked)
    assert len(str(caught.value).splitlines()) == 1
    assert not asked.plan.exists()
    return str(caught.value)


def test_a_set_holds_plans_kernels_embeddings_and_a_tokenizer_and_no_onnx():
    folder = tiny_set()
    manifest = read_manifest(folder)
    found = {path.name for path in folder.iterdir()}
    assert found == {*manifest.files, FILE_NAME}
    assert {
        "llm.plan",
        "vision.plan",
        "tokens.plan",
        KERNELS_FILE,
        "embedding.bin",
        "tokenizer.json",
        "config.json",
    } <= found
    assert not [name for name in found if "onnx" in name or name in ("llm.bin", "vision.bin")]
    assert (
        manifest.files["embedding.bin"].bytes
        == manifest.embedding.rows * manifest.embedding.width * 2
    )
    with zipfile.ZipFile(folder / KERNELS_FILE) as kernels:
        assert [name for name in kernels.namelist() if str(ONE_GPU[0]) in name]


def test_the_manifest_says_what_was_built_with_what():
    manifest = read_manifest(tiny_set())
    assert (manifest.backend, manifest.flavour, manifest.precision) == (
        "tensorrt",
        "tensorrt_rtx",
        "bf16",
    )
    assert {"tensorrt-rtx", "triton", "torch", "exporter"} <= set(manifest.versions)
    assert {graph.file for graph in manifest.graphs.values()} == {
        "llm.plan",
        "vision.plan",
        "tokens.plan",
        "head.plan",
    }
    llm = manifest.graphs["llm"]
    assert (
        llm.layer_types["PLUGIN_V3"]
        == llm.plugin_layers
        == llm.attention_layers
        == manifest.model.layers
    )
    assert all(
        "PLUGIN_V3" not in manifest.graphs[name].layer_types
        for name in ("vision", "tokens", "head")
    )
    assert all(
        graph.layer_types["SHUFFLE"] for name, graph in manifest.graphs.items() if name != "head"
    )
    assert sum(manifest.graphs["head"].layer_types.values())


def test_building_again_does_nothing(capfd):
    tiny_set()
    capfd.readouterr()
    assert build.main([tiny_name(), "--backend", "tensorrt", "--out", str(tiny_set())]) == 0
    assert "up to date" in capfd.readouterr().err


@pytest.mark.parametrize("change", [{"plugin": False}, {"strip": True}, {"targets": ("sm_89",)}])
def test_a_set_of_other_options_is_not_up_to_date(change):
    def planned(**options) -> Manifest:
        return draft_manifest(
            tiny_checkpoint(),
            tiny_model(),
            "tensorrt",
            "bf16",
            "",
            PlanOptions("tensorrt_rtx", **options),
        )

    assert is_built(tiny_set(), planned())
    assert not is_built(tiny_set(), planned(**change))


@pytest.fixture
def quick(monkeypatch):
    """A build whose export and compilation are pretence: what is left is what goes into the
    folder."""

    def exports(folder, *_, but=""):
        shutil.copytree(tiny_onnx(), folder, dirs_exist_ok=True)
        (folder / "llm.expanded.onnx").unlink()
        yield from ((name, None) for name in ("llm", "head", "vision", "tokens") if name != but)

    def build_plan(job, progress):
        job.plan.write_bytes(b"a plan")
        return BuiltPlan(layer_types={"CAST": 1}, plugin_layers=job.graph.plugin_layers)

    tiny_onnx()
    monkeypatch.setattr("vicort.export.kernels.compile.compile_kernels", lambda *_: b"cubins")
    for name, pretence in {
        "_exports": exports,
        "build_plan": build_plan,
        "remove_functions": str,
        "write_nodes": lambda *_: None,
    }.items():
        monkeypatch.setattr(f"vicort.export.engine_set_writer.{name}", pretence)
    return monkeypatch


def built_quickly(folder: Path, **options) -> Manifest:
    folder.mkdir()
    chosen = PlanOptions("tensorrt_rtx", **options)
    write_engine_set(
        folder,
        tiny_checkpoint(),
        draft_manifest(tiny_checkpoint(), tiny_model(), "tensorrt", "bf16", "", chosen),
        lambda line: None,
        chosen,
    )
    return read_manifest(folder)


def test_a_stripped_set_keeps_the_weights_that_its_plans_are_to_be_given(quick, tmp_path):
    manifest = built_quickly(tmp_path / "set", strip=True)
    assert {
        "llm.onnx",
        "llm.bin",
        "head.onnx",
        "vision.onnx",
        "vision.bin",
        "tokens.onnx",
        "embedding.bin",
    } <= set(manifest.files)
    assert {name: graph.refit_from for name, graph in manifest.graphs.items()} == {
        name: f"{name}.onnx" for name in manifest.graphs
    }
    assert not [name for name in built_quickly(tmp_path / "whole").files if name.endswith(".onnx")]


def test_a_plan_that_lost_its_plugins_is_refused(quick, tmp_path):
    quick.setattr(
        "vicort.export.engine_set_writer.build_plan",
        lambda job, progress: BuiltPlan(layer_types={}, plugin_layers=0),
    )
    said = rf"llm\.plan has 0 plugin layers, {tiny_model().layers} were expected"
    with pytest.raises(EngineError, match=said):
        built_quickly(tmp_path / "set")


def test_a_build_that_tensorrt_refuses_leaves_nothing(quick, tmp_path, capfd):
    def refuse(job, progress):
        raise EngineError("tensorrt_rtx cannot take node x of llm.onnx")

    quick.setattr("vicort.export.engine_set_writer.build_plan", refuse)
    assert build.main([tiny_name(), "--backend", "tensorrt", "--out", str(tmp_path / "set")]) == 2
    assert "node x" in capfd.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_build_says_that_it_was_not_run_where_there_is_no_gpu(quick, tmp_path, capfd):
    quick.setattr(tensorrt_plans, "missing_gpu", lambda: "no driver")
    assert build.main([tiny_name(), "--backend", "tensorrt", "--out", str(tmp_path / "set")]) == 0
    assert (
        capfd.readouterr().err.splitlines()[-1]
        == "vicort-build: built, not run: this machine has no NVIDIA GPU"
    )


def test_the_vision_plan_can_come_straight_from_the_exported_program(quick, tmp_path):
    """torch-tensorrt itself was never run: this is what it would be asked."""
    asked = []

    def convert(program, **options):
        asked.append((program, options))
        return b"a plan of torch-tensorrt"

    dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    module = SimpleNamespace(dynamo=dynamo, Input=lambda **facts: facts)
    quick.setitem(sys.modules, "torch_tensorrt", module)
    quick.setattr(
        "vicort.export.torch_tensorrt.export_program",
        lambda module, graph, device: export_program(module, graph, "cpu"),
    )
    quick.setattr("vicort.export.engine_set_writer.version", lambda name: "1.0")
    manifest = built_quickly(tmp_path / "set", frontend="torch-tensorrt")
    ((program, options),) = asked
    assert program.graph_signature.user_inputs == ("frames",)
    assert options["arg_inputs"][0]["max_shape"][1:] == (112, 112, 3)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    layers = read_configuration(tiny_checkpoint()).vision.depth
    assert [node.target for node in program.graph.nodes].count(attention) == layers
    assert manifest.graphs["vision"].plan_names == {"features": "output0"}
    assert (tmp_path / "set" / "vision.plan").read_bytes() == b"a plan of torch-tensorrt"


@pytest.mark.parametrize("max_pixels", [1_000_000, *slow(308 * 308)])
def test_one_vision_plan_serves_frames_of_every_size(tmp_path, max_pixels, monkeypatch):
    """Built, not run. Its profile goes from one token to the largest frame. In each block attention
    is one kernel: products, scale, bias, softmax in fp32 and casts."""
    listings = []
    monkeypatch.setattr(
        tensorrt_plans, "_check_listing", lambda job, listed, plugins: listings.extend(listed)
    )
    config = read_configuration(checkpoint())
    spec = model_spec("any", config, load_recipe("any", max_pixels=max_pixels))
    graph = plan_signatures(signatures(spec, "bf16"), spec, plugin=True, strip=False)["vision"]
    exported, _ = export_graph(load_dynamic_vision(checkpoint(), config, torch.bfloat16), graph)
    for _ in write_graph(exported, tmp_path / "vision.onnx"):
        pass
    asked = PlanJob(
        model=tmp_path / "vision.onnx",
        plan=tmp_path / graph.file,
        graph=graph,
        flavour="tensorrt_rtx",
    )
    assert tensorrt_plans.build(asked, lambda phase, done: None).layer_types["GATHER"]
    kernels = [line for line in listings[0].splitlines() if line.startswith("Name: _gemm_mha")]
    assert len(kernels) == config.vision.depth
    assert all("softmax" in kernel for kernel in kernels)
    assert asked.plan.stat().st_size > 0
    frames = graph.inputs[0]
    tokens = max_pixels // 28**2
    assert profile_shape(graph, frames, "min") == (2, 56, 42)
    assert profile_shape(graph, frames, "max") == (16, 56 * tokens, 42)


@pytest.mark.parametrize("plugin", [True, False])
def test_plans_give_the_hidden_states_of_as_many_rows_as_the_runtime_asks_for(plugin):
    """And without the plugin rows have one table, but may be a tree."""
    graphs = plan_graphs(plugin)
    for graph, name in (("llm", "ends"), ("head", "hidden")):
        spec = next(each for each in graphs[graph].inputs if each.name == name)
        sizes = {
            bound: profile_shape(graphs[graph], spec, bound)[0] for bound in ("min", "opt", "max")
        }
        assert sizes == {"min": 1, "opt": 1, "max": MAX_ENDS}
        assert graphs[graph].outputs[0].shape[0] == "E"
    shapes = {spec.name: spec.shape for spec in graphs["llm"].inputs}
    assert shapes["table"][0] == ("S" if plugin else 1)
    assert ("S" in graphs["llm"].dimensions) == plugin
    assert shapes["segment"] == shapes["until"] == ("C",)


def test_attention_over_int8_pages_builds_with_the_plugin(tmp_path):
    config = read_configuration(checkpoint())
    model = model_spec("two layers", config, load_recipe("tiny"))
    graphs = plan_signatures(signatures(model, "bf16", "int8"), model, True, False)
    exported, _ = export_graph(load_language(checkpoint(), config, torch.bfloat16), graphs["llm"])
    remove_functions(exported)
    for _ in write_graph(exported, tmp_path / "llm.onnx"):
        pass
    spec = kernel_spec(config.language, model.page_tokens, "bf16", kv="int8")
    kernels = tmp_path / "kernels.zip"
    kernels.write_bytes(stand_in(spec, {"wide": (64, 32), "narrow": (16, 32)}))
    plan = PlanJob(
        model=tmp_path / "llm.onnx",
        plan=tmp_path / "llm.plan",
        graph=graphs["llm"],
        flavour="tensorrt_rtx",
        kernels=kernels,
    )
    assert build_plan(plan).plugin_layers == model.layers
    kernels.write_bytes(
        stand_in(spec.model_copy(update={"kv": "float"}), {"wide": (64, 32), "narrow": (16, 32)})
    )
    with pytest.raises(EngineError, match=r"is for pages of \('bfloat16'.*are \('int8'"):
        build_plan(plan)


def test_attention_builds_without_the_plugin_too(tmp_path):
    built = build_plan(job(tmp_path, "llm", plugin=False))
    assert built.plugin_layers == 0
    assert "PLUGIN_V3" not in built.layer_types
    assert built.layer_types["SOFTMAX"] == tiny_model().layers
    assert (tmp_path / "llm.plan").stat().st_size > tiny_model().layers << 18


def test_progress_goes_on_to_the_end(tmp_path):
    told: list[tuple[str, float]] = []
    build_plan(job(tmp_path, "tokens"), lambda phase, done: told.append((phase, done)))
    assert len(told) > 20
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] > 0.8
    assert len({phase for phase, _ in told}) > 1


def test_an_interrupted_build_leaves_no_process(tmp_path, monkeypatch):
    children = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            children.append(self)

    def interrupt(phase, done):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_plans.subprocess, "Popen", Popen)
    with pytest.raises(KeyboardInterrupt):
        build_plan(job(tmp_path, "tokens"), interrupt)
    assert children[0].returncode == -signal.SIGKILL


def test_a_plan_can_be_for_named_gpus(tmp_path):
    build_plan(job(tmp_path, "tokens", targets=("sm_89", "sm_120")))
    assert (tmp_path / "tokens.plan").is_file()


# Refusals


def test_a_node_that_the_parser_does_not_take_is_named(tmp_path):
    value = helper.make_tensor_value_info
    node = helper.make_node("Fancy", ["x"], ["y"], name="the_fancy_one", domain="elsewhere")
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])]
    )
    onnx.save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
        ),
        tmp_path / "f.onnx",
    )
    said = refused(job(tmp_path, "tokens", model=tmp_path / "f.onnx"))
    assert "the_fancy_one" in said
    assert "Fancy" in said


def test_a_weights_file_that_is_missing_is_named(tmp_path):
    shutil.copy(tiny_onnx() / "vision.onnx", tmp_path)
    assert "vision.bin" in refused(job(tmp_path, "vision", model=tmp_path / "vision.onnx"))


def test_a_model_that_is_missing_is_named(tmp_path):
    assert "none.onnx" in refused(job(tmp_path, "vision", model=tmp_path / "none.onnx"))


def test_kernels_that_are_missing_are_named(tmp_path):
    assert KERNELS_FILE in refused(job(tmp_path, "llm", kernels=tmp_path / KERNELS_FILE))


def test_a_graph_that_is_not_what_was_planned_is_refused(tmp_path):
    graph = plan_graphs()["tokens"]
    other = graph.model_copy(
        update={
            "outputs": (
                graph.outputs[0].model_copy(update={"dtype": "float32"}),
                *graph.outputs[1:],
            )
        }
    )
    assert "'kept' is int32, not float32" in refused(job(tmp_path, "tokens", graph=other))


def test_shapes_that_no_profile_can_have_are_refused(tmp_path):
    graph = plan_graphs()["tokens"]
    upside_down = graph.model_copy(
        update={"dimensions": graph.dimensions | {"U": Dimension(min=5, opt=5, max=10**9)}}
    )
    assert "tokens.plan" in refused(job(tmp_path, "tokens", graph=upside_down))


def test_an_abort_in_tensorrt_is_one_line_here(tmp_path, monkeypatch):
    """A real one: without its loader path the parser ends the process when it comes to a plugin."""
    monkeypatch.setattr(tensorrt_plans, "loader_path", lambda flavour, folder: {})
    said = refused(job(tmp_path, "llm"))
    assert "llm.plan" in said
    assert "SIGABRT" in said
    assert "--no-plugin" in said


def other_pages(index: dict) -> dict:
    return index | {"spec": index["spec"] | {"page_tokens": 2 * index["spec"]["page_tokens"]}}


def other_angles(index: dict) -> dict:
    return index | {
        "spec": index["spec"] | {"frequencies": [0.5] * len(index["spec"]["frequencies"])}
    }


def no_constants(index: dict) -> dict:
    return index | {"kernels": [kernel | {"constants": {}} for kernel in index["kernels"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_pages, "is for pages of"),
        (other_angles, "another rotary embedding"),
        (no_constants, "BLOCK_M is None"),
    ],
)
def test_an_exception_of_the_plugin_is_not_lost_in_tensorrt(change, said, tmp_path):
    """TensorRT aborts after some (here configure_plugin's), reports others badly (create_plugin's),
    and drops the rest, building a plan all the same (get_workspace_size's)."""
    kernels = tmp_path / KERNELS_FILE
    with (
        zipfile.ZipFile(tiny_set() / KERNELS_FILE) as whole,
        zipfile.ZipFile(kernels, "w") as changed,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            changed.writestr(
                name, json.dumps(change(json.loads(content))) if name == "kernels.json" else content
            )
    assert said in refused(job(tmp_path, "llm", kernels=kernels))


def test_plans_are_built_for_fp32_that_is_fp32_and_for_cuda_graphs(tmp_path):
    rtx = tensorrt_plans.load_tensorrt("tensorrt_rtx")
    flags = rtx.module.BuilderFlag
    for strip in (False, True):
        config = rtx.module.Builder(rtx.logger).create_builder_config()
        tensorrt_plans._configure(rtx, config, job(tmp_path, "tokens", strip=strip))
        assert not config.get_flag(flags.TF32)
        assert config.get_flag(flags.REQUIRE_USER_ALLOCATION)
        assert config.get_flag(flags.STRIP_PLAN) == config.get_flag(flags.REFIT_IDENTICAL) == strip
        assert config.profiling_verbosity == rtx.module.ProfilingVerbosity.DETAILED
        assert config.max_aux_streams == 0


# What a listing says


LISTING = """Layers:
Name: a, LayerType: custom_layer, Inputs: []
Name: b, LayerType: gemm, Inputs: []

I/O Tensors:
 Name: tokens, IOMode: Input, DataType: Int32, Dimensions: [-1], Location: Device, ProfileInfo: [ { MinShape: [1], OptShape: [128] }]
 Name: k, IOMode: Output, DataType: BFloat16, Dimensions: [4,-1,2,32], Location: Device, ProfileInfo: [ { Format: linear }]

Engine Metadata:
"""
LISTED = GraphSpec(
    file="llm.plan",
    inputs=(TensorSpec(name="tokens", dtype="int32", shape=("C",)),),
    outputs=(TensorSpec(name="k", dtype="bfloat16", shape=(4, "C", 2, 32)),),
    dimensions={},
)


def test_the_tensors_of_a_plan_are_read_from_tensorrts_own_listing():
    inputs, outputs = listed_tensors(LISTING)
    assert inputs == [TensorSpec(name="tokens", dtype="int32", shape=("?",))]
    assert outputs == [TensorSpec(name="k", dtype="bfloat16", shape=(4, "?", 2, 32))]


def test_a_plan_whose_listing_differs_is_refused(tmp_path):
    listed = SimpleNamespace(graph=LISTED, plan=tmp_path / "llm.plan")
    tensorrt_plans._check_listing(listed, [LISTING], 1)
    with pytest.raises(EngineError, match="1 plugin layers, its network had 2"):
        tensorrt_plans._check_listing(listed, [LISTING], 2)
    with pytest.raises(EngineError, match="'k' is float32"):
        tensorrt_plans._check_listing(listed, [LISTING.replace("BFloat16", "Float")], 1)


def test_tensorrt_for_rtx_does_list_its_plans(tmp_path, monkeypatch):
    """Without that the comparison above would never be made."""
    seen = []
    monkeypatch.setattr(
        tensorrt_plans, "_check_listing", lambda job, listed, plugins: seen.extend(listed)
    )
    tensorrt_plans.build(job(tmp_path, "tokens"), lambda phase, done: None)
    (listing,) = seen
    assert {spec.name for side in listed_tensors(listing) for spec in side} == {
        "features", "threshold", "positions", "before", "mode", "kept", "count", "compact", "mean"
    }  # fmt: skip


# Bounds


@given(
    st.integers(1, 80),
    st.integers(1, 16),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([1, 4, 8, 16, 32, 1024]),
    st.booleans(),
)
def test_the_largest_pool_of_a_plan_is_one_that_tensorrt_takes(layers, heads, dim, tokens, plugin):
    model = tiny_model().model_copy(
        update={"layers": layers, "kv_heads": heads, "head_dim": dim, "page_tokens": tokens}
    )
    dimensions = plan_signatures(signatures(model, "bf16"), model, plugin, False)["llm"].dimensions
    volume = dimensions["P"].max * layers * heads * 2 * tokens * dim
    assert volume < (1 << 40 if plugin else 1 << 31)
    assert all(1 <= bounds.min <= bounds.opt <= bounds.max for bounds in dimensions.values())
    assert plugin or dimensions["N"].max * tokens <= 1 << 15


def test_a_pool_of_the_3b_model_may_be_larger_than_two_to_the_31_elements():
    model = tiny_model().model_copy(
        update={"layers": 36, "kv_heads": 2, "head_dim": 128, "page_tokens": 16}
    )
    most = plan_signatures(signatures(model, "bf16"), model, True, False)["llm"].dimensions["P"].max
    assert most * 36 * 2 * 2 * 16 * 128 * 2 > 140 << 30  # bytes: more than a GPU holds


# bf16


ACCURATE = {
    "Softmax",
    "ReduceMean",
    "Sqrt",
    "Reciprocal",
    "Pow",
    "Cos",
    "Sin",
    "ReduceSum",
    "CumSum",
}


@pytest.mark.parametrize("file", ["vision.onnx", "llm.expanded.onnx", "tokens.onnx"])
def test_norms_softmax_and_rotary_angles_of_the_bf16_graphs_are_in_fp32(file):
    model = onnx.shape_inference.infer_shapes(
        onnx.load(tiny_onnx() / file, load_external_data=False)
    )
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {
        node.output[0]: node.attribute[0].t.data_type
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute
    }
    found = {
        node.op_type: types.get(node.input[0])
        for node in model.graph.node
        if node.op_type in ACCURATE
    }
    assert found
    assert TensorProto.BFLOAT16 not in found.values()
    matmuls = {
        types.get(node.input[0]) for node in model.graph.node if node.op_type in ("MatMul", "Gemm")
    }
    assert file == "tokens.onnx" or TensorProto.BFLOAT16 in matmuls  # it is a bf16 graph


def arrays_of(
    graph: GraphSpec, inputs: dict[str, np.ndarray], **sizes: int
) -> dict[str, np.ndarray]:
    """The inputs, and room for the outputs."""
    shapes = {spec.name: [sizes.get(size, size) for size in spec.shape] for spec in graph.outputs}
    return inputs | {
        spec.name: np.zeros(shapes[spec.name], numpy_dtype(spec.dtype)) for spec in graph.outputs
    }


def as_torch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
    )


def off_by(found: np.ndarray, wanted: torch.Tensor) -> float:
    """The root mean square of the difference, as a part of the wanted values'."""
    difference = found.astype(np.float32) - wanted.numpy()
    return float(np.sqrt((difference**2).mean() / (wanted.numpy() ** 2).mean()))


def test_the_bf16_vision_graph_is_near_the_fp32_model():
    """The ONNX file that TensorRT is given, run by OpenVINO, beside PyTorch in fp32: within bf16's
    own rounding, 2^-8, a few times over."""
    model, graph, checkpoint = tiny_model(), plan_graphs()["vision"], tiny_checkpoint()
    frames = np.random.default_rng(0).integers(0, 256, (4, *model.fixed_size, 3), np.uint8)
    bound = arrays_of(graph, {"frames": frames}, U=2)
    OpenVinoEngine(tiny_onnx() / "vision.onnx", graph, threads=1, streams=1).enqueue(
        bound, InlineStream("test")
    )
    vision = load_vision(checkpoint, read_configuration(checkpoint), *model.fixed_size)
    with torch.no_grad():
        assert 1e-4 < off_by(bound["features"], vision(torch.from_numpy(frames))) < 2e-2


def test_the_bf16_language_graph_is_near_the_fp32_model():
    """On average over a few runs, and not much further from it than PyTorch's own bf16 is."""
    model, graph, checkpoint = tiny_model(), plan_graphs(plugin=False)["llm"], tiny_checkpoint()
    engine = OpenVinoEngine(tiny_onnx() / "llm.expanded.onnx", graph, threads=1, streams=1)
    exact, rounded = (
        load_language(checkpoint, read_configuration(checkpoint), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    ours, pytorchs = [], []
    for seed in range(6):
        inputs = language_inputs(
            model, np.dtype(ml_dtypes.bfloat16), 21, 9, np.random.default_rng(seed)
        )
        bound = arrays_of(graph, inputs, C=21, E=len(inputs["ends"]))
        engine.enqueue(bound, InlineStream("test"))
        tensors = [as_torch(inputs[spec.name]) for spec in graph.inputs]
        with torch.no_grad():
            wanted = exact(*tensors)
            near = rounded(
                *(tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in tensors)
            )
        ours.append(
            [
                off_by(bound[spec.name], tensor)
                for spec, tensor in zip(graph.outputs, wanted, strict=True)
            ]
        )
        pytorchs.append(
            [
                off_by(found.float().numpy(), tensor)
                for found, tensor in zip(near, wanted, strict=True)
            ]
        )
    means, limits = np.mean(ours, axis=0), np.mean(pytorchs, axis=0)
    assert (means > 1e-4).all()
    assert (means < 2e-2).all(), means
    assert (means < 2 * limits).all(), (means, limits)


# The full TensorRT, and real widths


def test_the_timing_cache_is_kept_for_the_next_build_of_the_full_tensorrt(tmp_path, monkeypatch):
    """With the builder configuration of TensorRT for RTX, which has the same calls."""
    monkeypatch.setattr(tensorrt_plans, "user_cache", lambda: tmp_path)
    rtx = tensorrt_plans.load_tensorrt("tensorrt_rtx")
    config = rtx.module.Builder(rtx.logger).create_builder_config()
    full = SimpleNamespace(flavour="tensorrt", version="11.4.0")
    for _ in range(2):
        with tensorrt_plans._timing_cache(full, config):
            pass
        (file,) = (tmp_path / "vicort").iterdir()
        assert file.name == "timing-tensorrt-11.4.0.cache"
        assert file.stat().st_size
    file.unlink()
    with tensorrt_plans._timing_cache(rtx, config):  # which has nothing to keep
        pass
    assert not list((tmp_path / "vicort").iterdir())


def test_the_full_tensorrt_builds_for_the_gpu_that_it_runs_on():
    full = SimpleNamespace(flavour="tensorrt", version="11.4.0", module=SimpleNamespace())
    assert tensorrt_plans.check_targets(full, ()) == {}
    with pytest.raises(ConfigError, match="leave --target out"):
        tensorrt_plans.check_targets(full, ("sm_90",))


def test_networks_are_strongly_typed_in_every_version():
    flags = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    versions = {("tensorrt", "10.13.2"): 2, ("tensorrt", "11.4.0"): 0, ("tensorrt_rtx", "1.7.1"): 0}
    for (flavour, version), wanted in versions.items():
        assert (
            tensorrt_plans._network_flags(
                SimpleNamespace(flavour=flavour, version=version, module=flags)
            )
            == wanted
        )


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "native"])
def test_the_widths_of_the_3b_model_build(plugin, tmp_path, capfd):
    """Two layers each, bf16, and the real vocabulary."""
    model = tmp_path / "qwen2.5-vl-3b"
    write_random_checkpoint(model, "3b-widths", seed=5, dtype=torch.bfloat16)
    shutil.copy(TOKENIZER, model)
    options = [] if plugin else ["--no-plugin"]
    assert (
        build.main([str(model), "--out", str(tmp_path / "set"), "--backend", "tensorrt", *options])
        == 0
    ), capfd.readouterr().err
    manifest = read_manifest(tmp_path / "set")
    llm = manifest.graphs["llm"]
    assert llm.layer_types.get("PLUGIN_V3", 0) == llm.plugin_layers == (2 if plugin else 0)
    assert (manifest.model.head_dim, manifest.model.width, manifest.model.vocabulary) == (
        128,
        2048,
        151936,
    )
    # the weights, each once: two layers' largest ones, and the head's
    assert 1.5 > manifest.files["llm.plan"].bytes / (2 * 2 * 3 * 2048 * 11008) > 1
    assert 1.1 > manifest.files["head.plan"].bytes / (2 * 151936 * 2048) > 1


def test_the_set_holds_what_the_model_computes_for_machines_without_pytorch():
    """An engine of a CPU that runs the same graph agrees with it."""
    graph = plan_graphs(plugin=False)["llm"]
    engine = OpenVinoEngine(tiny_onnx() / "llm.expanded.onnx", graph, threads=1, streams=1)
    folder = tiny_set()
    manifest = read_manifest(folder)
    runs = stored_runs(folder)
    names = [run.name.split()[0] for run in runs]
    assert names == ["vision", "tokens", "tokens", "head", "llm", "llm"]
    for run in runs[4:]:
        sizes = {"C": len(run.inputs["pos"]), "E": len(run.inputs["ends"])}
        bound = arrays_of(graph, run.inputs, **sizes)
        engine.enqueue(bound, InlineStream("test"))
        for name, wanted in run.wanted.items():
            found = bound[name].astype(np.float32)
            if name in run.rows:
                found, wanted = found[:, run.rows[name]], wanted[:, run.rows[name]]
            assert np.abs(found - wanted).max() <= run.allowed[name] * np.abs(wanted).max()
    assert REFERENCE_FILE in manifest.files
