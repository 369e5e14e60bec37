"""What the tests have a CUDA build of PyTorch do on the stand-in: sets of AOTInductor, whose
kernels compute nothing."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import torch
from support.stand_in_driver.in_process import StandInDriver

from vicort.benchmarks.gpu import engine_steps
from vicort.benchmarks.gpu.inductor.inductor_engine import OnGpu
from vicort.benchmarks.gpu.inductor.inductor_sets import kernel_names, tiny_engines
from vicort.runtime.devices.cuda import open_gpu
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.engines.engine_run import bind
from vicort.runtime.engines.engine_set import EngineSet

RUNS = 3  # plain, plain and captured, replayed


@functools.cache
def stand_in_driver() -> StandInDriver:
    return StandInDriver()


def opened(folder: Path) -> EngineSet:
    """The tiny model's set, built if it is not there yet."""
    return tiny_engines(folder, "bf16", open_gpu())


def build(folder: Path) -> dict[str, int]:
    """How often the language package names the Triton kernels."""
    with opened(folder) as engines:
        return kernel_names(engines.folder)


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each graph's run: how many kernels were launched, and graphs replayed, in each of RUNS;
    the engine's report; what the driver refused."""
    found = {}
    with opened(folder) as engines:
        device = engines.new_device(overlap=True)
        for name, graph, inputs, _ in engine_steps.random_runs(
            engines.manifest.model, engines.dtype
        ):
            stream, engine = device.stream(name), getattr(engines, graph)
            counted = counted_runs(device, stream, engine, inputs)
            found[name] = counted | engine.graph_report(stream)
        device.close()
    return found


def counted_runs(device: Device, stream: Stream, engine: Any, inputs: Any) -> dict[str, Any]:
    driver = stand_in_driver()
    bound = stream.run(bind, device, stream, engine, inputs).done()
    counts = []
    for _ in range(RUNS):
        before = [driver.get(name) for name in ("launches", "replays")]
        engine.enqueue(bound, stream).done()
        counts.append([driver.get(name) for name in ("launches", "replays")])
        counts[-1] = [after - earlier for after, earlier in zip(counts[-1], before, strict=True)]
    launches, replays = zip(*counts, strict=True)
    return {"launches": launches, "replays": replays, "refused": driver.refusals()}


def rounds(folder: Path, count: int, lanes: int) -> list[int]:
    """Has so many streams capture, `count` times; what the time before left is collected in the
    middle of a capture. Returns how many graphs there were each time."""
    captured = []
    with opened(folder) as engines:
        collect_in_captures()
        gc.disable()
        gc.freeze()
        for _ in range(count):
            device = engines.new_device(overlap=True)
            streams = [device.stream(str(number)) for number in range(lanes)]
            captured.append(sum(capture(engines, device, stream) for stream in streams))
            device.close()
            streams.append(streams)  # type: ignore[arg-type]  # so that only a collector frees them
    gc.enable()
    return captured


def collect_in_captures() -> None:
    """Has the garbage collector run where a capture is under way, as it may at any time."""
    copy = OnGpu.copy

    def collect_and_copy(side: OnGpu, target: torch.Tensor, source: torch.Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            gc.collect()
        copy(side, target, source)

    OnGpu.copy = collect_and_copy  # type: ignore[method-assign]


def capture(engines: EngineSet, device: Device, stream: Stream) -> int:
    """How many graphs the stream has of an engine after RUNS runs."""
    _, graph, inputs, _ = next(engine_steps.random_runs(engines.manifest.model, engines.dtype))
    engine = getattr(engines, graph)
    bound = stream.run(bind, device, stream, engine, inputs).done()
    for _ in range(RUNS):
        engine.enqueue(bound, stream).done()
    return engine.graph_report(stream)["graphs"]
