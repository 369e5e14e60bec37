"""How much of a GPU's memory the engines of a set take: whether they fit, before they are loaded,
and what they leave for pages.

It is computed from their files. Runs also take memory for what a plan computes, which TensorRT
reports once the plan is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.engines.engine_set import LLM_STREAMS
from vicort.runtime.errors import DeviceError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.kernels import Kernels
from vicort.runtime.manifest import Manifest, Weights

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.gpu import Gpu

BITS = {"fp32": 32, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}  # of a weight
SMALLER: tuple[Weights, ...] = ("int8", "int4")


def gpu_memory(folder: Path, manifest: Manifest, gpu: Gpu) -> MachineMemory:
    """The memory of the machine and its GPU, with what these engines take of it. Raises EngineError
    for damaged kernels."""
    return replace(
        gpu.machine_memory(),
        engines=engine_bytes(folder, manifest),
        runs=run_bytes(folder, manifest),
    )


def check_fits(folder: Path, manifest: Manifest, gpu: Gpu, memory: MachineMemory) -> None:
    """Raises DeviceError, which names what would fit, if the free memory of the GPU is less than
    the engines and the runs of one session take. memory: of `gpu_memory`."""
    needed, (free, total) = memory.engines + memory.runs, gpu.driver.memory()
    if needed <= free:
        return
    fitting = _that_fit(manifest, memory.engines, free - memory.runs)
    advice = [f"build with --weights {weights}" for weights in fitting]
    if needed <= total:
        advice.insert(0, "end the processes that hold the rest (`nvidia-smi` names them)")
    advice.append("take a smaller model")
    raise DeviceError(
        f"the engines of {folder} and their runs take {needed / 1e6:.0f} MB, and {gpu.name} has "
        f"{free / 1e6:.0f} of {total / 1e6:.0f} MB free: {', or '.join(advice)} (it was built by "
        f"`{manifest.build_command}`)"
    )


def engine_bytes(folder: Path, manifest: Manifest) -> int:
    """Of the plans, and of the weights that are loaded into plans without any."""
    graphs = manifest.graphs.values()
    names = {graph.file for graph in graphs} | {graph.refit_from or graph.file for graph in graphs}
    # beside NAME.onnx lie its weights, in NAME.onnx.data or the like
    files = {path for name in names for path in folder.glob(f"{name}*")}
    return sum(path.stat().st_size for path in files)


def run_bytes(folder: Path, manifest: Manifest) -> int:
    """Of the attention kernels' workspace in the runs of a session, each stream of which has its
    own."""
    graph = manifest.graphs["llm"]
    if not graph.plugin_layers:
        return 0
    inputs = {spec.name: spec.shape for spec in graph.inputs}
    rows, segments, entries = inputs["features"][0], inputs["table"][0], inputs["table"][-1]
    largest = [
        size if isinstance(size, int) else graph.dimensions[size].max
        for size in (rows, entries, segments)
    ]
    return LLM_STREAMS * Kernels.read(folder / KERNELS_FILE).workspace_bytes(*largest)


def _that_fit(manifest: Manifest, engines: int, free: int) -> list[Weights]:
    """The number formats of weights with which the engines would take less than is free."""
    now = BITS[manifest.weights or manifest.precision]
    return [each for each in SMALLER if BITS[each] < now and engines * BITS[each] / now < free]
