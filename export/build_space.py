"""Whether this machine has the disk and the memory for an engine set, asked before it is built."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vicort.export.graphs import TORCH_TYPES
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import Configuration
from vicort.export.qwen2_5_vl.language import LanguageModel, OutputHead
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.vision import VisionEncoder
from vicort.export.weight_compression import GROUP, Scheme
from vicort.runtime.devices.machine_memory import host_memory
from vicort.runtime.engines.bfloat16 import computes_in_float32
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import GraphName, Manifest, Precision, Weights

GRAPHS: tuple[GraphName, ...] = ("vision", "llm", "head")  # with weights


@dataclass(frozen=True)
class NumberFormat:
    """Of the numbers in an engine set."""

    precision: Precision
    weights: Weights | None = None

    def __str__(self) -> str:
        return f"{self.precision}{f' with {self.weights} weights' if self.weights else ''}"

    @property
    def options(self) -> str:
        """Of vicort-build."""
        return f"--precision {self.precision}" + (
            f" --weights {self.weights}" if self.weights else ""
        )


def suitable_format(
    config: Configuration,
    bf16: bool = True,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    root: Path = Path("/"),
) -> NumberFormat:
    """The first of fp32, bf16 where the CPU has instructions for it, int8 and int4 whose weights
    take at most a third of the memory of this machine or its cgroup; int4 if none does. An engine
    may hold them twice.

    bf16: whether the backend takes it. root: where `proc` and `sys` are.
    """
    bf16 = bf16 and not computes_in_float32("openvino", "bf16", cpuinfo)
    formats = [
        NumberFormat("fp32"),
        *([NumberFormat("bf16")] if bf16 else []),
        NumberFormat("fp32", "int8"),
        NumberFormat("fp32", "int4"),
    ]
    limit = host_memory(root) / 3
    fitting = (each for each in formats if weight_bytes_of(config, each, plans=False) <= limit)
    return next(fitting, formats[-1])


def weight_bytes_of(
    config: Configuration, numbers: NumberFormat, plans: bool, embedding: int | None = None
) -> int:
    """Bytes of all weights in an engine set, with the scales of integers. As `bytes_of_parts`."""
    return sum(bytes_of_parts(config, numbers, plans, embedding).values())


def bytes_of_parts(
    config: Configuration,
    numbers: NumberFormat,
    plans: bool,
    embedding: int | None = None,
    packed: bool = False,
) -> dict[str, int]:
    """Bytes of the weights of each graph, and of the embedding where it is apart.

    plans: of TensorRT; embedding: bytes of a number in embedding.bin, where no tied output head is
    a part of that file; None = as of others. packed: as onnxruntime's operators take integers.
    """
    side = config.vision.token_pixels
    with torch.device("meta"):
        vision = VisionEncoder(config.vision, config.language.width, side, side)
        language = LanguageModel(config.language)
        combine(vision)
        combine(language)
    size, rows = TORCH_TYPES[numbers.precision].itemsize, language.embed_tokens.weight.numel()
    schemes = {
        name: Scheme.chosen(numbers.precision, numbers.weights, plans, name) for name in GRAPHS
    }
    head = schemes["head"]
    apart = plans or not config.language.tied or (head is not None and head.int8)
    parts: tuple[tuple[GraphName, nn.Module], ...] = (
        ("vision", vision),
        ("llm", language.layers),
        ("llm", language.norm),
        ("head", OutputHead(language)),
    )
    found: dict[str, int] = dict.fromkeys(GRAPHS, 0)
    for name, module in parts:
        found[name] += _bytes(module, schemes[name], size, packed)
    found["embedding"] = rows * (embedding or size) if apart else 0
    return found


def _bytes(model: nn.Module, scheme: Scheme | None, size: int, packed: bool) -> int:
    """size: bytes of a number that is not quantised."""
    total = size * sum(weight.numel() for weight in model.parameters())
    if scheme is None:
        return total
    for name, layer in model.named_modules():
        if not isinstance(layer, Linear | JoinedLinear):
            continue
        outputs, inputs = layer.weight.shape
        if bits := scheme.bits(inputs, f"{name}.weight"):
            groups = -(-inputs // GROUP) if bits == 4 or packed else 1
            filled = groups * GROUP if packed and inputs > GROUP else inputs
            total += outputs * (filled * bits // 8 + size * groups - size * inputs)
    return total


def check_space(
    folder: Path,
    config: Configuration,
    manifest: Manifest,
    root: Path = Path("/"),
    repacked: bool = False,
) -> None:
    """Raises ConfigError if the disk of `folder` has too little free space to build a set there, or
    the machine has less memory in total than the set's weights.

    TensorRT's plans are built beside ONNX files of the same weights. repacked: the graphs are
    written again for onnxruntime, beside their first form. root: where `proc` and `sys` are.
    """
    plans, kind = manifest.flavour is not None, NumberFormat(manifest.precision, manifest.weights)
    embedding = numpy_dtype(manifest.embedding.dtype).itemsize
    weights = weight_bytes_of(config, kind, plans, embedding)
    parts = bytes_of_parts(config, kind, plans, embedding, packed=True)
    again = sum(parts[name] for name in GRAPHS) if repacked else 0
    disk = 2 * weights if plans else weights + again
    parent = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    if (free := shutil.disk_usage(parent).free) < disk:
        raise ConfigError(
            f"building {folder} in {kind} takes {gigabytes(disk)} of disk, {parent} has "
            f"{gigabytes(free)} free: free some, or name a folder on another disk with --out"
        )
    if not plans and (memory := host_memory(root)) < weights:
        raise ConfigError(
            f"building {folder} in {kind}, and running it, takes more than "
            f"{gigabytes(weights)} of memory, this machine or its cgroup has "
            f"{gigabytes(memory)}: take a smaller model, --weights int4, or a larger machine"
        )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
