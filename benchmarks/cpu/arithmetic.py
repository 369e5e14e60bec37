"""Floating point operations of a chunk, computed from the model's configuration.

Only matrix products count, two operations (multiply, add) for each term; norms, rotations and
softmax are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.policies.drop import ABOVE_EVERY_SCORE, Drop
from vicort.runtime.policies.system import System


@dataclass(frozen=True)
class Operations:
    """Floating point operations a chunk, by stage."""

    vision: float
    tokens: float
    prefill: float

    @property
    def total(self) -> float:
        return self.vision + self.tokens + self.prefill

    def gflop(self) -> dict[str, float]:
        stages = vars(self) | {"total": self.total}
        return {stage: round(count / 1e9, 5) for stage, count in stages.items()}


def of_chunk(
    config: dict, side: int, frames: int, system: System, prompt_rows: int = 2
) -> Operations:
    """Operations of a chunk of square frames of `side` pixels, when the system's window is full."""
    token = config["vision_config"]["patch_size"] * config["vision_config"]["spatial_merge_size"]
    units, tokens = frames // UNIT_FRAMES, (side // token) ** 2
    rows = kept_rows(system.drop, units, tokens)
    return count(config, side, side, units, rows, rows * (system.ingest.window or 0), prompt_rows)


def kept_rows(drop: Drop, units: int, unit_tokens: int) -> int:
    """Visual tokens kept of a chunk of `units`, if the policy keeps a fixed share or everything."""
    threshold, hot = drop.rule(units, unit_tokens)
    return unit_tokens + (units - 1) * (unit_tokens if threshold == ABOVE_EVERY_SCORE else hot)


def count(
    config: dict, height: int, width: int, units: int, rows: int, window_rows: int, prompt_rows: int
) -> Operations:
    """Operations of one chunk.

    height, width: pixels of a frame; units: in the chunk; rows: visual tokens kept of it;
    window_rows: cached visual tokens it attends to; prompt_rows: prompt tokens it attends to.
    """
    return Operations(
        vision=units * _vision_unit(config["vision_config"], height, width),
        tokens=_tokens(config, height, width, units),
        prefill=_prefill(config["text_config"], rows, window_rows + prompt_rows + (rows + 1) / 2),
    )


def _vision_unit(vision: dict, height: int, width: int) -> float:
    patch = vision["patch_size"]
    d = vision["hidden_size"]
    f = vision["intermediate_size"]
    merge = vision["spatial_merge_size"]
    n = (height // patch) * (width // patch)
    full = len(vision["fullatt_block_indexes"])
    window = min((vision["window_size"] // patch) ** 2, n)
    embed = n * 3 * UNIT_FRAMES * patch * patch * d
    layers = vision["depth"] * n * (4 * d * d + 3 * d * f)
    attention = 2 * n * d * (full * n + (vision["depth"] - full) * window)
    merged = d * merge * merge
    merger = n // (merge * merge) * (merged * merged + merged * vision["out_hidden_size"])
    return 2.0 * (embed + layers + attention + merger)


def _tokens(config: dict, height: int, width: int, units: int) -> float:
    side = config["vision_config"]["patch_size"] * config["vision_config"]["spatial_merge_size"]
    return (
        6.0
        * (units - 1)
        * (height // side)
        * (width // side)
        * config["text_config"]["hidden_size"]
    )


def _prefill(text: dict, rows: int, seen: float) -> float:
    width = text["hidden_size"]
    heads = text["num_attention_heads"]
    kv_heads = text["num_key_value_heads"]
    dim = width // heads
    linear = (
        2 * width * heads * dim + 2 * width * kv_heads * dim + 3 * width * text["intermediate_size"]
    )
    attention = 2 * heads * dim * seen
    return 2.0 * (
        rows * text["num_hidden_layers"] * (linear + attention) + width * text["vocab_size"]
    )
