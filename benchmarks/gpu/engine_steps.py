"""Engines and the pipeline on a GPU, compared with the CPU. The tests run the same steps on a
simulated GPU."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vicort.benchmarks.common.spread import Spread, interleaved, spread
from vicort.benchmarks.common.workload import QUESTIONS, Workload, bench_system
from vicort.benchmarks.gpu.cuda_toolkit import driver, home, missing
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed, need
from vicort.benchmarks.gpu.nvidia_smi import nvidia_smi
from vicort.benchmarks.gpu.torch_resizing import resizer, with_a_resizer
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import GraphName, ModelSpec

if TYPE_CHECKING:
    from vicort.benchmarks.common.vicort_stream import VicortStream

# largest difference, as a part of the largest value: TensorRT's fp32 products may be TF32's
TOLERANCE = {"fp32": 2e-3, "bf16": 6e-2}
RUNS = 5  # of an engine: plain, captured, replayed
CHUNKS = 6
DEVICE_MB: float | None = None  # of the pipeline's pages; None = as the system says
REPEATS = 5

Arrays = dict[str, np.ndarray]


def environment(lab: Lab) -> dict[str, Any]:
    """The conditions of the other steps' results."""
    gpu = lab.gpu
    free, total = gpu.driver.memory()
    return {
        "gpu": gpu.name,
        "capability": list(gpu.capability),
        "multiprocessors": gpu.multiprocessors,
        "cuda_of_driver": gpu.driver.version,
        "memory_mb": {"free": round(free / 1e6), "total": round(total / 1e6)},
        "nvidia_smi": nvidia_smi(),
        "toolkit": str(home() or missing()),
        "driver_library": str(driver()),
        "python": platform.python_version(),
    }


def plan(lab: Lab) -> dict[str, Any]:
    """Loads a set that was built without this GPU and runs it once. The result decides which
    backend the later steps use: TensorRT or, if it fails, AOTInductor.

    """
    from vicort.runtime.engines.engine_run import run_engine

    gpu, start = lab.gpu, time.perf_counter()
    with lab.trying_tensorrt():
        folder = tiny_engine_dir(lab, "tensorrt", "bf16")
        built = time.perf_counter()
        with EngineSet.open(folder) as engines:
            loaded, manifest = time.perf_counter(), engines.manifest
            _, graph, inputs, _ = next(random_runs(manifest.model, engines.dtype))
            run_engine(engines, graph, inputs)
    return {
        "gpu": gpu.name,
        "flavour": manifest.flavour,
        "built_for": manifest.target,
        "plugin_layers": manifest.graphs["llm"].plugin_layers,
        "layers": {
            name: sum(graph.layer_types.values()) for name, graph in manifest.graphs.items()
        },
        "build_seconds": round(built - start, 1),
        "load_seconds": round(loaded - built, 2),
    }


def inductor(lab: Lab) -> dict[str, Any]:
    """Where TensorRT does not run: AOTInductor's engines with the Triton kernel, built here and
    compared with the CPU's."""
    if lab.backend == "tensorrt":
        raise Skip("TensorRT runs on this GPU, and its engines are measured")
    found: dict[str, Any] = {
        "gpu": lab.gpu.name,
        "not_tensorrt": (lab.decision or {}).get("reason", "it is not installed"),
        "built": {},
    }
    for precision in ("fp32", "bf16"):
        start = time.perf_counter()
        with tiny_engines(lab, "inductor", precision) as ours:
            # late: it takes torch
            from vicort.benchmarks.gpu.inductor.inductor_sets import kernel_names

            found["built"][precision] = {
                "seconds": round(time.perf_counter() - start, 1),
                "kernels": kernel_names(ours.folder),
            }
            check_against_cpu(lab, ours, precision, found)
    if missing := missing_kernels(found["built"]):
        raise StepFailed(f"the language packages do not name {', '.join(missing)}", found)
    return found


