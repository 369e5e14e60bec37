"""gpu-check on machines without a GPU: it says so, and its steps run on stand-ins."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import gpu_steps, interpreter, nvdec
from support.fake_engines import FakeEngineSet
from support.simulated_cuda import SimulatedDriver, SimulatedEngineSet

import vicort.runtime.devices.cuda
from vicort.benchmarks.gpu import check as gpu_check
from vicort.benchmarks.gpu import engine_steps as gpu_engines
from vicort.benchmarks.gpu import kernel_steps as gpu_kernels
from vicort.benchmarks.gpu import lab as gpu_lab
from vicort.benchmarks.gpu import video_steps as gpu_video
from vicort.benchmarks.gpu.check import STEPS, Step, check, exit_code, run_apart, run_here
from vicort.benchmarks.gpu.kernel_steps import SPECS, Case, plain_statement, random_inputs
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed
from vicort.export.bounded_attention import bounded_attention
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.devices.cuda import DeviceArray, Gpu
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import DeviceError
from vicort.runtime.kernels import Kernels

THETA = {
    "tiny-fp32": 1e4,
    "tiny-bf16": 1e4,
    "3b-bf16": 1e6,
    "3b-fp16": 1e6,
    "3b-fp32": 1e6,
    "7b-bf16": 1e6,
}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing():
        raise DeviceError("no NVIDIA driver is installed")

    monkeypatch.setattr(gpu_lab, "open_gpu", missing)


def step(name: str) -> Step:
    return Step("?", getattr(gpu_steps, name))


# ---- the runner


@pytest.mark.parametrize("name", STEPS)
def test_without_a_gpu_every_step_is_skipped_and_says_why(
    name: str, no_gpu: None, tmp_path: Path
) -> None:
    outcome = run_here(name, tmp_path)
    assert (outcome["outcome"], outcome["reason"]) == ("skipped", "no NVIDIA driver is installed")
    assert not list(tmp_path.iterdir())  # nothing was built in vain


def test_nothing_checked_is_no_success(
    no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(gpu_check, "run_apart", lambda name, folder, _: run_here(name, folder))
    assert (
        gpu_check.main(["--out", str(tmp_path / "a.json"), "--cache", str(tmp_path / "cache")]) == 4
    )
    assert "NOTHING WAS CHECKED" in capsys.readouterr().out
    report = json.loads((tmp_path / "a.json").read_text())
    assert list(report["steps"]) == list(STEPS)
    assert "cpu" in report["conditions"]


def test_a_report_is_not_replaced_by_one_of_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    out.write_text("of a GPU")
    check(
        ["plan", "engines"],
        tmp_path,
        out,
        lambda name, folder, seconds: {"outcome": "skipped", "reason": ""},
    )
    assert out.read_text() == "of a GPU"
    check(
        ["plan", "engines"],
        tmp_path,
        out,
        lambda name, folder, seconds: {"outcome": "skipped" if name == "plan" else "passed"},
    )
    assert [each["outcome"] for each in json.loads(out.read_text())["steps"].values()] == [
        "skipped",
        "passed",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt"]


def test_only_the_steps_that_are_asked_for_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        gpu_check,
        "run_apart",
        lambda name, folder, seconds: ran.append(name) or {"outcome": "passed"},
    )
    options = ["--out", str(tmp_path / "a.json"), "--cache", str(tmp_path)]
    assert gpu_check.main(["--only", "nvdec", "--only", "plan", *options]) == 0
    assert ran == ["plan", "nvdec"]
    assert gpu_check.main(["--only", "kernel", *options]) == 2
    assert "choose from environment, plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ("passed", 0),
        ("passed skipped", 0),
        ("skipped", 4),
        ("failed", 1),
        ("passed failed skipped", 1),
        ("skipped failed", 1),
        ("", 4),
    ],
)
def test_exit_codes(outcomes: str, code: int) -> None:
    assert exit_code({str(i): {"outcome": each} for i, each in enumerate(outcomes.split())}) == code


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("skips", {"outcome": "skipped", "reason": "no such thing here"}),
        ("wrong", {"outcome": "failed", "reason": "1 is not 2", "numbers": [1, 2]}),
        ("refuses", {"outcome": "failed", "reason": "the plan is for another GPU"}),
        ("breaks", {"outcome": "failed", "reason": "ZeroDivisionError: division by zero"}),
    ],
)
def test_outcomes(name: str, outcome: dict, tmp_path: Path) -> None:
    found = run_here(name, tmp_path, step(name))
    assert {key: found[key] for key in outcome} == outcome


def test_a_step_compiles_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end PyTorch may wait 300 s for a pool of processes that it has only just started."""
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert run_apart("compiles", tmp_path, 60, step("compiles"))["threads"] == 1


