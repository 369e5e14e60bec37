"""TensorRTEngine against a stand-in for TensorRT and CUDA; the switch and the plugin against the
real tensorrt_rtx."""

import gc
import importlib
import json
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.fake_tensorrt import FakeArray, FakeStream, FakeTensorRT
from support.interpreter import stand_in
from support.manifests import manifest
from support.simulated_cuda import SimulatedDriver

import vicort.runtime.devices.cuda
from vicort.runtime.devices.cuda import Gpu
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines import tensorrt
from vicort.runtime.engines.backend import open_backend
from vicort.runtime.engines.graph_cache import LATER_WAIT, GraphCache
from vicort.runtime.engines.tensorrt import (
    MAX_GRAPHS,
    LayerTimes,
    TensorRTBackend,
    TensorRTEngine,
    load_tensorrt,
)
from vicort.runtime.errors import DeviceError, EngineError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.kernels import KernelSpec
from vicort.runtime.manifest import FILE_NAME, Dimension, GraphSpec, TensorSpec

SIGNATURE = GraphSpec(
    file="x.plan",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("C", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("C",)),),
    dimensions={"C": Dimension(min=1, opt=8, max=64)},
)
TENSORS = (("x", "input", "FLOAT", (-1, 4)), ("y", "output", "FLOAT", (-1,)))
MANIFEST = SimpleNamespace(
    versions={"tensorrt": "11.4.0"}, target="sm_90", build_command="vicort-build m"
)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "x.plan"
    path.write_bytes(b"a plan")
    return path


@pytest.fixture
def fake():
    return FakeTensorRT(TENSORS)


@pytest.fixture
def engine(plan, fake):
    return TensorRTEngine(plan, SIGNATURE, MANIFEST, fake, None)


@pytest.fixture
def stream(fake):
    return FakeStream(fake.engine.calls)


def bound(rows: int) -> dict[str, FakeArray]:
    return {"x": FakeArray((rows, 4), np.float32), "y": FakeArray((rows,), np.float32)}


def taken(fake: FakeTensorRT) -> list[tuple]:
    """The calls since the last time."""
    calls, fake.engine.calls[:] = list(fake.engine.calls), []
    return calls


def names(calls: list[tuple]) -> list[str]:
    return [call[1] if isinstance(call[0], int) else call[0] for call in calls]


def test_a_run_sets_shapes_then_memory_then_addresses_and_executes_on_the_streams_handle(
    engine, fake, stream
):
    arrays = bound(5)
    assert engine.enqueue(arrays, stream).done() is None
    assert taken(fake) == [
        ("context", "user managed"),
        (0, "shape", "x", (5, 4)),
        (0, "size"),
        ("allocate", 5000),
        (0, "memory", 5000),
        (0, "address", "x", arrays["x"].pointer),
        (0, "address", "y", arrays["y"].pointer),
        (0, "execute", 7),
    ]


def test_the_second_run_of_the_same_arrays_is_captured_after_a_warm_up_and_later_ones_replay(
    engine, fake, stream
):
    arrays = bound(5)
    engine.enqueue(arrays, stream)
    taken(fake)
    engine.enqueue(arrays, stream)
    second = taken(fake)
    assert names(second) == [
        "context", "shape", "size", "memory", "address", "address", "execute",
        "begin capture", "execute", "end capture",
    ]  # fmt: skip
    # a context of the graph's own, since the graph keeps its state
    assert second[6][0] == second[8][0] == 1
    for _ in range(3):
        engine.enqueue(arrays, stream)
    assert taken(fake) == [("replay", 7)] * 3


