"""AOTInductor's engines: on a simulated GPU, with stand-ins for packages, and, slow, compiled for
this CPU beside OpenVINO's."""

import copy
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engine_sets import checkpoint
from support.fake_engines import FakeEngineSet
from support.interpreter import stand_in
from support.simulated_cuda import SimulatedDriver
from support.simulated_inductor import SimulatedInductorSet, SimulatedPool
from torch._functorch.aot_autograd import aot_export_module
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vicort.benchmarks.gpu import engine_steps as gpu_engines
from vicort.benchmarks.gpu.inductor import inductor_sets as gpu_inductor
from vicort.benchmarks.gpu.inductor.inductor_attention import (
    FREQUENCIES,
    KernelTile,
    KernelTiles,
    attend_with_kernel,
    in_pytorch,
    prepare,
    rotates_keys_first,
    with_kernel,
)
from vicort.benchmarks.gpu.inductor.inductor_engine import InductorEngine, OnHost
from vicort.benchmarks.gpu.inductor.inductor_sets import build, open_engines, plan
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed
from vicort.export.graphs import export_program
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_language
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.verify import feature_inputs, frame_inputs, language_inputs
from vicort.runtime.devices.cuda import Gpu
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.engines.engine_run import bind, run_engine
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import DeviceError, EngineError
from vicort.runtime.kernels import MAX_SCRATCH_BYTES, Kernels, KernelSpec
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec

TOY = {"chunk_frames": 16, "page_tokens": 4, "max_rows": 64}
SIGNATURE = GraphSpec(
    file="x.pt2",
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=("C", 4)),
        TensorSpec(name="half", dtype="bfloat16", shape=("C",)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=("C",)),
        TensorSpec(name="twice", dtype="bfloat16", shape=("C",)),
    ),
    dimensions={"C": Dimension(min=1, opt=8, max=64)},
)


# ---- engines


@pytest.mark.slow
def test_a_session_on_a_simulated_gpu_answers_as_on_the_cpu() -> None:
    ours = SimulatedInductorSet(0, 3, **TOY)
    found = gpu_engines.compare_pipelines(
        ours, FakeEngineSet(0, **TOY), chunks=1, repeats=1, device_mb=2
    )
    answers = found["answers"]
    assert answers["overlapped"] == answers["sequential"] == answers["cpu"]
    assert ours.driver.counts["replay"] > 0
    assert ours.side.captured_outside == 0
    # a package serves one run at a time
    assert all(len(package.streams) <= 1 for package in ours.side.loaded)


@pytest.fixture
def ran():
    """A function that runs the tiny prefill, with arrays of its own or those before, and what came
    of it."""
    engines = SimulatedInductorSet(0, 5, **TOY)
    device = engines.new_device()
    stream = device.stream("check")
    _, _, inputs, _ = next(
        each
        for each in gpu_engines.random_runs(engines.model, engines.dtype)
        if each[0] == "prefill"
    )
    engine = engines.llm

    def work(bound):
        bound = bound or bind(device, stream, engine, inputs)
        engine.enqueue(bound, stream)
        names = [spec.name for spec in engine.signature.outputs]
        return bound, {
            name: np.array(array)
            for name, array in zip(
                names, device.read(stream, *(bound[n] for n in names)), strict=True
            )
        }

    yield SimpleNamespace(
        run=lambda bound=None: stream.run(work, bound).done(),
        engines=engines,
        stream=stream,
        engine=engine,
    )
    device.close()


def test_the_second_run_of_the_same_arrays_is_captured_and_later_ones_replay_the_same(ran) -> None:
    counts = ran.engines.driver.counts
    bound, first = ran.run()
    assert (counts["capture"], counts["replay"]) == (0, 0)
    _, second = ran.run(bound)
    assert (counts["capture"], counts["replay"]) == (1, 0)
    _, third = ran.run(bound)
    assert (counts["capture"], counts["replay"]) == (1, 1)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes() == third[name].tobytes()
    assert ran.engine.graph_report(ran.stream) == {"graphs": 1, "refusals": []}


def test_other_addresses_are_another_graph_from_the_same_pool(ran) -> None:
    bound, _ = ran.run()
    other, _ = ran.run()
    for arrays in (bound, other, bound, other):
        ran.run(arrays)
    assert ran.engine.graph_report(ran.stream)["graphs"] == 2
    assert (len(ran.engines.side.pools_used), ran.engines.driver.counts["replay"]) == (1, 2)