@pytest.mark.slow
def test_a_step_that_dies_or_hangs_stops_no_other(tmp_path: Path) -> None:
    assert "exit code -11" in run_apart("dies", tmp_path, 60, step("dies"))["reason"]
    assert "exit code 0" in run_apart("leaves", tmp_path, 60, step("leaves"))["reason"]
    hung = run_apart("hangs", tmp_path, 3, step("hangs"))
    assert (hung["outcome"], hung["reason"]) == ("failed", "it took longer than 3 s and was ended")
    fine = run_apart("fine", tmp_path, 60, step("fine"))
    assert (fine["outcome"], fine["folder"]) == ("passed", str(tmp_path))


# ---- kernels

SMALL = (
    Case(1, 7),
    Case(5, 0, padding=True),
    Case(9, 3, "layer", padding=True),
    Case(9, 2, tree=True, padding=True),
    Case(4, 5, "head", span=120_000),
)


def reference(spec, theta: float, inputs, layer: int) -> np.ndarray:
    """The PyTorch op, on the same inputs."""
    tensors = {name: as_tensor(array) for name, array in inputs.items()}
    out = bounded_attention(
        **tensors,
        scales=None,
        layer=layer,
        scale=spec.head_dim**-0.5,
        sections=spec.sections,
        theta=theta,
    )
    return out.float().numpy()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return (
        torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        if array.dtype.name == "bfloat16"
        else torch.from_numpy(array)
    )


