"""A checkpoint of about 100 million parameters: random weights in Hugging Face layout, with the
tiny model's tokenizer and template."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vicort.export.random_checkpoint import config_of, write_companions
from vicort.export.tiny.model import CHECKPOINT as TINY
from vicort.runtime.work_folders import check_new, work_folder

SIDE = 224  # pixels
VISION = {
    "depth": 6,
    "hidden_size": 512,
    "intermediate_size": 1280,
    "num_heads": 8,
    "window_size": 112,
    "fullatt_block_indexes": [2, 5],
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
SECTIONS = [8, 12, 12]  # of the multimodal rotary embedding: half a head of 64
# standard deviation of the weights; with transformers' 0.02 the features of all positions are
# nearly equal
INITIAL = 0.04


def write_medium(folder: Path) -> Path:
    """Writes the checkpoint to `folder` unless it is there, and returns it."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_medium_config())).float()
    check_new(folder)
    with work_folder(folder.parent) as work:
        model.save_pretrained(work / "checkpoint")
        write_companions(work / "checkpoint", SIDE)
        (work / "checkpoint").rename(folder)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def parameters(checkpoint: Path) -> int:
    """Parameters in a checkpoint of one safetensors file."""
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 - safe_open is no mapping
    return sum(math.prod(shape) for shape in shapes)


def matrix_shapes() -> dict[str, tuple[int, int, int]]:
    """(rows, in, out) of the matrix product that each part of each model spends most on, for a
    chunk of 16 frames, 30 % of it kept."""
    configs = {"tiny": read_json(TINY / "config.json"), "medium": _medium_config()}
    rows = {"tiny": (512, 48), "medium": (2048, 160)}  # of the vision encoder, the language model
    return {
        f"{model} {part} MLP": (count, sizes["hidden_size"], sizes["intermediate_size"])
        for model, config in configs.items()
        for part, count, sizes in (
            ("vision", rows[model][0], config["vision_config"]),
            ("language", rows[model][1], config["text_config"]),
        )
    }


def _medium_config() -> dict:
    initial = {"initializer_range": INITIAL}
    return config_of(VISION | initial, TEXT | initial, 1e4, SECTIONS)
