"""Whether this machine has the disk and the memory for an engine set, asked before it is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vicort.export.graphs import TORCH_TYPES
from vicort.export.qwen2_5_vl.configuration import Configuration
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.vision import VisionEncoder
from vicort.runtime.devices.machine_memory import host_memory
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Precision


def weight_bytes_of(config: Configuration, precision: Precision) -> int:
    """Bytes of all weights in an engine set."""
    side = config.vision.token_pixels
    with torch.device("meta"):
        vision = VisionEncoder(config.vision, config.language.width, side, side)
        models = (vision, LanguageModel(config.language))
    numbers = sum(weight.numel() for model in models for weight in model.parameters())
    return numbers * TORCH_TYPES[precision].itemsize


def check_space(
    folder: Path, config: Configuration, precision: Precision, plans: bool, root: Path = Path("/")
) -> None:
    """Raises ConfigError if the disk of `folder` has too little free space to build a set there, or
    the machine has less memory in total than the set's weights.

    plans: of TensorRT, which are built beside ONNX files of the same weights. root: where `proc`
    and `sys` are.
    """
    weights = weight_bytes_of(config, precision)
    disk = 2 * weights if plans else weights
    parent = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    if (free := shutil.disk_usage(parent).free) < disk:
        raise ConfigError(
            f"building {folder} in {precision} takes {_gigabytes(disk)} of disk, {parent} has "
            f"{_gigabytes(free)} free: free some, or name a folder on another disk with --out"
        )
    if not plans and (memory := host_memory(root)) < weights:
        raise ConfigError(
            f"building {folder} in {precision}, and running it, takes more than "
            f"{_gigabytes(weights)} of memory, this machine or its cgroup has "
            f"{_gigabytes(memory)}: take a smaller model, --precision bf16, or a larger machine"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
