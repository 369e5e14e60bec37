"""What a clip says about the inputs of TensorRT's int8 and fp8 products: how large they are, and
for int8 by what the channels of an input are divided first.

A product has one scale for all channels of its input, so a few large channels leave few of the 255
steps of int8 to the others. SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) divides the channels
of an input by s = max|x|^alpha / max|w|^(1-alpha) and multiplies the rows of the matrix by it. The
divisions move into what is before the product, as those of AWQ do (calibration.py). fp8 has steps
in proportion to its numbers, and is not smoothed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vicort.export.activation_statistics import (
    InputStatistics,
    Statistics,
    activation_statistics,
    step_bar,
)
from vicort.export.calibration import (
    SEARCHED_COLUMNS,
    Folds,
    ProductSearch,
    TriedChoice,
    choices_of,
    folds_of,
)
from vicort.export.calibration_clip import CalibrationClip
from vicort.export.eight_bit_inputs import EightBit, rounded, scale_of
from vicort.export.product_choice import ProductChoice, Rule
from vicort.export.qwen2_5_vl.adapter import Adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import Layer
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.weights import load_language
from vicort.export.weight_compression import SCALE_TYPES, Scheme, quantise_eight
from vicort.runtime.manifest import Manifest

logger = logging.getLogger(__name__)

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # the paper takes 0.5, and more for larger outliers
LEAST = 1e-5  # magnitude of a channel or a row, where it is zero


def calibrate_inputs(
    clip: CalibrationClip,
    checkpoint: Path,
    manifest: Manifest,
    say: Callable[[str], None],
    adapter: Adapter | None = None,
) -> dict[str, ProductChoice]:
    """The inputs of all products of a set's vision encoder, language model and output head, by the
    names of their weights."""
    scheme = Scheme.of(manifest, "llm")
    if scheme is None or scheme.both is None:
        return {}
    say(f"calibrating inputs of {scheme.both} products with {clip.name}: {len(clip.units)} units")
    began = time.perf_counter()
    statistics = activation_statistics(clip, checkpoint, manifest.model, adapter)
    choices = {
        name: ProductChoice(largest=each.largest.max())
        for graph in statistics.values()
        for name, each in graph.items()
    }
    if scheme.both == "int8":
        found = smoothed(statistics, checkpoint, scheme, adapter)
        choices |= choices_of(found)
        say(_summary(found))
    logger.info("calibration took %.1f s", time.perf_counter() - began)
    return choices


def smoothed(
    statistics: Statistics, checkpoint: Path, scheme: Scheme, adapter: Adapter | None
) -> list[ProductSearch]:
    """The candidates of the language model's products whose inputs can be divided."""
    packed: dict[str, PackedWeight] = {}
    config = read_configuration(checkpoint)
    language = load_language(checkpoint, config, torch.float32, adapter, True, packed)
    combine(language, packed)
    found: list[ProductSearch] = []
    with step_bar(len(language.layers), "calibration, layers") as step, torch.no_grad():
        for index, layer in enumerate(language.layers):
            found += _search_layer(layer, f"layers.{index}", statistics["llm"], scheme)
            step()
    return found


def _search_layer(
    layer: Layer, prefix: str, statistics: Mapping[str, InputStatistics], scheme: Scheme
) -> list[ProductSearch]:
    products = {
        f"{prefix}.{name}.weight": product
        for name, product in layer.named_modules()
        if isinstance(product, Linear | JoinedLinear)
    }
    folds = folds_of(layer, prefix, scheme)
    if f"{prefix}.mlp.joined.weight" not in products:  # whose columns cannot be divided
        folds.pop(f"{prefix}.mlp.down_proj.weight", None)
    return [
        search_inputs(name, products[name].weight.T, statistics[name], scheme, fold)
        for name, fold in folds.items()
        if name in products
    ]


def search_inputs(
    name: str, matrix: Tensor, statistics: InputStatistics, scheme: Scheme, fold: Folds
) -> ProductSearch:
    """Try divisions of the inputs of a matrix [in,out]."""
    columns = matrix[:, :: max(matrix.shape[1] // SEARCHED_COLUMNS, 1)]
    rows = matrix.abs().amax(1).float()
    choices = [smooth_choice(statistics, rows, alpha, fold) for alpha in ALPHAS]
    errors = [_error(columns, statistics.sample, each, scheme) for each in choices]
    plain = ProductChoice(largest=statistics.largest.max())
    tried: dict[Rule, ProductChoice] = {
        "data-free": plain,
        "smooth": choices[errors.index(min(errors))],
    }
    return ProductSearch(
        name,
        {
            rule: TriedChoice(choice, _error(matrix, statistics.sample, choice, scheme))
            for rule, choice in tried.items()
        },
    )


def smooth_choice(
    statistics: InputStatistics, rows: Tensor, alpha: float, fold: Folds
) -> ProductChoice:
    """rows: [in], max|w| of each row of the matrix."""
    largest = statistics.largest.clamp(min=LEAST)
    factors = largest.pow(alpha) / rows.clamp(min=LEAST).pow(1 - alpha)
    factors = fold(factors / (factors.max() * factors.min()).sqrt())
    return ProductChoice(inputs=factors, largest=(statistics.largest / factors).max())


def _error(matrix: Tensor, sample: Tensor, choice: ProductChoice, scheme: Scheme) -> float:
    """Relative error of the product on the sample, both sides rounded."""
    kind: EightBit = scheme.both or "int8"
    weights = quantise_eight(kind, choice.folded(matrix), SCALE_TYPES[scheme.type]).dequantised()
    inputs = sample if choice.inputs is None else sample / choice.inputs
    scale = scale_of({"": choice}, "", kind)
    exact = sample @ matrix.float()
    difference = (rounded(inputs, scale, kind) @ weights - exact).norm()
    return float(difference / exact.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _summary(found: list[ProductSearch]) -> str:
    smooth = sum(each.best.choice.inputs is not None for each in found)
    before, after = (
        100 * sum(errors) / len(found)
        for errors in (
            [each.candidates["data-free"].error for each in found],
            [each.best.error for each in found],
        )
    )
    return (
        f"smoothed the inputs of {smooth} of {len(found)} products whose inputs can be divided; "
        f"their mean error on a sample of the clip is {after:.2f} %, without {before:.2f} %"
    )
