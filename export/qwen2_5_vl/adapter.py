"""A LoRA adapter (arXiv:2106.09685) in PEFT's file layout.

adapter_config.json            rank, alpha and their patterns; what cannot be merged is rejected
adapter_model.safetensors      base_model.model.MODULE.lora_A.weight [r, in], … lora_B.weight [out,
r]; with DoRA (arXiv:2402.09353) also … lora_magnitude_vector [out]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vicort.runtime.errors import EngineError
from vicort.runtime.file_kinds import misfit
from vicort.runtime.safe_text import brief, read_text, shown

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")  # of DoRA
MAX_CONFIG = 1 << 20  # bytes
# features with which an adapter is more than an update of weights, or another one
UNSUPPORTED = (
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# initial values of A and B that leave the base model's weights as they are; others, such as pissa,
# subtract something from them
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """The low-rank update of one weight [out,in]."""

    down: Tensor  # A [r, in]
    up: Tensor  # B [out, r]
    scale: float
    magnitude: Tensor | None = None  # [out], of DoRA: the length of each row of the sum

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def added_to(self, weight: Tensor) -> Tensor:
        """weight + scale * B A, in float32; with DoRA, its rows have the adapter's lengths."""
        added = weight.float() + self.scale * (self.up.float() @ self.down.float())
        if self.magnitude is None:
            return added
        return added * (self.magnitude.float() / added.norm(dim=1))[:, None]


@dataclass(frozen=True)
class Adapter:
    folder: Path
    weights: Mapping[str, LowRank]  # by the weight's name in the checkpoint


def read_adapter(folder: Path) -> Adapter:
    """Raises EngineError if the folder has no LoRA adapter, or one that cannot be merged."""
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    try:
        if what := misfit(path):
            raise EngineError(f"{path} is {what}")
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
        end = next((end for end in (DOWN, UP, *MAGNITUDES) if key.endswith(end)), None)
        if not key.startswith(PREFIX) or end is None:
            raise EngineError(
                f"{path} has {key!r}, which is no LoRA of a linear layer: name an adapter with "
                f"{PREFIX}….lora_A.weight"
            )
        module = key.removeprefix(PREFIX).removesuffix(end)
        weights[module + ".weight"] = _low_rank(path, module, held, config)
    if not weights:
        raise EngineError(f"{path} is empty: copy the adapter again")
    return Adapter(folder, weights)


def _low_rank(
    path: Path, module: str, held: Mapping[str, Tensor], config: Mapping[str, Any]
) -> LowRank:
    down, up, *found = (held.get(PREFIX + module + end) for end in (DOWN, UP, *MAGNITUDES))
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = [None if each is None else list(each.shape) for each in (down, up)]
        raise EngineError(
            f"{path}: {module} has A and B of shapes {shapes}, allowed are [r, in] and [out, r]: "
            "copy the adapter again"
        )
    rank, alpha = down.shape[0], _alpha(module, config)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    magnitude = next((each for each in found if each is not None), None)
    wanted = [up.shape[0]] if config.get("use_dora") else None
    shape = None if magnitude is None else list(magnitude.shape)
    if shape != wanted:
        raise EngineError(
            f"{path}: {module} has a magnitude of shape {shape}, {CONFIG_FILE} implies {wanted} "
            f"(use_dora {bool(config.get('use_dora'))}): copy the adapter again"
        )
    return LowRank(down, up, scale, magnitude)


def _alpha(module: str, config: Mapping[str, Any]) -> float:
    """Of the first pattern that is the end of the module's name, else of all."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return alpha
    return config["lora_alpha"]


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise EngineError(
            f"no adapter in {folder}: name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        config = json.loads(read_text(path, MAX_CONFIG))
        kind, alpha = config["peft_type"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(
            f"{path} is no LoRA's configuration ({brief(error)}): save the adapter again"
        ) from error
    if kind != "LORA" or not _is_number(alpha):
        raise EngineError(
            f"{path}: peft_type {shown(kind)}, lora_alpha {shown(alpha)}: only LORA with a number "
            "is supported"
        )
    _check_patterns(path, config.get("alpha_pattern") or {})
    used = next((name for name in UNSUPPORTED if config.get(name)), None)
    if used is None and config.get("bias", "none") != "none":
        used = "bias"
    if used is None and config.get("init_lora_weights", True) not in PLAIN_STARTS:
        used = "init_lora_weights"
    if used:
        raise EngineError(
            f"{path}: {used} {shown(config[used])} is not supported: merge this adapter with PEFT, "
            "and build the merged checkpoint"
        )
    return config


def _check_patterns(path: Path, patterns: Any) -> None:
    """Raises EngineError if they are no numbers by regular expressions."""
    try:
        for pattern in patterns:
            re.compile(pattern)
        right = all(map(_is_number, patterns.values()))
    except (re.error, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise EngineError(
            f"{path}: alpha_pattern {shown(patterns)}: allowed are names of modules with a number "
            "each"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