def test_other_shapes_or_other_addresses_are_another_graph(engine, fake, stream):
    first, shorter = bound(5), bound(4)
    moved = first | {"y": FakeArray((5,), np.float32)}
    part = {
        name: FakeArray((4, *array.shape[1:]), np.float32, pointer=array.pointer)
        for name, array in first.items()
    }
    for arrays in (first, first, shorter, moved, part):
        engine.enqueue(arrays, stream)
    taken(fake)
    for arrays in (first, shorter, moved, part):
        engine.enqueue(arrays, stream)
    assert [name for name in names(taken(fake)) if name in ("replay", "begin capture")] == [
        "replay",
        *["begin capture"] * 3,
    ]


def test_plain_runs_after_a_capture_leave_the_graphs_context_alone(engine, fake, stream):
    arrays = bound(5)
    for _ in range(2):
        engine.enqueue(arrays, stream)
    taken(fake)
    engine.enqueue(bound(3), stream)
    assert {call[0] for call in taken(fake)} == {0}


def test_what_cannot_be_captured_is_remembered_and_runs_plainly(engine, fake, stream):
    stream.refuses_capture = True
    arrays = bound(5)
    for _ in range(2):
        engine.enqueue(arrays, stream)
    stream.refuses_capture = False
    taken(fake)
    for _ in range(3):
        engine.enqueue(arrays, stream)
    assert "begin capture" not in (calls := names(taken(fake)))
    assert calls.count("execute") == 3
    assert engine.graph_report(stream) == {
        "graphs": 0,
        "refusals": ["the driver does not capture this"],
    }


def test_a_context_that_says_it_cannot_be_captured_is_not(engine, fake, stream, monkeypatch):
    monkeypatch.setattr(
        "support.fake_tensorrt.FakeContext.is_stream_capturable",
        lambda self, handle: handle != 7,
        raising=False,
    )
    arrays = bound(5)
    for _ in range(3):
        engine.enqueue(arrays, stream)
    assert "begin capture" not in names(taken(fake))


def test_layers_are_timed_on_a_context_of_their_own_outside_of_graphs(engine, fake, stream):
    arrays = bound(5)
    for _ in range(3):
        engine.enqueue(arrays, stream)
    taken(fake)
    assert engine.layer_times(arrays, stream, runs=2) == {
        "norm": [0.75, 0.75],
        "product": [2.0, 2.0],
    }
    calls = taken(fake)
    assert names(calls).count("execute") == 3  # one to warm up
    assert "replay" not in names(calls)
    assert names(calls)[0] == "context"
    engine.enqueue(arrays, stream)
    assert names(taken(fake)) == ["replay"]  # the graph is still there


def test_graphs_are_bounded_and_the_oldest_is_closed_once_the_stream_has_passed(
    engine, fake, stream
):
    runs = [bound(5) for _ in range(MAX_GRAPHS + 1)]
    for arrays in runs:
        engine.enqueue(arrays, stream)
        engine.enqueue(arrays, stream)
    assert engine.graph_report(stream) == {"graphs": MAX_GRAPHS, "refusals": []}
    assert engine.graph_report(FakeStream([])) == {"graphs": 0, "refusals": []}
    ((work, args),) = stream.notices
    (oldest,) = args[0]
    assert not oldest.graph.closed  # the stream may still be at it
    work(*args)
    assert oldest.graph.closed
    taken(fake)
    for _ in range(LATER_WAIT):  # the one that had to go does not push out the next at once
        engine.enqueue(runs[0], stream)
    engine.enqueue(runs[1], stream)
    assert names(taken(fake)).count("replay") == 1
    engine.enqueue(runs[0], stream)
    assert "end capture" in names(taken(fake))


def test_memory_grows_with_the_runs_and_graphs_of_the_smaller_block_go(engine, fake, stream):
    small, large = bound(4), bound(40)
    for _ in range(2):
        engine.enqueue(small, stream)
    assert names(taken(fake)).count("allocate") == 1
    engine.enqueue(large, stream)
    assert ("allocate", 40_000) in taken(fake)
    engine.enqueue(small, stream)
    assert "replay" not in names(taken(fake))  # its memory is gone
    for arrays in (small, large, bound(39)):
        for _ in range(3):
            engine.enqueue(arrays, stream)
    assert "allocate" not in names(taken(fake))


