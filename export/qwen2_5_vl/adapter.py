"""A LoRA adapter (arXiv:2106.09685) in PEFT's file layout.

adapter_config.json            rank and alpha; other PEFT features are rejected
adapter_model.safetensors      base_model.model.MODULE.lora_A.weight [r, in], … lora_B.weight [out,
r]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vicort.runtime.errors import EngineError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
)


@dataclass(frozen=True)
class LowRank:
    """The low-rank update of one weight [out,in]."""

    down: Tensor  # A [r, in]
    up: Tensor  # B [out, r]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def added_to(self, weight: Tensor) -> Tensor:
        """weight + scale * B A, in float32."""
        return weight.float() + self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Adapter:
    folder: Path
    weights: Mapping[str, LowRank]  # by the weight's name in the checkpoint


def read_adapter(folder: Path) -> Adapter:
    """Raises EngineError if the folder has no LoRA adapter, or one that cannot be merged."""
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file cannot be iterated)
    except FileNotFoundError as error:
        raise EngineError(
            f"{folder} has no {WEIGHTS_FILE}: save the adapter in safetensors files"
        ) from error
    except SafetensorError as error:
        raise EngineError(f"{path} is damaged ({error}): copy the adapter again") from error
    weights: dict[str, LowRank] = {}
    for key in held:
        module = key.removeprefix(PREFIX).removesuffix(DOWN).removesuffix(UP)
        if not key.startswith(PREFIX) or not key.endswith((DOWN, UP)):
            raise EngineError(
                f"{path} has {key!r}, which is no LoRA of a linear layer: name an adapter with "
                f"{PREFIX}….lora_A.weight"
            )
        pair = [held.get(PREFIX + module + end) for end in (DOWN, UP)]
        weights[module + ".weight"] = _pair(path, module, pair[0], pair[1], config)
    if not weights:
        raise EngineError(f"{path} is empty: copy the adapter again")
    return Adapter(folder, weights)


def _pair(
    path: Path, module: str, down: Tensor | None, up: Tensor | None, config: Mapping[str, Any]
) -> LowRank:
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = [None if each is None else list(each.shape) for each in (down, up)]
        raise EngineError(
            f"{path}: {module} has A and B of shapes {shapes}, allowed are [r, in] and [out, r]: "
            "copy the adapter again"
        )
    rank = down.shape[0]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(down, up, scale)


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise EngineError(
            f"no adapter in {folder}: name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        config = json.loads(path.read_text())
        kind, alpha = config["peft_type"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(
            f"{path} is no LoRA's configuration ({error!r}): save the adapter again"
        ) from error
    if kind != "LORA" or not isinstance(alpha, int | float):
        raise EngineError(
            f"{path}: peft_type {kind!r}, lora_alpha {alpha!r}: only LORA with a number is "
            "supported"
        )
    used = next((name for name in UNSUPPORTED if config.get(name)), None)
    if used is None and config.get("bias", "none") != "none":
        used = "bias"
    if used:
        raise EngineError(
            f"{path}: {used} {config[used]!r} is not supported: merge this adapter with PEFT, and "
            "build the merged checkpoint"
        )
    return config