def missing_kernels(built: dict[str, Any]) -> list[str]:
    """The Triton kernels that the language package of a precision should name and does not."""
    rotating = ("rotate_tokens", "rotated_attention")  # of half precision alone
    return [
        f"{name} ({precision})"
        for precision, package in built.items()
        for name, count in package["kernels"].items()
        if not count and (precision != "fp32" or name not in rotating)
    ]


# ---- engines


def tiny_engine_dir(lab: Lab, backend: str, precision: str) -> Path:
    """The tiny model's engine set of one of the runtime's backends, built if it is missing."""
    lab.gpu  # noqa: B018 (skips without one)
    need("torch", "engine sets are built with it")
    if backend == "tensorrt":
        lab.need_tensorrt()
    from vicort.benchmarks.common.engine_sets import tiny_model  # late: imports torch

    return tiny_model().engines(lab.folder, backend, precision)


def tiny_engines(lab: Lab, backend: str, precision: str) -> EngineSet:
    """The tiny model's engines. backend: one of the runtime's, or "inductor"."""
    if backend != "inductor":
        return with_a_resizer(EngineSet.open(tiny_engine_dir(lab, backend, precision)))
    lab.gpu  # noqa: B018 (skips without one)
    need("torch", "AOTInductor is a part of it")
    need("triton", "the kernels are compiled with it")
    from vicort.benchmarks.gpu.inductor.inductor_sets import tiny_engines  # late: imports torch

    folder = lab.folder / f"tiny-{precision}-inductor"
    return with_a_resizer(tiny_engines(folder, precision, lab.gpu))


def engines(lab: Lab) -> dict[str, Any]:
    """Every graph on random input, fp32 and bf16, compared with the CPU's fp32 engines."""
    found: dict[str, Any] = {"gpu": lab.gpu.name, "backend": lab.backend}
    for precision in ("fp32", "bf16"):
        with tiny_engines(lab, lab.backend, precision) as ours:
            check_against_cpu(lab, ours, precision, found)
    return found


def check_against_cpu(lab: Lab, ours: EngineSet, precision: str, found: dict[str, Any]) -> None:
    """Adds the differences to `found`. Raises StepFailed if one is too large."""
    with tiny_engines(lab, "onnxruntime", "fp32") as theirs:
        differences = compare_engines(ours, theirs)
    found |= {
        "tolerance": TOLERANCE,
        "relative_difference": found.get("relative_difference", {}) | {precision: differences},
    }
    # also if it is NaN
    wrong = {
        name: value for name, value in differences.items() if not value <= TOLERANCE[precision]
    }
    if wrong:
        raise StepFailed(
            f"{precision} engines differ from the CPU's: {wrong}, {TOLERANCE[precision]:g} is "
            "allowed",
            found,
        )


def compare_engines(ours: EngineSet, theirs: EngineSet) -> dict[str, float]:
    """Largest difference of each output, as a part of its largest value; `count` and `kept` are
    exact or 1."""
    from vicort.runtime.engines.engine_run import run_engine

    found = {}
    for name, graph, inputs, rows in random_runs(theirs.manifest.model, ours.dtype):
        got, wanted = (run_engine(each, graph, inputs) for each in (ours, theirs))
        for output, want in wanted.items():
            real, want = (
                array.astype(np.float64)[..., rows, :, :]
                if output in "kv"
                else array.astype(np.float64)
                for array in (got[output], want)
            )
            found[f"{name} {output}"] = float(
                np.abs(real - want).max() / max(np.abs(want).max(), 1e-12)
            )
    return found


def random_runs(
    model: ModelSpec, dtype: np.dtype
) -> Iterator[tuple[str, GraphName, Arrays, np.ndarray | None]]:
    """Name, graph, inputs of values that `dtype` can hold, and which rows of k and v count."""
    from vicort.export.verify import feature_inputs, frame_inputs, head_inputs, language_inputs

    random = np.random.default_rng(0)
    yield "vision", "vision", frame_inputs(model, 2, random), None
    yield "tokens", "tokens", feature_inputs(model, dtype, random), None
    yield "head", "head", head_inputs(model, dtype, random), None
    for name, rows, pages in (("prefill", 13, 5), ("decode", 1, 9)):
        inputs = language_inputs(model, dtype, rows, pages, random)
        yield name, "llm", inputs, inputs["pos"][:, 0] >= 0