def test_memory_does_not_grow_beyond_what_the_largest_run_needs(engine, fake, stream):
    fake.engine.device_memory_size_v2 = 42_000
    for rows in (40, 41, 42):
        engine.enqueue(bound(rows), stream)
    sizes = [call[1] for call in taken(fake) if call[0] == "allocate"]
    assert sizes == [40_000, 42_000]


def test_a_session_leaves_room_for_the_contexts_of_all_its_streams(plan, fake, monkeypatch):
    """Of chunks and of questions; what files tell counts before engines are loaded, too."""
    folder, gpu = plan.parent, Gpu(SimulatedDriver(total=9_000_000))
    graph = SIGNATURE.model_dump(mode="json") | {"file": plan.name}
    written = manifest(backend="tensorrt", flavour="tensorrt", graphs={"llm": graph})
    (folder / FILE_NAME).write_text(json.dumps(written))
    spec = KernelSpec(
        kv_heads=2,
        groups=2,
        head_dim=32,
        page_tokens=4,
        dtype="float32",
        sections=(4, 6, 6),
        frequencies=(1.0,) * 16,
    )
    (folder / KERNELS_FILE).write_bytes(stand_in(spec, {"wide": (16, 16), "narrow": (16, 16)}))
    monkeypatch.setattr(vicort.runtime.devices.cuda, "open_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda flavour: fake)
    monkeypatch.setattr(tensorrt, "LoadedKernels", lambda kernels, **_: None)
    fake.engine.device_memory_size_v2 = 1_500_000
    backend = TensorRTBackend(folder)
    assert backend.memory() == replace(gpu.machine_memory(), engines=plan.stat().st_size)
    backend.load(plan, SIGNATURE, streams=2)
    backend.load(plan, SIGNATURE, streams=1)
    device = backend.new_device(overlap=True)
    assert device.memory() == backend.memory()
    model = toy_model()
    with pytest.raises(DeviceError, match=r"take 5, runs 4: give --memory less than 4MB"):
        device.pool(model, 5_000_000 // page_bytes(model, np.float32), np.float32)
    device.close()


def test_each_stream_has_contexts_and_memory_of_its_own_which_go_with_it(engine, fake, stream):
    other = FakeStream(fake.engine.calls, handle=8)
    engine.enqueue(bound(5), stream)
    engine.enqueue(bound(5), other)
    calls = taken(fake)
    assert names(calls).count("allocate") == 2
    assert [(call[0], call[2]) for call in calls if call[1:2] == ("execute",)] == [(0, 7), (1, 8)]
    assert len(engine._contexts) == 2
    del other
    gc.collect()
    assert len(engine._contexts) == 1


def test_a_plugins_own_exception_is_what_the_user_reads(engine, fake, stream):
    fake.engine.host_failure = ValueError("no such layer")
    with pytest.raises(EngineError, match=r"x\.plan.*no such layer") as caught:
        engine.enqueue(bound(5), stream)
    assert isinstance(caught.value.__cause__, ValueError)
    fake.engine.host_failure = None
    engine.enqueue(bound(5), stream)  # told once, not for ever


def test_without_one_it_is_what_tensorrt_logged(engine, fake, stream):
    fake.engine.fails = True
    with pytest.raises(EngineError, match="the log's first error"):
        engine.enqueue(bound(5), stream)


def test_a_shape_that_tensorrt_refuses_is_an_error(engine, fake, stream):
    fake.engine.refused = {"x"}
    with pytest.raises(EngineError, match=r"x of shape \(5, 4\)"):
        engine.enqueue(bound(5), stream)


def test_more_rows_than_the_profile_has_is_one_line_with_the_bound(engine, fake, stream):
    with pytest.raises(EngineError, match="takes C up to 64, not 65") as caught:
        engine.enqueue(bound(65), stream)
    assert len(str(caught.value).splitlines()) == 1
    assert taken(fake) == []


def test_an_address_that_is_not_aligned_is_a_defect_of_the_caller(engine, stream):
    with pytest.raises(ValueError, match="256"):
        engine.enqueue(bound(5) | {"x": FakeArray((5, 4), np.float32, pointer=4096 + 64)}, stream)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((TENSORS[0], ("y", "output", "BF16", (-1,))), "output 'y' is bfloat16"),
        ((TENSORS[0], ("z", "output", "FLOAT", (-1,))), "its outputs are"),
        ((("x", "input", "FLOAT", (-1, 5)), TENSORS[1]), "input 'x' has shape"),
    ],
)
def test_a_plan_that_is_not_what_the_manifest_says_is_refused(plan, tensors, said):
    with pytest.raises(EngineError, match="not what the manifest says") as caught:
        TensorRTEngine(plan, SIGNATURE, MANIFEST, FakeTensorRT(tensors), None)
    assert said in str(caught.value)


