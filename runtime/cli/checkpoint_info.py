"""What an engine set of a checkpoint would be, before it is built: `vicort-info MODEL`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vicort.runtime.cli.exporter_process import ask_exporter
from vicort.runtime.cli.sizes import GB, lacking_memory, machine_text, size_text
from vicort.runtime.cli.writers import duration
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.bfloat16 import COST, computes_in_float32
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.locations import has_nvidia_driver
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory_plan import unit_pages
from vicort.runtime.packages import install_command

POOL_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
# How it was measured: docs/engine-sets.md. One backend is named, because `auto` also runs the set
# on each.
BUILD_BACKEND = "openvino"
BUILD_SPARE_GB = 1  # that a build takes besides the weights
RULE = (
    "a set holds the weights once, and some MB of graphs and tokenizer; with TensorRT a tied "
    "output head twice. A build for one named CPU backend takes memory for the weights and "
    f"{BUILD_SPARE_GB} GB, and disk for the set; --backend auto, which also runs the set on each, "
    "and TensorRT take more"
)


@dataclass(frozen=True)
class PrecisionInfo:
    """An engine set in one precision. Sizes are in bytes, None where weights are refused."""

    set_bytes: int | None  # of a set for a CPU
    plan_bytes: int | None  # of a TensorRT set
    bytes_a_token: int
    seconds_a_gb: float  # of a stream of which nothing is dropped
    build_memory: int | None  # roughly, of `build_command`
    build_disk: int | None
    runs: dict[str, str]  # by backend, why it does not run here; "" if nothing is known against it
    build_command: str
    note: str  # what it costs on this machine; "" = nothing


@dataclass(frozen=True)
class CompressedInfo:
    """A CPU set in fp32 whose matrices are integers, by `vicort-build --weights`."""

    # None: a quantised checkpoint's own integers are kept, so it depends on them
    set_bytes: int | None
    build_command: str


@dataclass(frozen=True)
class CheckpointInfo:
    folder: str
    family: str
    parameters: dict[str, int]  # of `vision` and `language`
    stored: dict[str, int]  # bytes of weights, by type
    quantization: str  # method; "" = none
    refused: str  # why vicort-build does not take it, or nothing can be built here; "" = it does
    frame: tuple[int, int] | None  # width and height in pixels; None: as the source
    frame_size: str  # in words
    fps: float  # that the model was trained with
    chunk_frames: int
    unit_tokens: int  # visual tokens of two frames, before any are dropped
    machine: MachineMemory
    precisions: dict[str, PrecisionInfo]
    compressed: dict[str, CompressedInfo]  # by what --weights says; {} where weights are refused
    rule: str  # by which sizes are computed


def checkpoint_info(folder: Path) -> CheckpointInfo:
    """Raises EngineError if the checkpoint is damaged, or of another family of models."""
    found = json.loads(ask_exporter("checkpoint_description", str(folder)))
    model = ModelSpec.model_validate(found["model"])
    machine = MachineMemory(host_memory())
    return CheckpointInfo(
        folder=found["folder"],
        family=found["family"],
        parameters=found["parameters"],
        stored=found["stored"],
        quantization=found["quantization"],
        refused=found["refused"] or _not_buildable(),
        frame=model.fixed_size and (model.fixed_size[1], model.fixed_size[0]),
        frame_size=model.frame_size,
        fps=model.fps,
        chunk_frames=model.chunk_frames,
        unit_tokens=model.unit_tokens,
        machine=machine,
        precisions={
            precision: _precision(precision, found, model, machine)
            for precision in found["backends"]
        },
        compressed={
            weights: CompressedInfo(size, _command(found["folder"], "fp32", "--weights", weights))
            for weights, size in found["compressed_bytes"].items()
        },
        rule=RULE,
    )


def _not_buildable() -> str:
    try:
        metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return f"building needs the export tools: run `{install_command('export')}`"
    return ""


def _precision(
    precision: str, found: dict[str, Any], model: ModelSpec, machine: MachineMemory
) -> PrecisionInfo:
    of_page = page_bytes(model, numpy_dtype(POOL_TYPES[precision]))
    size = found["set_bytes"].get(precision)
    return PrecisionInfo(
        set_bytes=size,
        plan_bytes=found["plan_bytes"].get(precision),
        bytes_a_token=of_page // model.page_tokens,
        seconds_a_gb=GB / (model.fps / UNIT_FRAMES * unit_pages(model) * of_page),
        build_memory=None if size is None else size + BUILD_SPARE_GB * GB,
        build_disk=size,
        runs={
            backend: _lacking(backend, precision, size or 0, machine.host)
            for backend in found["backends"][precision]
        },
        build_command=_command(found["folder"], precision),
        note=COST if computes_in_float32("openvino", precision) else "",
    )


def _command(folder: str, precision: str, *more: str) -> str:
    command = ("vicort-build", folder, "--backend", BUILD_BACKEND, "--precision", precision)
    return shlex.join([*command, *more])


def _lacking(backend: str, precision: str, weights: int, host: int) -> str:
    """Why a set of this backend would not run here."""
    if backend == "tensorrt":
        if not has_nvidia_driver():
            return "there is no NVIDIA driver"
        if not (find_spec("tensorrt") or find_spec("tensorrt_rtx")):
            return "TensorRT is not installed"
        return ""
    if not find_spec(backend):
        return f"{backend} is not installed"
    return lacking_memory(weights, computes_in_float32(backend, precision), host)


def checkpoint_lines(found: CheckpointInfo) -> list[str]:
    """The information as text."""
    tokens = found.unit_tokens * found.fps / UNIT_FRAMES
    rows = {
        "model": f"{found.family}, {_parameters_text(found.parameters)}",
        "weights": _weights_text(found),
        "frames": f"{found.frame_size}, {found.fps:g} a second, chunks of {found.chunk_frames}",
        "tokens": f"{'' if found.frame else 'up to '}{found.unit_tokens} for two frames, "
        f"{tokens:g} a second, before dropping",
        "here": machine_text(found.machine),
        **({"build": found.refused} if found.refused else {}),
    }
    text = [found.folder, *(f"  {key:11} {value}" for key, value in rows.items())]
    for precision, each in found.precisions.items():
        first, *others = _precision_lines(each)
        text += [f"  {precision:11} {first}", *(f"  {'':11} {line}" for line in others)]
    for weights, compressed in found.compressed.items():
        text.append(f"  {weights:11} {_compressed_text(compressed)}")
    return [*text, f"  {'rule':11} {found.rule}"]


def _compressed_text(found: CompressedInfo) -> str:
    size = (
        "engine set with the checkpoint's own integers where it has them"
        if found.set_bytes is None
        else f"engine set of {size_text(found.set_bytes)}"
    )
    return f"{size}: `{found.build_command}`"


def _parameters_text(parameters: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {_count(number)}" for name, number in parameters.items())
    return f"{_count(sum(parameters.values()))} parameters ({parts})"


def _count(number: int) -> str:
    if number >= 1_000_000_000:
        return f"{number / 1e9:.2f} billion"
    return f"{number / 1e6:.2f} million"


def _weights_text(found: CheckpointInfo) -> str:
    types = ", ".join(f"{name} {size_text(size)}" for name, size in found.stored.items())
    return f"quantised with {found.quantization}: {types}" if found.quantization else types


def _precision_lines(each: PrecisionInfo) -> list[str]:
    memory = (
        f"{each.bytes_a_token:,} bytes a token; 1 GB holds {duration(each.seconds_a_gb)} of which "
        "nothing is dropped"
    )
    if each.set_bytes is None or each.plan_bytes is None or each.build_memory is None:
        return [memory]
    sizes = f"{size_text(each.set_bytes)}, with TensorRT {size_text(each.plan_bytes)}"
    runs = [backend for backend, lacking in each.runs.items() if not lacking]
    lacking = [f"{backend}: {reason}" for backend, reason in each.runs.items() if reason]
    return [
        f"engine set of {sizes}",
        memory,
        f"runs here with {' and '.join(runs)}" if runs else "runs on no backend here",
        *lacking,
        *([each.note] if each.note else []),
        f"`{each.build_command}` takes about {size_text(each.build_memory)} of memory, "
        f"{size_text(each.build_disk or 0)} of disk",
    ]
