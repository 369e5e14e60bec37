"""Relative errors of the int4 products of the embedded model on clips that calibration did not see.

    python -m vicort.benchmarks.studies.calibrated_products \\
        --out benchmarks/results/calibrated_products.json

One clip of the synthetic world chooses; others, of other seeds, are held out. For each kind of
product the error of its outputs (Frobenius norm of the difference over that of the exact outputs)
is given data-free, with the weighted search, with AWQ, and as chosen, over layers and held-out
clips.
Inputs are those of the exact model, so errors do not add up over layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish
from vicort.export.activation_statistics import InputStatistics, activation_statistics
from vicort.export.calibration import ProductSearch, product_error, search_layer
from vicort.export.calibration_clip import read_clip
from vicort.export.checkpoint import TINY, resolve
from vicort.export.product_choice import DATA_FREE
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.weights import load_language
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tiny.evaluation_files import HELD_OUT
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import make_stream
from vicort.export.weight_compression import TYPES, Scheme

FIRST_SEED = HELD_OUT + 500  # neither training nor the evaluation has these streams
THINGS = 5
SIZE, FPS = (320, 240), 12
KINDS = {
    "self_attn.joined": "q, k and v",
    "self_attn.o_proj": "attention output",
    "mlp.joined": "gate and up",
    "mlp.down_proj": "down",
}
SCHEME = Scheme(int4=True, int8=True, type=TYPES["fp32"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = "clips that were not calibrated with (default: %(default)s)"
    parser.add_argument("--clips", type=int, default=8, help=words)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = {"conditions": machine.conditions(), "clips": options.clips}
    return finish(result | held_out_errors(options.clips), options.out)


def held_out_errors(clips: int) -> dict[str, Any]:
    """Calibrate with the first clip, and measure on `clips` others."""
    chosen_with, *others = (clip_statistics(FIRST_SEED + number) for number in range(clips + 1))
    checkpoint = resolve(TINY)
    language = load_language(checkpoint, read_configuration(checkpoint))
    combine(language)
    found = [
        each
        for index, layer in enumerate(language.layers)
        for each in search_layer(layer, f"layers.{index}", chosen_with, SCHEME, ())
    ]
    return {
        "products": {name: of_kind(part, found, language, others) for part, name in KINDS.items()}
    }


def clip_statistics(seed: int) -> dict[str, InputStatistics]:
    """Of the language model, on a stream of the synthetic world through an encoded file."""
    checkpoint = resolve(TINY)
    spec = model_spec(TINY, read_configuration(checkpoint), load_recipe(TINY))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip_of_world(path, seed)
        clip = read_clip(str(path), spec, checkpoint)
    return activation_statistics(clip, checkpoint, spec)["llm"]


def write_clip_of_world(path: Path, seed: int) -> None:
    """A stream of the synthetic world as a video file."""
    stream = make_stream(seed, THINGS, SIZE[0] / SIZE[1])
    look = look_without_photo(np.random.default_rng(seed), stream.duration)
    write_video(path, stream, SIZE, FPS, look=look)


def of_kind(
    part: str,
    found: Sequence[ProductSearch],
    language: LanguageModel,
    others: Sequence[Mapping[str, InputStatistics]],
) -> dict[str, Any]:
    """Mean held-out errors of a kind of product by rule, and how often each was chosen."""
    errors: dict[str, list[float]] = {}
    chosen: dict[str, int] = {}
    for each in found:
        if part not in each.name:
            continue
        rule = each.best.choice.rule
        chosen[rule] = chosen.get(rule, 0) + 1
        matrix = language.get_submodule(each.name.removesuffix(".weight")).weight.T
        tried = {name: candidate.choice for name, candidate in each.candidates.items()}
        for clip in others:
            for name, choice in (tried | {"chosen": tried.get(rule, DATA_FREE)}).items():
                error = product_error(matrix, clip[each.name].sample, choice, torch.float32)
                errors.setdefault(name, []).append(error)
    means = {name: float(f"{statistics.fmean(each):.4g}") for name, each in errors.items()}
    better = sum(a < b for a, b in zip(errors["chosen"], errors["data-free"], strict=True))
    return {"mean error": means, "chosen": chosen} | {
        "layers and clips": len(errors["chosen"]),
        "chosen has less error than data-free": better,
    }


if __name__ == "__main__":
    sys.exit(main())