def test_a_plan_may_call_its_tensors_otherwise(plan, fake, stream):
    fake = FakeTensorRT((TENSORS[0], ("output0", "output", "FLOAT", (-1,))))
    engine = TensorRTEngine(
        plan, SIGNATURE.model_copy(update={"plan_names": {"y": "output0"}}), MANIFEST, fake, None
    )
    arrays = bound(5)
    engine.enqueue(arrays, stream)
    assert (0, "address", "output0", arrays["y"].pointer) in taken(fake)


def test_a_plan_of_another_version_says_which(plan, fake):
    fake.engine = None
    manifest = SimpleNamespace(
        versions={"tensorrt": "10.9.0"}, target="sm_90", build_command="vicort-build m"
    )
    with pytest.raises(
        EngineError,
        match=r"built by tensorrt 10\.9\.0, which 11\.4\.0 cannot load: .* `vicort-build m`",
    ):
        TensorRTEngine(plan, SIGNATURE, manifest, fake, None)


def test_a_plan_of_the_same_version_that_is_refused_says_for_what_it_was_built(plan, fake):
    fake.engine = None
    with pytest.raises(
        EngineError, match=r"the log's first error.*built for sm_90: .* `vicort-build m`"
    ):
        TensorRTEngine(plan, SIGNATURE, MANIFEST, fake, None)


def test_a_stripped_plan_is_given_its_weights_before_it_runs(plan, fake):
    files = []

    def refit(file):
        files.append(file)
        return file.endswith("x.onnx")

    fake.Refitter = lambda engine, logger: SimpleNamespace(refit_cuda_engine=lambda: True)
    fake.OnnxParserRefitter = lambda refitter, logger: SimpleNamespace(
        refit_from_file=lambda file: files.append(file) or file.endswith("x.onnx")
    )
    TensorRTEngine(
        plan, SIGNATURE.model_copy(update={"refit_from": "x.onnx"}), MANIFEST, fake, None
    )
    assert files == [str(plan.with_name("x.onnx"))]
    with pytest.raises(EngineError, match=r"weights of y\.txt"):
        TensorRTEngine(
            plan, SIGNATURE.model_copy(update={"refit_from": "y.txt"}), MANIFEST, fake, None
        )


@given(
    st.integers(1, 4),
    st.lists(st.integers(0, 7), max_size=80),
    st.sets(st.integers(0, 7), max_size=3),
)
def test_the_graph_cache_is_plain_then_captures_then_replays(most, keys, uncapturable):
    """Against a plain statement of the rule."""
    cache: GraphCache = GraphCache(most)
    plain, needed, held = Counter(), dict.fromkeys(range(8), 1), []  # held: in order of use
    for key in keys:
        graph = cache.get(key)
        assert graph == (f"graph {key}" if key in held else None)
        if graph:
            held.append(held.pop(held.index(key)))
            continue
        due = cache.is_due(key)
        assert due == (plain[key] >= needed[key])
        if not due:
            plain[key] += 1
        elif key in uncapturable:
            cache.refuse(key)
            needed[key] = 1_000_000
        else:
            held.append(key)
            gone, held = held[:-most], held[-most:]
            assert cache.put(key, f"graph {key}") == [f"graph {old}" for old in gone]
            for old in gone:
                plain[old], needed[old] = 0, LATER_WAIT
        assert len(cache) == len(held) <= most