def capture_on_four_streams() -> int:
    """A set of its own, of which four streams capture; returns the pools they captured into."""
    engines = SimulatedInductorSet(0, 5, **TOY)
    device = engines.new_device()
    runs = {name: (graph, arrays) for name, graph, arrays, _ in toy_runs(engines)}
    for number in range(4):
        graph, inputs = runs["vision" if number % 2 else "prefill"]
        engine, stream = getattr(engines, graph), device.stream(str(number))
        bound = stream.run(bind, device, stream, engine, inputs).done()
        for _ in range(3):
            engine.enqueue(bound, stream).done()
        assert engine.graph_report(stream) == {"graphs": 1, "refusals": []}
    device.close()
    return len(engines.side.pools_used)


def toy_runs(engines: SimulatedInductorSet):
    return gpu_engines.random_runs(engines.model, engines.dtype)


def test_pools_outlive_the_sets_that_captured_into_them_and_are_used_again() -> None:
    gc.collect()  # those of other tests go back
    made, destroyed = SimulatedPool.made, SimulatedPool.destroyed
    for _ in range(20):
        assert capture_on_four_streams() == 4  # two streams never share one
        gc.collect()
    assert SimulatedPool.made - made <= 4
    assert SimulatedPool.destroyed == destroyed


@pytest.mark.parametrize(
    "error",
    [
        DeviceError("CUDA failed (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)"),
        RuntimeError("not\nwhile capturing"),
    ],
)
def test_what_cannot_be_captured_runs_plainly_and_says_why(
    ran, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream):  # before anything is recorded
        raise error

    bound, first = ran.run()
    monkeypatch.setattr(ran.engines.driver, "begin_capture", fail)
    for _ in range(3):
        _, again = ran.run(bound)
        assert again["hidden"].tobytes() == first["hidden"].tobytes()
    assert ran.engine.graph_report(ran.stream) == {
        "graphs": 0,
        "refusals": [" ".join(str(error).split())],
    }


class FakePackage:
    """Of SIGNATURE: sums of rows, and twice what is half."""

    def __init__(self, wanted=()) -> None:
        self._wanted = list(wanted)
        self.constants = {}
        self.runs = 0

    def get_constant_fqns(self):
        return self._wanted

    def load_constants(self, constants, *, check_full_update, user_managed):
        assert check_full_update
        assert user_managed  # or the weights would lie there once a stream
        self.constants = constants

    def __call__(self, x, half):
        self.runs += 1
        return x.sum(1), 2 * half


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch):
    made: list[FakePackage] = []

    def load(path, run_single_threaded):
        assert run_single_threaded
        made.append(FakePackage(["weight"]))
        return made[-1]

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return made


def arrays(rows: int = 5) -> dict[str, np.ndarray]:
    half = HostDevice().zeros((rows,), numpy_dtype("bfloat16"))
    half[:] = np.arange(rows)
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    return {
        "x": x,
        "half": half,
        "y": np.full(rows, np.nan, np.float32),
        "twice": np.zeros_like(half),
    }


def test_on_the_host_outputs_land_in_the_bound_arrays_and_weights_are_shared(packages) -> None:
    weight = torch.ones(3)
    engine = InductorEngine(
        Path("x.pt2"), SIGNATURE, {"weight": weight, "unused": torch.ones(1)}, OnHost()
    )
    device = HostDevice()
    try:
        for stream in (device.stream("a"), device.stream("b")):
            bound = arrays()
            for _ in range(2):
                engine.enqueue(bound, stream).done()
            np.testing.assert_array_equal(bound["y"], bound["x"].sum(1))
            np.testing.assert_array_equal(bound["twice"].astype(np.float32), 2 * np.arange(5))
            assert engine.graph_report(stream) == {"graphs": 0, "refusals": []}
    finally:
        device.close()
    assert [package.runs for package in packages] == [2, 2]  # one for each stream
    assert all(
        list(package.constants) == ["weight"] and package.constants["weight"] is weight
        for package in packages
    )


def test_what_does_not_fit_is_refused(packages) -> None:
    with pytest.raises(EngineError, match="wants a constant 'weight'"):
        InductorEngine(Path("x.pt2"), SIGNATURE, {}, OnHost())
    engine = InductorEngine(Path("x.pt2"), SIGNATURE, {"weight": torch.ones(1)}, OnHost())
    with pytest.raises(ValueError, match="the engine takes 1 to 64"):
        engine.enqueue(arrays(65), HostDevice(threads=False).stream("a"))