@pytest.mark.parametrize("name", SPECS)
def test_the_plain_statement_is_the_op(name: str) -> None:
    spec = SPECS[name]
    np.testing.assert_allclose(
        spec.frequencies, rotary_frequencies(THETA[name], spec.head_dim // 2), rtol=3e-7
    )
    spec = spec.model_copy(
        update={"frequencies": tuple(rotary_frequencies(THETA[name], spec.head_dim // 2))}
    )
    for case in SMALL:
        inputs = random_inputs(spec, case)
        found = plain_statement(spec, inputs, np.arange(case.rows), 1, spec.head_dim**-0.5)
        allowed = gpu_kernels.TOLERANCE[spec.dtype]
        np.testing.assert_allclose(
            found, reference(spec, THETA[name], inputs, 1), atol=allowed, rtol=allowed
        )


def test_inputs_hold_nan_wherever_nothing_may_look() -> None:
    inputs = random_inputs(SPECS["tiny-fp32"], Case(9, 6, "head", padding=True))
    assert np.isnan(inputs["q"][inputs["pos"][:, 0] < 0]).all()
    assert np.isnan(inputs["pool"].swapaxes(3, 4)[inputs["where"][..., 0] < 0]).all()
    assert (inputs["table"] == -1).any()


class PlainKernels:
    """Kernels as the PyTorch op and NumPy, on simulated device memory, right or wrong."""

    def __init__(self, driver: SimulatedDriver, spec, theta: float, fault: str = "") -> None:
        self.driver = driver
        self.spec = spec
        self.theta = theta
        self.fault = fault
        self.kernels = self
        self.multiprocessors = 4
        self.capability = (9, 0)
        self.launches = 0

    def plan(self, rows, pages, segments):
        return type("Plan", (), {"shares": 1, "workspace_bytes": 0})

    def _at(self, pointer, shape, dtype=None, write=False):
        return self.driver.array_at(
            DeviceArray(None, pointer, shape, np.dtype(dtype or self.spec.dtype)), write=write
        )

    def attention(
        self,
        *,
        rows,
        pool_shape,
        where_shape,
        table_shape,
        layer,
        scale,
        stream,
        workspace,
        out,
        **pointers,
    ):
        self.launches += 1
        spec = self.spec
        query = (rows, spec.kv_heads * spec.groups, spec.head_dim)
        new = (rows, spec.kv_heads, spec.head_dim)
        shapes = {
            "q": query,
            "k": new,
            "v": new,
            "pool": pool_shape,
            "pos": (rows, 3),
            "segment": (rows,),
            "until": (rows,),
            "where": where_shape,
            "table": table_shape,
        }

        def run():
            inputs = {
                n: self._at(
                    pointers[n],
                    shape,
                    np.int32 if n in ("pos", "segment", "until", "where", "table") else None,
                )
                for n, shape in shapes.items()
            }
            result = reference(
                spec, self.theta, {name: np.array(array) for name, array in inputs.items()}, layer
            )
            if self.fault == "attention":
                result[-1] *= 1.5
            if self.fault == "nan":
                result[0, 0, 0] = np.nan
            self._at(out, query, write=True)[...] = result

        self.driver.enqueue(self.driver.stream_of(stream), run, "attention")

    def scatter_tokens(self, *, k, v, slots, cells, pool, count, rows, layers, stream):
        spec = self.spec
        new = (layers, rows, spec.kv_heads, spec.head_dim)
        page = (layers, spec.kv_heads, 2, spec.page_tokens, spec.head_dim)

        def run():
            keys, values = self._at(k, new), self._at(v, new)
            for slot, cell, token in zip(
                self._at(slots, (count,), np.int32),
                self._at(cells, (count,), np.int32),
                range(count),
                strict=True,
            ):
                if slot >= 0 or self.fault == "scatter":
                    target = self._at(pool, (12, *page), write=True)[slot]
                    target[:, :, 0, cell], target[:, :, 1, cell] = keys[:, token], values[:, token]

        self.driver.enqueue(self.driver.stream_of(stream), run, "scatter_tokens")

    def set_places(self, *, slots, places, where, count, stream):
        tokens = self.spec.page_tokens

        def run():
            target = self._at(where, (12, 1, 1, tokens, 3), np.int32, write=True)
            new = self._at(places, (count, tokens, 3), np.int32)
            for index, slot in enumerate(self._at(slots, (count,), np.int32)):
                if slot >= 0:
                    target[slot, 0, 0] = new[index]

        self.driver.enqueue(self.driver.stream_of(stream), run, "set_places")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """On a simulated GPU, with kernels of whatever `fault` it is given."""
    monkeypatch.setattr(gpu_kernels, "cases", lambda spec: iter(SMALL))
    monkeypatch.setattr(
        gpu_kernels, "SPECS", {name: SPECS[name] for name in ("tiny-fp32", "tiny-bf16")}
    )
    found = Lab(tmp_path, Gpu(SimulatedDriver()))
    found.fault = ""
    found.kernels = lambda name, spec, rotate_first=None: PlainKernels(
        found.gpu.driver, spec, 1e4, found.fault
    )
    return found


def test_right_kernels_pass(lab: Lab) -> None:
    found = gpu_kernels.correctness(lab)
    assert found["cases"] == 2 * 2 * len(SMALL)
    assert all(0 < worst < 2e-2 for worst in found["worst"].values())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("attention", "bounded_attention for tiny-fp32 is"),
        ("nan", "is nan off"),
        ("scatter", "scatter_tokens for tiny"),
    ],
)
def test_wrong_kernels_do_not(fault: str, said: str, lab: Lab) -> None:
    lab.fault = fault
    with pytest.raises(StepFailed, match=said):
        gpu_kernels.correctness(lab)


def test_times_are_of_a_graph_of_many_launches(lab: Lab) -> None:
    spec = SPECS["tiny-fp32"]
    kernels = PlainKernels(lab.gpu.driver, spec, 1e4)
    call = gpu_kernels.Call(lab, kernels, random_inputs(spec, Case(3, 4, layers=2)))
    ms = lab.times_ms([lambda: call.launch(0), lambda: call.launch(1)])
    assert ms["n"] == gpu_lab.REPEATS
    assert 0 < ms["median"] < 1000
    assert kernels.launches > 4  # warm-up, and what was captured; a replay launches nothing


def test_a_wrong_matrix_product_is_no_ceiling(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "torch_times_ms", lambda torch, work: [work() and 1.0])
    on_cpu = SimpleNamespace(
        bfloat16=torch.bfloat16,
        randn=lambda *sizes, device, dtype: torch.randn(*sizes, dtype=dtype),
        empty_like=torch.empty_like,
    )
    monkeypatch.setattr(gpu_kernels, "cuda_torch", lambda: on_cpu)
    on_cpu.mm = lambda a, b, out: [out.copy_(a @ b)]
    assert gpu_kernels.ceilings(lab, 64, 1 << 20)["matrix_ms"]["median"] == 1
    on_cpu.mm = lambda a, b, out: [out.fill_(torch.nan)]
    with pytest.raises(StepFailed, match="matrix product differs") as failure:
        gpu_kernels.ceilings(lab, 64, 1 << 20)
    assert failure.value.found["copy_gb_s"] > 0


def test_speed_is_reported_beside_the_ceilings(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "FAST_SPECS", ("tiny-bf16",))
    monkeypatch.setattr(gpu_kernels, "PREFILL", [(16, 32)])
    monkeypatch.setattr(gpu_kernels, "DECODE", [(1, 32)])
    monkeypatch.setattr(gpu_kernels, "LAYERS", 2)
    monkeypatch.setattr(gpu_kernels, "ROTATED_BYTES", 40_000)
    monkeypatch.setattr(gpu_lab, "REPEATS", 2)
    monkeypatch.setattr(gpu_kernels, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(
        gpu_kernels, "ceilings", lambda lab, real=gpu_kernels.ceilings: real(lab, 64, 1 << 20)
    )
    found = gpu_kernels.speed(lab)
    assert found["ceilings"]["copy_gb_s"] > 0
    assert [(call["rows"], call["context"]) for call in found["calls"]["tiny-bf16"]] == [
        (16, 32),
        (1, 32),
    ]
    for call in found["calls"]["tiny-bf16"]:
        # keys and values of 32 tokens, two heads and 32 numbers of two bytes take 8,192 bytes
        assert call["layers_in_turn"] == 5
        forms = ["computed", "table", *(["at_once", "rotated_first"] if call["rows"] > 1 else [])]
        assert [form for form in call if isinstance(call[form], dict)] == forms
        for form in forms:
            assert call[form]["tflop_s"] >= 0
            assert call[form]["share_of_copy"] == pytest.approx(
                call[form]["gb_s"] / found["ceilings"]["copy_gb_s"], abs=1e-3
            )


def test_calls_are_what_the_real_kernels_take(tmp_path: Path) -> None:
    """Real launch code on a stand-in for compiled kernels: shapes are accepted, and every argument
    is there."""
    driver, launches, spec = SimulatedDriver(), [], SPECS["3b-bf16"]
    driver.launch = lambda kernel, grid, threads, shared, stream, args: launches.append(
        (kernel, grid, len(args))
    )
    lab = Lab(tmp_path, Gpu(driver))
    data = interpreter.stand_in(spec, {"wide": (64, 32), "narrow": (16, 32)})
    kernels = LoadedKernels(
        Kernels.parse(data), capability=(9, 0), multiprocessors=132, launcher=lab.gpu.launcher
    )
    at_once, rotated = ("bounded_attention",), ("rotate_tokens", "rotated_attention")
    for case, names in (
        (Case(1, 40, "head"), at_once),
        (Case(33, 9, "layer"), at_once),
        (Case(300, 80), rotated),
    ):
        call = gpu_kernels.Call(lab, kernels, random_inputs(spec, case))
        launches.clear()
        call.launch(1)
        names = (*names, *(["combine"] if call.shares > 1 else []))
        assert launches[0][1][1] == spec.kv_heads
        for name, (_, _, count) in zip(names, launches, strict=True):
            assert count == len(interpreter.ARGUMENTS[name]) + len(interpreter.HIDDEN)
    # nothing ran
    assert gpu_kernels.placing_errors(lab, kernels) == ["scatter_tokens", "set_places"]


def test_work_is_counted() -> None:
    found = gpu_kernels.rates(
        flop=2e12, moved=3e9, ms=1.0, limits={"copy_gb_s": 4000.0, "matrix_tflop_s": 4000.0}
    )
    assert found == {
        "tflop_s": 2000.0,
        "gb_s": 3000.0,
        "share_of_copy": 0.75,
        "share_of_matrix_product": 0.5,
    }


# ---- engines and the pipeline


def test_engines_are_compared_output_by_output(tiny_engines: Path) -> None:
    with EngineSet.open(tiny_engines) as ours, EngineSet.open(tiny_engines) as theirs:
        same = gpu_engines.compare_engines(ours, theirs)
        assert set(same) >= {
            "vision features",
            "tokens kept",
            "tokens count",
            "prefill hidden",
            "head logits",
            "prefill k",
            "decode q",
        }
        assert max(same.values()) < 1e-6
        vision, kept = ours.vision, theirs.tokens
        ours.vision = Scaled(vision, "features", 1.1)
        theirs.tokens = Scaled(kept, "count", 2)
        different = gpu_engines.compare_engines(ours, theirs)
    assert different["vision features"] == pytest.approx(0.1, rel=0.01)
    assert different["tokens count"] == 0.5
    assert different["head logits"] < 1e-6


class Scaled:
    """An engine that gives other numbers."""

    def __init__(self, engine, output: str, factor: float) -> None:
        self._engine = engine
        self._output = output
        self._factor = factor
        self.signature = engine.signature

    def enqueue(self, bindings, stream):
        event = self._engine.enqueue(bindings, stream)
        bindings[self._output][...] = bindings[self._output] * self._factor
        return event


def test_repeated_runs_and_runs_at_once_are_compared(tiny_engines: Path) -> None:
    with EngineSet.open(tiny_engines) as engines:
        name, graph, inputs, _ = next(
            gpu_engines.random_runs(engines.manifest.model, engines.dtype)
        )
        timed = gpu_engines.time_runs(engines, graph, inputs, replays=2)
        assert (name, timed["different"], timed["graphs"], timed["replay_ms"]["n"]) == (
            "vision",
            [],
            0,
            2,
        )
        found = gpu_engines.overlap_of_two(engines, runs=2)
        assert found["different"] == []
        assert found["gain"] > 0
        engines.vision = Drifting(engines.vision)
        assert gpu_engines.time_runs(engines, graph, inputs, replays=2)["different"] == ["features"]
        assert gpu_engines.overlap_of_two(engines, runs=1)["different"] == ["vision"]


class Drifting:
    """An engine whose every run gives more."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.signature = engine.signature
        self._runs = 0

    def enqueue(self, bindings, stream):
        event = self._engine.enqueue(bindings, stream)
        self._runs += 1
        bindings["features"][...] += self._runs
        return event


def test_the_pipeline_step_runs_on_a_simulated_gpu() -> None:
    model = {"chunk_frames": 16, "page_tokens": 4, "max_rows": 64}
    found = gpu_engines.compare_pipelines(
        SimulatedEngineSet(0, 3, **model),
        FakeEngineSet(0, **model),
        chunks=1,
        repeats=1,
        device_mb=2,
    )
    answers = found["answers"]
    assert answers["overlapped"] == answers["sequential"] == answers["cpu"]
    assert (
        found["answers_equal_to_cpu"]
        == f"{len(gpu_engines.QUESTIONS)} of {len(gpu_engines.QUESTIONS)}"
    )
    assert set(found["ms_a_chunk"]) == {"overlapped", "sequential", "cpu"}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {"overlapped": ["a"], "sequential": ["b"], "cpu": ["a"]},
            "overlapped and sequential give other answers",
        ),
        ({"overlapped": ["a"], "sequential": ["a"], "cpu": ["b"]}, "are not the CPU's"),
    ],
)
def test_pipelines_that_answer_otherwise_fail_the_step(
    answers, said: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "backend", "tensorrt")
    monkeypatch.setattr(gpu_engines, "tiny_engines", lambda lab, backend, precision: nullcontext())
    monkeypatch.setattr(
        gpu_engines, "compare_pipelines", lambda ours, theirs, **options: {"answers": answers}
    )
    with pytest.raises(StepFailed, match=said) as failure:
        gpu_engines.pipeline(lab)
    assert failure.value.found["fp32"] == {"answers": answers}


# ---- video


def test_decoders_are_compared_frame_by_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", nvdec.StandIn())
    monkeypatch.setattr(
        vicort.runtime.devices.cuda, "open_gpu", lambda ordinal: nvdec.HostMemoryGpu()
    )
    monkeypatch.setattr(gpu_video, "gpu_preprocessor", OnHost)
    monkeypatch.setattr(gpu_video, "CLIP_FRAMES", 30)
    gpu_video.write_clip(tmp_path / "a.mp4", 320, 180)
    found = gpu_video.compare_decoding(HostDevice(), tmp_path / "a.mp4")
    assert (found["frames"], found["different_times"]) == (30, False)
    gpu_video.check_error(found["error"], gpu_video.ALLOWED_DECODED_ERROR, "it", {})
    with pytest.raises(StepFailed, match="it is"):
        gpu_video.check_error(
            found["error"] | {"mean": 8.0}, gpu_video.ALLOWED_DECODED_ERROR, "it", {}
        )


class OnHost:
    """The GPU's preprocessor, where the GPU's memory is the host's."""

    def __call__(self, images, out, stream):
        Preprocessor(*gpu_video.INTO)([nvdec.on_host(image) for image in images], out)


def test_a_missing_module_skips_the_step(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(Skip, match="pip install PyNvVideoCodec"):
        gpu_video.nvdec(lab)


def test_cases_cover_what_the_kernel_can_be_given() -> None:
    for spec in SPECS.values():
        cases = list(gpu_kernels.cases(spec))
        assert {case.shared for case in cases} == {"all", "layer", "head"}
        assert {1, 2048} <= {case.rows for case in cases}
        assert max(case.pages * spec.page_tokens for case in cases) == 32_768
        assert any(case.padding for case in cases)


# ---- for real


@pytest.mark.gpu
@pytest.mark.timeout(1300)
# those at real size are measurements
@pytest.mark.parametrize("name", [name for name in STEPS if not name.startswith(("3b-", "7b-"))])
def test_on_a_gpu(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.getbasetemp() / "gpu-check"
    cache.mkdir(exist_ok=True)
    outcome = run_apart(name, cache, STEPS[name].seconds)
    if outcome["outcome"] == "skipped":
        pytest.skip(outcome["reason"])
    assert outcome["outcome"] == "passed", outcome