# The switch


class Absent:
    """In sys.meta_path: these modules cannot be imported."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ImportError(f"No module named {name!r}")


@pytest.fixture
def fresh_switch(monkeypatch):
    """The switch as in a new process. The real modules stay what they are for the other tests: a
    creator registers once."""
    monkeypatch.setattr(tensorrt, "_load", tensorrt._load.__wrapped__)


def test_without_tensorrt_the_error_names_the_pip_command(fresh_switch, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent("tensorrt", "tensorrt_rtx"), *sys.meta_path])
    with pytest.raises(EngineError, match="pip install tensorrt-rtx") as caught:
        load_tensorrt()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(EngineError, match="pip install tensorrt`"):
        load_tensorrt("tensorrt")


def test_the_full_tensorrt_is_preferred_if_it_really_loads(fresh_switch, monkeypatch):
    full, rtx = (
        SimpleNamespace(__version__=number, ILogger=object) for number in ("11.4.0", "1.7.1")
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setitem(sys.modules, "tensorrt", full)
    assert (load_tensorrt().flavour, load_tensorrt().version) == ("tensorrt", "11.4.0")

    def broken(name):
        if name == "tensorrt":
            raise OSError("libnvinfer.so.11: cannot open shared object file")
        return rtx

    monkeypatch.setattr(importlib, "import_module", broken)
    assert load_tensorrt().flavour == "tensorrt_rtx"


# The plugin and loading, with the real tensorrt_rtx


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return load_tensorrt("tensorrt_rtx")


SPEC = SimpleNamespace(
    interleaved=False,
    dtype="bfloat16",
    kv_heads=2,
    page_tokens=4,
    head_dim=32,
    sections=(4, 6, 6),
    frequencies=tuple([0.5] * 16),
)
ATTRIBUTES = {
    "layer": np.array([3], np.int32),
    "scale": np.array([0.25], np.float32),
    "sections": np.array([4, 6, 6], np.int32),
    "frequencies": np.full(16, 0.5, np.float32),
    "interleaved": np.array([0], np.int32),
}


class RecordingKernels:
    spec = SPEC

    def __init__(self) -> None:
        self.launches: list[dict] = []

    def workspace_bytes(self, rows, table, segments):
        return 1000 * rows + segments * table

    def attention(self, **arguments):
        if arguments["rows"] > 99:
            raise RuntimeError("too many rows")
        self.launches.append(arguments)


def fields(rtx, **changes):
    return tensorrt._field_collection(
        rtx.module,
        {name: value for name, value in (ATTRIBUTES | changes).items() if value is not None},
    )


def create(rtx, host_of=RecordingKernels, **changes):
    kernels = host_of()
    with rtx.plugins(kernels) as host:
        plugin = rtx.creator.create_plugin("node", fields(rtx, **changes), None)
    return plugin, kernels, host


def test_layer_times_are_a_profiler_of_tensorrts_own(rtx):
    layers = tensorrt._derive(LayerTimes, rtx.module.IProfiler)()
    assert isinstance(layers, rtx.module.IProfiler)
    for ms in (9.0, 1.0):
        layers.begin()
        layers.report_layer_time("a", ms)
        layers.report_layer_time("b", 2 * ms)
        layers.report_layer_time("a", 0.5)
    assert layers.without_warm_up() == {"a": [1.5], "b": [2.0]}
    assert hasattr(rtx.module.IExecutionContext, "profiler")
    assert hasattr(rtx.module.IExecutionContext, "enqueue_emits_profile")


def test_tensorrt_finds_the_plugin_by_name_and_namespace(rtx):
    with rtx.plugins(None):
        assert (
            rtx.module.get_plugin_registry().get_creator("BoundedAttention", "1", "vicort")
            is not None
        )


def test_a_plugin_comes_back_from_what_it_serialises_and_its_clones_are_equal(rtx):
    plugin, _, _ = create(rtx)
    serialised = {field.name: np.array(field.data) for field in plugin.get_fields_to_serialize()}
    assert {name: value.tolist() for name, value in serialised.items()} == {
        name: value.tolist() for name, value in ATTRIBUTES.items()
    }
    with rtx.plugins(RecordingKernels()):
        again = rtx.creator.create_plugin("node", plugin.get_fields_to_serialize(), None)
    for twin in (again, plugin.clone(), plugin.attach_to_context(None)):
        assert twin is not plugin
        assert {name: value.tolist() for name, value in twin.fields.items()} == {
            name: value.tolist() for name, value in ATTRIBUTES.items()
        }
        assert (twin.plugin_name, twin.plugin_version, twin.plugin_namespace, twin.num_outputs) == (
            "BoundedAttention",
            "1",
            "vicort",
            1,
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": None, "scale": None}, "node node has no layer, scale"),
        ({"sections": np.array([6, 6, 4], np.int32)}, "another rotary embedding"),
        ({"frequencies": np.full(16, 0.25, np.float32)}, "another rotary embedding"),
        ({"interleaved": np.array([1], np.int32)}, "another rotary embedding"),
    ],
)
def test_a_node_that_the_kernels_do_not_fit_is_refused_and_the_reason_is_kept(rtx, changes, said):
    with rtx.plugins(RecordingKernels()) as host:
        with pytest.raises(EngineError, match=said):
            rtx.creator.create_plugin("node", fields(rtx, **changes), None)
        assert said in str(host.take_failure())
        assert host.take_failure() is None


def test_no_plugin_is_made_outside_of_vicort(rtx):
    with rtx.plugins(RecordingKernels()):
        pass
    with pytest.raises(EngineError, match="was not loaded by vicort"):
        rtx.creator.create_plugin("node", fields(rtx), None)


def tensors(rtx, kind, integer=None, layout=None):
    """Ten descriptions as TensorRT hands them over: nine inputs, one output."""
    layout = layout or rtx.module.TensorFormat.LINEAR
    integer = integer or rtx.module.int32
    types = [kind] * 3 + [integer] * 3 + [kind] + [integer] * 2 + [kind]
    return [SimpleNamespace(desc=SimpleNamespace(type=each, format=layout)) for each in types]


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("bfloat16", True), ("float16", True), ("float32", True), ("int8", False), ("int32", False)],
)
def test_formats_are_linear_of_one_float_type_and_int32(rtx, kind, allowed):
    plugin, _, _ = create(rtx)
    trt = rtx.module
    given_tensors = tensors(rtx, getattr(trt, kind))
    assert (
        all(plugin.supports_format_combination(at, given_tensors, 9) for at in range(10)) == allowed
    )
    mixed = [
        *given_tensors[:9],
        SimpleNamespace(desc=SimpleNamespace(type=trt.int64, format=trt.TensorFormat.LINEAR)),
    ]
    assert not plugin.supports_format_combination(9, mixed, 9)
    assert not plugin.supports_format_combination(
        3, tensors(rtx, getattr(trt, kind), integer=trt.int64), 9
    )
    assert not plugin.supports_format_combination(
        0, tensors(rtx, getattr(trt, kind), layout=trt.TensorFormat.CHW32), 9
    )


def test_an_int8_pool_comes_with_scales_in_float32(rtx):
    plugin, _, _ = create(rtx)
    trt = rtx.module
    given = tensors(rtx, trt.bfloat16)
    describe = lambda kind: SimpleNamespace(
        desc=SimpleNamespace(type=kind, format=trt.TensorFormat.LINEAR)
    )
    given[6] = describe(trt.int8)
    right = [*given[:9], describe(trt.float32), given[9]]
    takes = lambda given: [plugin.supports_format_combination(at, given, 10) for at in range(11)]
    assert takes(right) == [True] * 11
    assert not takes([*right[:9], describe(trt.float16), right[10]])[9]
    assert not takes([*right[:6], describe(trt.bfloat16), *right[7:]])[6]


def test_the_workspace_is_the_kernels_bound_at_the_profiles_largest_shapes(rtx):
    plugin, _, _ = create(rtx)
    largest = [SimpleNamespace(max=(64, 4, 32)), *[None] * 7, SimpleNamespace(max=(2, 1, 1, 150))]
    assert plugin.get_workspace_size(largest, []) == 64_300


def descriptions(rows: int) -> list[SimpleNamespace]:
    shapes = [
        (rows, 4, 32),
        (rows, 2, 32),
        (rows, 2, 32),
        (rows, 3),
        (rows,),
        (rows,),
        (9, 4, 2, 2, 4, 32),
        (9, 1, 1, 4, 3),
        (1, 1, 1, 5),
    ]
    return [SimpleNamespace(dims=shape) for shape in shapes]


def test_enqueue_launches_the_kernels_on_the_stream_that_tensorrt_gives(rtx):
    plugin, kernels, _ = create(rtx)
    plugin.clone().enqueue(descriptions(6), [], [10, 11, 12, 13, 17, 18, 14, 15, 16], [20], 30, 40)
    assert kernels.launches == [
        {
            "q": 10,
            "k": 11,
            "v": 12,
            "pos": 13,
            "segment": 17,
            "until": 18,
            "pool": 14,
            "where": 15,
            "table": 16,
            "out": 20,
            "workspace": 30,
            "stream": 40,
        }
        | {
            "rows": 6,
            "pool_shape": (9, 4, 2, 2, 4, 32),
            "where_shape": (9, 1, 1, 4, 3),
            "table_shape": (1, 1, 1, 5),
            "layer": 3,
            "scale": 0.25,
        }
    ]


def test_what_enqueue_raises_is_kept_and_raised_for_tensorrt_too(rtx):
    plugin, _, host = create(rtx)
    with pytest.raises(RuntimeError, match="too many rows"):
        plugin.enqueue(descriptions(100), [], [1] * 8, [1], 0, 0)
    assert str(host.take_failure()) == "too many rows"


def test_a_file_that_is_no_plan_is_one_line_of_tensorrts_own_reason(rtx, plan):
    plan.write_bytes(b"not a plan" * 100)
    manifest = SimpleNamespace(
        versions={"tensorrt-rtx": rtx.version}, target="sm_89", build_command="vicort-build m"
    )
    with pytest.raises(EngineError, match=r"x\.plan.*cannot load it.*sm_89") as caught:
        TensorRTEngine(plan, SIGNATURE, manifest, rtx, None)
    assert len(str(caught.value).splitlines()) == 1


def test_a_set_opened_without_a_driver_is_one_line(tmp_path, rtx, monkeypatch):
    """What a whole set is opened by, on a machine without a GPU."""
    monkeypatch.setattr("vicort.runtime.devices.cuda.open_gpu", no_gpu)
    (tmp_path / FILE_NAME).write_text(json.dumps({"schema_version": 1}))
    monkeypatch.setattr(
        tensorrt.Manifest,
        "model_validate_json",
        lambda text: SimpleNamespace(flavour="tensorrt_rtx"),
    )
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        open_backend("tensorrt", tmp_path, threads=1)


def no_gpu():
    raise DeviceError("no NVIDIA driver is installed")