# ---- the kernel inside


def small_model():
    config = read_configuration(checkpoint())
    return config, model_spec(
        "tiny", config, load_recipe("tiny", chunk_frames=4, image_width=56, image_height=84)
    )


@pytest.fixture(scope="module")
def exported_program():
    """The language model's, prepared for the kernel; its graph; the model."""
    config, model = small_model()
    module = load_language(checkpoint(), config)
    prepare(module, config.language.theta, config.language.sections)
    graph = plan(checkpoint(), model, "fp32", None).graphs["llm"]
    with torch.no_grad():
        return export_program(module, graph, "cpu")[0], graph, module


@pytest.fixture
def program(exported_program):
    """A copy for each test, because tests change it."""
    exported, graph, module = exported_program
    return copy.deepcopy(exported), graph, module


TILES = KernelTiles(KernelTile(128, 64, 8, 2), KernelTile(128, 64, 8, 3), 132)


def test_every_attention_becomes_the_kernel_and_all_read_one_buffer(program) -> None:
    exported, graph, module = program
    found = with_kernel(exported, TILES)
    calls = found.graph.find_nodes(
        op="call_function", target=torch.ops.vicort.attend_with_kernel.default
    )
    assert [call.args[10] for call in calls] == list(range(graph.attention_layers))
    assert not found.graph.find_nodes(
        op="call_function", target=torch.ops.vicort.bounded_attention.default
    )
    (frequencies,) = {call.args[9] for call in calls}
    assert found.graph_signature.inputs_to_buffers[frequencies.name] == FREQUENCIES
    assert gpu_inductor.constants(module)[FREQUENCIES].shape == (
        module.layers[0].self_attn.config.head_dim // 2,
    )