def graphs(lab: Lab) -> dict[str, Any]:
    """Checks that plain, captured and replayed runs give equal outputs, and times them."""
    found: dict[str, Any] = {"gpu": lab.gpu.name, "backend": lab.backend, "runs": {}}
    with tiny_engines(lab, lab.backend, "bf16") as ours:
        for name, graph, inputs, _ in random_runs(ours.manifest.model, ours.dtype):
            found["runs"][name] = timed = time_runs(ours, graph, inputs)
            if timed["different"]:
                raise StepFailed(
                    f"replays of {name} give other {', '.join(timed['different'])} than the "
                    "first run",
                    found,
                )
    if not any(timed["graphs"] for timed in found["runs"].values()):
        raise StepFailed("no run was captured in a CUDA graph", found)
    return found


def time_runs(engines: EngineSet, graph: str, inputs: Arrays, replays: int = 50) -> dict[str, Any]:
    """Milliseconds of the host and the device together: the first runs, and replays."""
    device = engines.new_device(overlap=True)
    try:
        stream, engine = device.stream("check"), getattr(engines, graph)
        return stream.run(partial(_time_runs, device, stream, engine, inputs, replays)).done()
    finally:
        device.close()


def _time_runs(
    device: Device, stream: Stream, engine: Engine, inputs: Arrays, replays: int
) -> dict[str, Any]:
    from vicort.runtime.engines.engine_run import bind

    bound = bind(device, stream, engine, inputs)
    outputs = {spec.name: bound[spec.name] for spec in engine.signature.outputs}

    def run() -> float:
        start = time.perf_counter()
        engine.enqueue(bound, stream)
        device.read(stream)  # waits
        return (time.perf_counter() - start) * 1e3

    first = [run()]
    before = [np.array(array) for array in device.read(stream, *outputs.values())]
    first += [run() for _ in range(RUNS - 1)]
    ms = [run() for _ in range(replays)]
    after = device.read(stream, *outputs.values())
    # CPU engines have none
    kept = (
        engine.graph_report(stream)
        if hasattr(engine, "graph_report")
        else {"graphs": 0, "refusals": []}
    )
    return {
        "first_ms": [round(value, 3) for value in first],
        "replay_ms": spread(ms),
        "different": [
            name
            for name, a, b in zip(outputs, before, after, strict=True)
            if a.tobytes() != b.tobytes()
        ],
        **kept,
    }


def streams(lab: Lab) -> dict[str, Any]:
    """Vision on one stream and prefill on another: alone, and concurrently. Outputs must be equal;
    the gain is only reported."""
    with tiny_engines(lab, lab.backend, "bf16") as ours:
        found = {"gpu": lab.gpu.name, "backend": lab.backend, **overlap_of_two(ours)}
    if found["different"]:
        raise StepFailed(
            f"runs at once give other {', '.join(found['different'])} than alone", found
        )
    return found


