"""How many floating point operations a chunk takes, counted from the model's configuration.

Only matrix products count, two operations (multiply, add) a product term; norms, rotations and
softmax are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vicort.runtime.policies.system import System

UNIT_FRAMES = 2
FORMULA = {
    "vision, a unit": "2 n [3*2*p*p d + depth (4 d d + 3 d f) + d (full layers n + window layers w) 2] + 2 n/4 [(4 d)(4 d) + 4 d width]"
    "; n patches a unit, p patch side, d ViT width, f its MLP width, w patches a window",
    "prefill, a chunk": "2 C layers [2 width Hq D + 2 width Hkv D + 3 width f] + 4 C layers Hq D S + 2 width V"
    "; C rows kept, S mean number of tokens a row attends to (window + half of its own chunk), V "
    "vocabulary (one row a chunk)",
    "tokens, a chunk": "6 (units - 1) P width: three products of vectors a pair of tokens",
}


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
        stages = {
            "vision": self.vision,
            "tokens": self.tokens,
            "prefill": self.prefill,
            "total": self.total,
        }
        return {stage: round(count / 1e9, 5) for stage, count in stages.items()}


def of_chunk(
    config: dict, side: int, frames: int, system: System, prompt_rows: int = 2
) -> Operations:
    """Operations of a chunk of square frames of `side` pixels, when the system's window is full."""
    token = config["vision_config"]["patch_size"] * config["vision_config"]["spatial_merge_size"]
    units, tokens = frames // UNIT_FRAMES, (side // token) ** 2
    bounds = system.drop.bounds(units, tokens)
    rows = units * tokens if bounds is None else tokens + (units - 1) * bounds[1]
    return count(config, side, side, units, rows, rows * (system.ingest.window or 0), prompt_rows)


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
    patch, d, f, merge = (
        vision["patch_size"],
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["spatial_merge_size"],
    )
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
    width, heads, kv_heads = (
        text["hidden_size"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    dim = width // heads
    linear = (
        2 * width * heads * dim + 2 * width * kv_heads * dim + 3 * width * text["intermediate_size"]
    )
    attention = 2 * heads * dim * seen
    return 2.0 * (
        rows * text["num_hidden_layers"] * (linear + attention) + width * text["vocab_size"]
    )
