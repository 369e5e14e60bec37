"""Whether the engines of a set fit into the memory of a GPU, asked before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vicort.runtime.errors import DeviceError
from vicort.runtime.manifest import Manifest, Weights

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.gpu import Gpu

BITS = {"fp32": 32, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}  # of a weight
SMALLER: tuple[Weights, ...] = ("int8", "int4")


def check_fits(folder: Path, manifest: Manifest, gpu: Gpu) -> None:
    """Raises DeviceError, which names what would fit, if the free memory of the GPU is less than
    the engines alone take."""
    needed, (free, total) = engine_bytes(folder, manifest), gpu.driver.memory()
    if needed <= free:
        return
    advice = [f"build with --weights {weights}" for weights in _that_fit(manifest, needed, free)]
    if needed <= total:
        advice.insert(0, "end the processes that hold the rest (`nvidia-smi` names them)")
    advice.append("take a smaller model")
    raise DeviceError(
        f"the engines of {folder} take {needed / 1e6:.0f} MB, and {gpu.name} has "
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


def _that_fit(manifest: Manifest, needed: int, free: int) -> list[Weights]:
    """The number formats of weights with which the engines would take less than is free."""
    now = BITS[manifest.weights or manifest.precision]
    return [each for each in SMALLER if BITS[each] < now and needed * BITS[each] / now < free]