def overlap_of_two(engines: EngineSet, runs: int = 30) -> dict[str, Any]:
    """Seconds of `runs` runs of two engines, one after the other and at once."""
    from vicort.runtime.engines.engine_run import bind

    model = engines.manifest.model
    work = {
        name: (getattr(engines, graph), inputs)
        for name, graph, inputs, _ in random_runs(model, engines.dtype)
        if name in ("vision", "prefill")
    }
    device = engines.new_device(overlap=True)
    try:
        lanes = {name: device.stream(name) for name in work}
        bound = {
            name: lanes[name].run(bind, device, lanes[name], *work[name]).done() for name in work
        }

        def put(name: str) -> Any:
            engine, stream = work[name][0], lanes[name]
            return stream.run(lambda: [engine.enqueue(bound[name], stream) for _ in range(runs)])

        def outputs(name: str) -> list[bytes]:
            arrays = [bound[name][spec.name] for spec in work[name][0].signature.outputs]
            return (
                lanes[name]
                .run(lambda: [array.tobytes() for array in device.read(lanes[name], *arrays)])
                .done()
            )

        alone = {name: _seconds(lambda name=name: put(name).done()) for name in work}  # type: ignore[misc]
        expected = {name: outputs(name) for name in work}
        candidates = {
            "one after the other": lambda: _seconds(lambda: [put(name).done() for name in work]),
            "at once": lambda: _seconds(
                lambda: [event.done() for event in [put(name) for name in work]]
            ),
        }
        seconds = interleaved(candidates, REPEATS)
        medians = {name: spread(values)["median"] for name, values in seconds.items()}
        return {
            "first_seconds": alone,
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "gain": round(medians["one after the other"] / max(medians["at once"], 1e-9), 3),
            "different": [name for name in work if outputs(name) != expected[name]],
        }
    finally:
        device.close()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ---- the pipeline


def pipeline(lab: Lab) -> dict[str, Any]:
    """The same stream and questions on the GPU, overlapped and sequential, and on the CPU: fp32
    answers are equal, bf16's are counted."""
    found: dict[str, Any] = {
        "gpu": lab.gpu.name,
        "backend": lab.backend,
        "resized_by": resizer(),
    }
    for precision in ("fp32", "bf16"):
        with (
            tiny_engines(lab, lab.backend, precision) as ours,
            tiny_engines(lab, "onnxruntime", "fp32") as theirs,
        ):
            found[precision] = compared = compare_pipelines(ours, theirs, device_mb=DEVICE_MB)
        answers = compared["answers"]
        if answers["overlapped"] != answers["sequential"]:
            raise StepFailed(
                f"{precision}: overlapped and sequential give other answers: {answers}", found
            )
        if precision == "fp32" and answers["overlapped"] != answers["cpu"]:
            raise StepFailed(f"the GPU's answers are not the CPU's: {answers}", found)
    return found


def compare_pipelines(
    ours: EngineSet,
    theirs: EngineSet,
    chunks: int = CHUNKS,
    repeats: int = REPEATS,
    device_mb: float | None = None,
) -> dict[str, Any]:
    """Answers after the same frames, milliseconds a chunk, and the time to the first token.
    device_mb: None = as the system says."""
    from vicort.benchmarks.common.vicort_stream import VicortStream

    workload, system = Workload(), bench_system(device_mb=device_mb)
    with ExitStack() as stack:
        candidates = {
            "overlapped": (ours, True),
            "sequential": (ours, False),
            "cpu": (theirs, True),
        }
        watched = {
            name: stack.enter_context(VicortStream(each, system, workload, overlap, max_tokens=16))
            for name, (each, overlap) in candidates.items()
        }
        for stream in watched.values():
            stream.push_chunks(chunks)
        asked = {
            name: [stream.ask(question) for question in QUESTIONS]
            for name, stream in watched.items()
        }
        ms = interleaved(
            {name: partial(stream.push_chunks, chunks) for name, stream in watched.items()}, repeats
        )
        stages = {name: stage_ms(stream, chunks) for name, stream in watched.items()}
    agreed = sum(a.text == b.text for a, b in zip(asked["overlapped"], asked["cpu"], strict=True))
    return {
        "system": system.name,
        "chunks_a_measurement": chunks,
        "answers": {name: [answer.text for answer in answers] for name, answers in asked.items()},
        "answers_equal_to_cpu": f"{agreed} of {len(QUESTIONS)}",
        "ttft_ms": {
            name: [round(answer.ttft_ms, 2) for answer in answers]
            for name, answers in asked.items()
        },
        "ms_a_chunk": {name: spread(values) for name, values in ms.items()},
        "stage_ms": stages,
    }


def stage_ms(stream: VicortStream, first_chunk: int) -> dict[str, Spread]:
    stream.session.summary()  # collects the stages that the device has finished
    return stream.stage_spreads(first_chunk)