def test_the_plain_form_is_what_the_model_computes(program) -> None:
    exported, graph, module = program
    plain = in_pytorch(exported)
    assert not plain.graph.find_nodes(
        op="call_function", target=torch.ops.vicort.bounded_attention.default
    )
    _, model = small_model()
    random = np.random.default_rng(0)
    for rows, pages in ((1, 4), (7, 3)):
        inputs = language_inputs(model, np.dtype(np.float32), rows, pages, random)
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in graph.inputs]
        with torch.no_grad():
            for got, wanted in zip(plain.module()(*tensors), module(*tensors), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@given(
    rows=st.integers(1, 2048),
    pages=st.integers(0, 9000),
    heads=st.integers(1, 8),
    groups=st.sampled_from([1, 2, 4, 7, 8]),
    multiprocessors=st.integers(1, 200),
)
def test_keys_are_rotated_first_where_the_runtime_does(rows, pages, heads, groups, multiprocessors):
    spec = KernelSpec(
        kv_heads=heads,
        groups=groups,
        head_dim=128,
        page_tokens=16,
        dtype="bfloat16",
        sections=(16, 24, 24),
        frequencies=(1.0,) * 64,
    )
    blocks = TILES.rotated.vectors, TILES.rotated.keys
    kernels = Kernels.parse(stand_in(spec, {"wide": blocks, "narrow": (16, 64)}))
    found = rotates_keys_first(spec, TILES.rotated, rows, pages, multiprocessors)
    wanted = kernels.plan(rows, pages, multiprocessors, (9, 0)).scratch
    assert found == (wanted is not None)


class OneAttention(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        rest = (1, 0.1, [16, 24, 24], TILES.numbers())
        return (attend_with_kernel(*tensors, *rest),)


def traced_attention(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> torch.fx.Graph:
    """As the compiler traces it before it generates code, for sizes that are not known: one trace
    serves decoding and prefill. Its first input has C rows, its last but one N entries."""
    gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0
    )
    monkeypatch.setattr(driver, "_active", gpu)
    real = lambda *shape: torch.zeros(shape, dtype=dtype)
    whole = lambda *shape: torch.zeros(shape, dtype=torch.int32)
    new, paged = [real(37, 16, 128), real(37, 2, 128), real(37, 2, 128)], real(50, 4, 2, 2, 16, 128)
    rows_of = (whole(37, 3), whole(37), whole(37))  # pos, segment, until
    tensors = (*new, *rows_of, paged, whole(50, 1, 1, 16, 3), whole(1, 1, 1, 41))
    rows, slots, entries = (torch.export.Dim(name, min=1, max=1 << 16) for name in "CPN")
    sizes = (*({0: rows},) * 6, {0: slots}, {0: slots}, {3: entries}, None)
    program = torch.export.export(
        OneAttention(), (*tensors, torch.zeros(64)), dynamic_shapes=(sizes,)
    )
    fakes = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    with fakes[0].fake_mode:
        return aot_export_module(OneAttention(), fakes, trace_joint=False)[0].graph


def launches_of(traced: torch.fx.Graph) -> list[torch.fx.Node]:
    return traced.find_nodes(
        op="call_function", target=torch.ops.higher_order.triton_kernel_wrapper_functional
    )


SCRATCH = ["bias", "keys", "queries", "values"]


@pytest.mark.slow
def test_the_compiler_sees_what_each_kernel_writes_whatever_the_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = launches_of(traced_attention(torch.bfloat16, monkeypatch))
    written = [sorted(node.kwargs["tensors_to_clone"]) for node in launches]
    assert written == [SCRATCH, ["out", "partial"], ["out", "partial"], ["out"]]
    of_rows = [node.kwargs["grid"][0][0].meta["val"].node.expr.free_symbols for node in launches]
    assert [len(symbols) for symbols in of_rows] == [2, 2, 2, 1]


def test_programs_in_float32_never_rotate_keys_first(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = launches_of(traced_attention(torch.float32, monkeypatch))
    written = [sorted(node.kwargs["tensors_to_clone"]) for node in launches]
    assert written == [["out", "partial"], ["out"]]


@pytest.mark.parametrize(
    ("rows", "pages", "takes_any"), [(1, 3000, False), (300, 500, True), (2000, 9000, False)]
)
def test_rotated_keys_take_memory_only_where_keys_are_rotated_first(
    rows: int, pages: int, takes_any: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = traced_attention(torch.bfloat16, monkeypatch)
    inputs = [node.meta["val"] for node in traced.find_nodes(op="placeholder")]
    sizes = ((inputs[0].shape[0], rows), (inputs[8].shape[3], pages))
    values = {size.node.expr: value for size, value in sizes}
    arguments = launches_of(traced)[0].kwargs["kwargs"]
    scratch = [arguments[name].meta["val"] for name in SCRATCH]
    taken = sum(int(each.shape[0].node.expr.subs(values)) * each.dtype.itemsize for each in scratch)
    assert taken > 1000 if takes_any else taken < 100
    assert taken <= MAX_SCRATCH_BYTES


@pytest.mark.slow
def test_the_operator_is_the_plain_one_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[2] / "support" / "kernel_operator.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    # of values around 1; older interpreters round a fused multiply-add twice
    assert max(found.values()) < 1e-3, found


# ---- sets on disk


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for tracing and the compiler: the files that it was asked for."""
    asked: list[str] = []

    def compile(program, *, package_path, inductor_configs):
        assert inductor_configs == {"aot_inductor.package_constants_in_so": False}
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        asked.append(Path(package_path).name)
        if len(asked) == FAILS.get("at"):
            raise RuntimeError("the compiler broke down")
        Path(package_path).write_bytes(b"package")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile)
    monkeypatch.setattr(gpu_inductor, "export_program", lambda module, graph, device: (module, ()))
    monkeypatch.setattr(gpu_inductor, "in_pytorch", lambda program: program)
    FAILS.clear()
    return asked


FAILS: dict[str, int] = {}  # at: which call of the stand-in fails


def make(
    folder: Path,
    precision="fp32",
    shared: Path | None = None,
    height: int = 84,
    gpu: Gpu | None = None,
):
    config = read_configuration(checkpoint())
    recipe = load_recipe(
        "tiny", chunk_frames=4, image_width=56, image_height=height, question_rows=64
    )
    return build(
        folder, checkpoint(), model_spec("tiny", config, recipe), precision, gpu, shared=shared
    )


def test_a_set_is_built_once_and_a_broken_build_goes_on(
    tmp_path: Path, compiled: list[str]
) -> None:
    folder = tmp_path / "set"
    FAILS["at"] = 3
    with pytest.raises(RuntimeError, match="broke down"):
        make(folder)
    assert not folder.exists()
    make(folder)
    assert compiled == ["tokens.pt2", "head.pt2", "vision.pt2", "vision.pt2", "llm.pt2"]
    assert make(folder) == {"tokens": 0.0, "head": 0.0, "vision": 0.0, "llm": 0.0}
    assert len(compiled) == 5
    manifest = gpu_inductor.read(folder)
    assert {"tokens.pt2", "vision.pt2", "llm.pt2", "embedding.bin", "tokenizer.json"} <= set(
        manifest.files
    )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # and nothing is left behind
    make(folder, "bf16")
    assert len(compiled) == 9


def test_the_embedding_is_the_checkpoints_in_the_sets_type(
    tmp_path: Path, compiled: list[str]
) -> None:
    make(tmp_path / "set", "bf16")
    config = read_configuration(checkpoint())
    rows = load_language(checkpoint(), config, torch.bfloat16).embed_tokens.weight
    stored = np.fromfile(tmp_path / "set" / "embedding.bin", np.int16).reshape(rows.shape)
    np.testing.assert_array_equal(stored, rows.detach().view(torch.int16).numpy())


def test_a_set_for_other_frames_takes_the_packages_that_are_the_same(
    tmp_path: Path, compiled: list[str]
) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", shared=tmp_path / "a", height=56)
    # which know the size of a frame
    whole = ["tokens.pt2", "head.pt2", "vision.pt2", "llm.pt2"]
    assert compiled == [*whole, "tokens.pt2", "vision.pt2"]
    make(tmp_path / "c", "bf16", shared=tmp_path / "a")
    assert len(compiled) == 10  # of another precision nothing is taken


def test_for_a_gpu_the_kernels_come_along_and_their_tiles_are_the_packages(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[KernelTiles] = []
    load = gpu_inductor.load_module
    monkeypatch.setattr(
        gpu_inductor, "load_module", lambda manifest, name, device: load(manifest, name, "cpu")
    )
    monkeypatch.setattr(
        gpu_inductor, "with_kernel", lambda program, tiles: asked.append(tiles) or program
    )
    make(tmp_path / "set", "bf16", gpu=Gpu(SimulatedDriver()))
    kernels = Kernels.read(tmp_path / "set" / "kernels.zip")
    (tiles,) = asked
    for tile, kernel in (
        (tiles.at_once, kernels.find(90, "bounded_attention", "wide")),
        (tiles.rotated, kernels.find(90, "rotated_attention")),
    ):
        assert (tile.vectors, tile.keys, tile.warps) == (
            kernel.constants["BLOCK_M"],
            kernel.constants["BLOCK_N"],
            kernel.warps,
        )
    assert tiles.multiprocessors == SimulatedDriver.multiprocessors
    assert gpu_inductor.read(tmp_path / "set").target == "simulated GPU, sm_90"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "llm.pt2").write_bytes(b"packagf"), "llm.pt2 is damaged"),
        (lambda folder: (folder / "llm.pt2").unlink(), "is no engine set of AOTInductor"),
        (
            lambda folder: (folder / "manifest.json").write_text("{}"),
            "is no engine set of AOTInductor",
        ),
    ],
)
def test_a_damaged_set_is_one_line_with_the_command(
    damage, said: str, tmp_path: Path, compiled: list[str]
) -> None:
    make(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(EngineError, match=said) as error:
        open_engines(tmp_path / "set")
    assert "gpu.check --only inductor" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError):  # and the runtime does not open any
        EngineSet.open(tmp_path / "set")


def test_a_set_whose_checkpoint_changed_is_refused(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "set")
    monkeypatch.setattr(gpu_inductor, "checkpoint_hash", lambda folder: "another")
    with pytest.raises(EngineError, match="is not the checkpoint"):
        open_engines(tmp_path / "set")


def test_the_maker_builds_for_a_size_of_frames(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple] = []
    monkeypatch.setattr(gpu_inductor, "need_cuda", lambda: None)
    monkeypatch.setattr(
        gpu_inductor, "build", lambda *args, shared: made.append((*args, shared)) or {"llm": 1.0}
    )
    size = SimpleNamespace(name="tiny", recipe="tiny", max_question_rows=64)
    assert gpu_inductor.InductorMaker().build(
        lab, size, checkpoint(), lab.folder / "a", 56, lab.folder / "b"
    ) == {"package_seconds": {"llm": 1.0}}
    ((folder, source, model, precision, gpu, shared),) = made
    assert (folder, source, precision, gpu, shared) == (
        lab.folder / "a",
        checkpoint(),
        "bf16",
        lab.gpu,
        lab.folder / "b",
    )
    assert (model.fixed_size, model.max_rows) == ((56, 56), 64)


# ---- which engines are measured


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, Gpu(SimulatedDriver()))


def test_tensorrt_is_measured_where_it_runs(lab: Lab) -> None:
    with lab.trying_tensorrt():
        # in case this process does not live to tell
        assert (lab.decision or {})["backend"] == "inductor"
    assert lab.backend == "tensorrt"
    with pytest.raises(Skip, match="TensorRT runs on this GPU"):
        gpu_engines.inductor(lab)


def test_where_it_does_not_aotinductor_is(lab: Lab) -> None:
    with pytest.raises(EngineError, match="another GPU"), lab.trying_tensorrt():
        raise EngineError("the plan is for\nanother GPU")
    assert lab.decision == {
        "gpu": "simulated GPU",
        "backend": "inductor",
        "reason": "the plan is for another GPU",
    }
    assert Lab(lab.folder, lab.gpu).backend == "inductor"  # other steps' processes read it


def test_before_step_plan_no_backend_is_known(lab: Lab) -> None:
    with pytest.raises(Skip, match="run step plan first"):
        _ = lab.backend
    with pytest.raises(RuntimeError), lab.trying_tensorrt():
        raise RuntimeError("an older driver")
    assert lab.backend == "inductor"
    lab.gpu.driver.name = "another GPU"
    assert lab.decision is None


def test_without_cuda_in_pytorch_the_step_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "backend", "inductor")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Skip, match="cannot use this GPU"):
        gpu_engines.inductor(lab)
    assert not list(lab.folder.glob("tiny-*"))


@pytest.mark.parametrize(
    ("lacks", "differs", "said"),
    [
        ("bounded_attention", 0.0, r"name bounded_attention \(fp32\), bounded_attention \(bf16\)$"),
        ("rotated_attention", 0.0, r"name rotated_attention \(bf16\)$"),
        ("rotate_tokens", 0.0, r"name rotate_tokens \(bf16\)$"),
        (None, 0.5, "engines differ from the CPU's"),
    ],
)
def test_the_step_fails_without_a_kernel_and_with_wrong_numbers(
    lab: Lab,
    lacks: str | None,
    differs: float,
    said: str,
    tiny_engines: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lab, "backend", "inductor")
    monkeypatch.setattr(
        gpu_engines, "tiny_engines", lambda lab, backend, precision: EngineSet.open(tiny_engines)
    )
    named = {name: 3 * (name != lacks) for name in gpu_inductor.KERNEL_NAMES}
    monkeypatch.setattr(gpu_inductor, "kernel_names", lambda folder: named)
    monkeypatch.setattr(
        gpu_engines, "compare_engines", lambda ours, theirs: {"prefill logits": differs}
    )
    with pytest.raises(StepFailed, match=said) as failure:
        gpu_engines.inductor(lab)
    assert failure.value.found["built"]["fp32"]["kernels"] == named


# ---- for real


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_for_this_cpu_it_equals_openvino_and_answers_alike(
    tmp_path: Path, tiny_engines: Path
) -> None:
    """The compiler takes about a minute."""
    torch.set_num_threads(1)
    with (
        gpu_inductor.tiny_engines(tmp_path / "set", "fp32", None) as ours,
        EngineSet.open(tiny_engines) as theirs,
    ):
        differences = gpu_engines.compare_engines(ours, theirs)
        assert max(differences.values()) < 1e-5, differences
        check_one_unit(ours, theirs)
        found = gpu_engines.compare_pipelines(ours, theirs, chunks=4, repeats=1, device_mb=24)
        answers = found["answers"]
        assert answers["overlapped"] == answers["sequential"] == answers["cpu"]
        assert gpu_engines.overlap_of_two(ours, runs=3)["different"] == []
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "set").glob("*.pt2")}
    assert max(sizes.values()) < 4e6, sizes  # code alone: the weights lie in the checkpoint


def check_one_unit(ours: EngineSet, theirs: EngineSet) -> None:
    """The smallest chunk, which a question may cut: a size of 1 is no special case for the
    compiler."""
    model, random = ours.manifest.model, np.random.default_rng(1)
    frames = frame_inputs(model, 1, random)
    features = feature_inputs(model, ours.dtype, random)
    features["features"] = features["features"][:1]
    for graph, inputs in (("vision", frames), ("tokens", features)):
        got, wanted = (run_engine(each, graph, inputs) for each in (ours, theirs))
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
