"""int4 weights that a clip chooses: of the rules of `ProductChoice`, each product takes the one
with the least error of its outputs on a sample of its inputs.

Weighted: of the scales of a group, the one with the least sum of E[x^2] (w - w')^2, which is the
error of the output where inputs do not correlate. AWQ (Lin et al. 2023, arXiv:2306.00978): inputs
are first divided by s = m^alpha, with m the magnitude of a channel, and the matrix is multiplied by
s, so that the weights of large inputs round less; the weighted rule rounds the result. The paper's
m is the mean of |x|, here it is the root mean square. The division moves into the norm before q, k
and v and before gate and up, or into the columns of up before down. Nothing before the attention's
output product could take it: query heads share the values.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vicort.export.activation_statistics import (
    InputStatistics,
    language_statistics,
    step_bar,
    vision_statistics,
)
from vicort.export.calibration_clip import MAX_TOKENS, CalibrationClip
from vicort.export.product_choice import DATA_FREE, ProductChoice, Rule, folded_norm
from vicort.export.qwen2_5_vl.adapter import Adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel, Layer
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.weights import integer_parameters, load_language
from vicort.export.weight_compression import GROUP, HEADS, SCALE_TYPES, Scheme, quantise_int4
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Manifest

logger = logging.getLogger(__name__)

ALPHAS = tuple(step / 10 for step in range(1, 11))  # 0 is the weighted rule
SEARCHED_COLUMNS = 512  # that alpha is searched with: columns do not affect one another
# of the mean magnitude: a channel that the clip hardly uses may be used by others
LEAST = 0.01

Folds = Callable[[Tensor], Tensor]  # [in] wanted factors -> those that can be folded exactly


@dataclass(frozen=True)
class TriedChoice:
    """One rule for a product, and what it costs on the sample."""

    choice: ProductChoice
    error: float  # Frobenius norm of the difference over that of the exact product


@dataclass(frozen=True)
class ProductSearch:
    """The candidates of one product."""

    name: str  # of its parameter
    candidates: Mapping[Rule, TriedChoice]

    @property
    def best(self) -> TriedChoice:
        """The first of those with the least error: data-free, if nothing is better."""
        return min(self.candidates.values(), key=lambda each: each.error)


def calibrate(
    clip: CalibrationClip,
    checkpoint: Path,
    manifest: Manifest,
    say: Callable[[str], None],
    adapter: Adapter | None = None,
) -> dict[str, ProductChoice]:
    """How the int4 products of a set's language model are quantised, by parameter name; those that
    a quantised checkpoint brings as integers are left out."""
    scheme = Scheme.of(manifest, "llm")
    if scheme is None or not scheme.int4:
        return {}
    seen = min(clip.tokens, MAX_TOKENS)
    say(f"calibrating int4 weights with {clip.name}: {len(clip.units)} units, {seen} visual tokens")
    began = time.perf_counter()
    _, features = vision_statistics(clip, checkpoint, manifest.model, adapter)
    statistics = language_statistics(clip, features, checkpoint, adapter)["llm"]
    packed: dict[str, PackedWeight] = {}
    config = read_configuration(checkpoint)
    language = load_language(checkpoint, config, torch.float32, adapter, True, packed)
    combine(language, packed)
    found: list[ProductSearch] = []
    with step_bar(len(language.layers), "calibration, layers") as step, torch.no_grad():
        for index, layer in enumerate(language.layers):
            found += search_layer(layer, f"layers.{index}", statistics, scheme, packed.keys())
            step()
    say(_summary(found))
    logger.info("calibration took %.1f s", time.perf_counter() - began)
    return choices_of(found)


def check_calibration(checkpoint: Path, adapter: Adapter | None) -> None:
    """Raises ConfigError if no int4 product is left to a clip, because a quantised checkpoint
    brings the integers of all."""
    brought = integer_parameters(checkpoint, adapter)
    if not brought:
        return
    with torch.device("meta"):
        language = LanguageModel(read_configuration(checkpoint).language)
    open_products = {
        f"{name}.weight"
        for name, layer in language.named_modules()
        if isinstance(layer, Linear) and layer.in_features % GROUP == 0
    } - {*HEADS}
    if open_products <= brought:
        raise ConfigError(
            f"--calibration with {checkpoint}: it is quantised already, and its own integers are "
            "kept: leave --calibration out, or name the unquantised checkpoint"
        )


def choices_of(found: Collection[ProductSearch]) -> dict[str, ProductChoice]:
    """The best of each product; what down's inputs are divided by is folded into up's columns."""
    chosen = {each.name: each.best.choice for each in found}
    for name, choice in list(chosen.items()):
        if name.endswith(".mlp.down_proj.weight") and choice.inputs is not None:
            before = name.replace("down_proj", "joined")
            gate = torch.ones_like(choice.inputs)
            chosen[before] = replace(chosen[before], outputs=torch.cat([gate, choice.inputs]))
    return chosen


def search_layer(
    layer: Layer,
    prefix: str,
    statistics: Mapping[str, InputStatistics],
    scheme: Scheme,
    packed: Collection[str],
) -> Iterator[ProductSearch]:
    """Of a combined layer, its products that become int4 and are not packed already."""
    products = {
        f"{prefix}.{name}.weight": product
        for name, product in layer.named_modules()
        if isinstance(product, Linear | JoinedLinear)
    }
    searched = {
        name: product
        for name, product in products.items()
        if name not in packed and scheme.bits(len(statistics[name].largest), name) == 4
    }
    folds = folds_of(layer, prefix, scheme)
    if f"{prefix}.mlp.joined.weight" not in searched:  # whose columns cannot be divided
        folds.pop(f"{prefix}.mlp.down_proj.weight", None)
    kind = SCALE_TYPES[scheme.type]
    for name, product in searched.items():
        yield search(name, product.weight.T, statistics[name], kind, folds.get(name))


def folds_of(layer: Layer, prefix: str, scheme: Scheme) -> dict[str, Folds]:
    """By product, which factors of its inputs can be folded exactly into what is before it."""
    kind = SCALE_TYPES[scheme.type]
    norms = {
        f"{prefix}.self_attn.joined.weight": layer.input_layernorm,
        f"{prefix}.mlp.joined.weight": layer.post_attention_layernorm,
    }
    into_norms: dict[str, Folds] = {
        name: partial(_foldable, norm.weight.to(kind)) for name, norm in norms.items()
    }
    return into_norms | {f"{prefix}.mlp.down_proj.weight": lambda factors: factors}


def _foldable(weight: Tensor, factors: Tensor) -> Tensor:
    """The factors nearest to those wanted by which a norm's weight can be divided exactly in its
    type."""
    divided = folded_norm(weight, factors).float()
    usable = (divided != 0) & divided.isfinite()
    return torch.where(usable, weight.float() / torch.where(usable, divided, 1), 1)


def search(
    name: str,
    matrix: Tensor,
    statistics: InputStatistics,
    scale_type: torch.dtype,
    fold: Folds | None = None,
) -> ProductSearch:
    """Try the rules for a matrix [in,out]. fold: None = its inputs cannot be divided."""
    weighted = ProductChoice(mean_square=_magnitude(statistics).square())
    choices: dict[Rule, ProductChoice] = {"data-free": DATA_FREE, "weighted": weighted}
    if fold:
        columns = matrix[:, :: max(matrix.shape[1] // SEARCHED_COLUMNS, 1)]
        tried = [awq_choice(statistics, alpha, fold) for alpha in ALPHAS]
        errors = [product_error(columns, statistics.sample, each, scale_type) for each in tried]
        choices["awq"] = tried[errors.index(min(errors))]
    return ProductSearch(
        name,
        {
            rule: TriedChoice(choice, product_error(matrix, statistics.sample, choice, scale_type))
            for rule, choice in choices.items()
        },
    )


def awq_choice(statistics: InputStatistics, alpha: float, fold: Folds) -> ProductChoice:
    magnitude = _magnitude(statistics)
    factors = magnitude.pow(alpha)
    factors = fold(factors / (factors.max() * factors.min()).sqrt())
    return ProductChoice((magnitude / factors).square(), factors)


def _magnitude(statistics: InputStatistics) -> Tensor:
    """[in], the root mean square of each channel."""
    magnitude = statistics.mean_square.sqrt()
    return magnitude.clamp(min=max(LEAST * float(magnitude.mean()), 1e-12))


def product_error(
    matrix: Tensor, sample: Tensor, choice: ProductChoice, scale_type: torch.dtype
) -> float:
    """Relative error of the product on the sample, with the integers of a choice."""
    integers = quantise_int4(choice.folded(matrix), scale_type, choice.mean_square)
    exact = sample @ matrix.float()
    inputs = sample if choice.inputs is None else sample / choice.inputs
    difference = (inputs @ integers.dequantised() - exact).norm()
    return float(difference / exact.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _summary(found: Collection[ProductSearch]) -> str:
    if not found:
        return "no int4 product is left to the clip: all are integers of the checkpoint"
    rules = Counter(each.best.choice.rule for each in found)
    counts = ", ".join(f"{count} {rule}" for rule, count in rules.items())
    before, after = (
        100 * sum(errors) / len(found)
        for errors in (
            [each.candidates["data-free"].error for each in found],
            [each.best.error for each in found],
        )
    )
    return (
        f"chose for {len(found)} int4 products: {counts}; their mean error on a sample of the clip "
        f"is {after:.2f} %, data-free {before:.2f} %"
    )
