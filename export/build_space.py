"""Whether this machine has the disk and the memory for an engine set, asked before it is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from vicort.export.graphs import TORCH_TYPES
from vicort.export.qwen2_5_vl.configuration import Configuration
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.qwen2_5_vl.vision import VisionEncoder
from vicort.export.weight_compression import Scheme
from vicort.runtime.devices.machine_memory import host_memory
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Manifest


def weight_bytes_of(config: Configuration, manifest: Manifest) -> int:
    """Bytes of all weights in an engine set."""
    side = config.vision.token_pixels
    with torch.device("meta"):
        vision = VisionEncoder(config.vision, config.language.width, side, side)
        language = LanguageModel(config.language)
    size = TORCH_TYPES[manifest.precision].itemsize
    return _bytes(vision, Scheme.of(manifest, "vision"), size) + _bytes(
        language, Scheme.of(manifest, "llm"), size
    )


def _bytes(model: nn.Module, scheme: Scheme | None, size: int) -> int:
    """size: bytes of a number that is not quantised. A matrix that is also the token embedding is
    stored in both forms."""
    total = size * sum(weight.numel() for weight in model.parameters())
    if scheme is None:
        return total
    shared = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear) and (bits := scheme.bits(layer.in_features, f"{name}.weight")):
            stored = layer.weight.numel() * bits // 8
            total += stored - (0 if id(layer.weight) in shared else size * layer.weight.numel())
    return total


def check_space(
    folder: Path, config: Configuration, manifest: Manifest, root: Path = Path("/")
) -> None:
    """Raises ConfigError if the disk of `folder` has too little free space to build a set there, or
    the machine has less memory in total than the set's weights.

    TensorRT's plans are built beside ONNX files of the same weights. root: where `proc` and `sys`
    are.
    """
    plans = manifest.flavour is not None
    weights = weight_bytes_of(config, manifest)
    kind = f"{manifest.precision}{f' with {manifest.weights} weights' if manifest.weights else ''}"
    disk = 2 * weights if plans else weights
    parent = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    if (free := shutil.disk_usage(parent).free) < disk:
        raise ConfigError(
            f"building {folder} in {kind} takes {_gigabytes(disk)} of disk, {parent} has "
            f"{_gigabytes(free)} free: free some, or name a folder on another disk with --out"
        )
    if not plans and (memory := host_memory(root)) < weights:
        raise ConfigError(
            f"building {folder} in {kind}, and running it, takes more than "
            f"{_gigabytes(weights)} of memory, this machine or its cgroup has "
            f"{_gigabytes(memory)}: take --weights int4, a smaller model, or a larger machine"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
