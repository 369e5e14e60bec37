"""What the inputs of a model's matrix products look like on a clip.

The PyTorch model of this package runs in float32, with the products that `combine` makes. Weights
stay the checkpoint's mapped files and are cast one product at a time, first those of the vision
encoder, then those of the language model. So besides the page cache a run takes the largest matrix
in float32 a few times, and the attention scores of all rows.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vicort.export.calibration_clip import MAX_TOKENS, CalibrationClip, ClipUnit
from vicort.export.qwen2_5_vl.adapter import Adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.vision import DynamicVisionEncoder, VisionEncoder
from vicort.export.qwen2_5_vl.weights import load_language, load_vision_of
from vicort.runtime.manifest import GraphName, ModelSpec
from vicort.runtime.vision_windows import grid_inputs

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 128  # that are kept of each product
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class InputStatistics:
    """Of the inputs of one matrix product, over all rows that were seen."""

    largest: Tensor  # [in] float32, max |x| of each input channel
    mean_square: Tensor  # [in] float32, mean of x^2
    sample: Tensor  # [rows,in] float32: up to SAMPLE_ROWS rows, evenly spaced


Statistics = dict[GraphName, dict[str, InputStatistics]]


def activation_statistics(
    clip: CalibrationClip,
    checkpoint: Path,
    model: ModelSpec,
    adapter: Adapter | None = None,
) -> Statistics:
    """Of graphs vision, llm and head, by the name of the product's parameter, as
    `weight_compression.compress` sees it: "layers.0.mlp.joined.weight".

    clip: read for `model`. adapter: merged into the weights. The language model makes one causal
    pass over the prompt, the visual tokens of the clip and the question; the head's rows are those
    of the question. Memory: see above. Time: 2 floating point operations for each weight and row.
    """
    seen, features = vision_statistics(clip, checkpoint, model, adapter)
    found: Statistics = {"vision": seen}
    return found | language_statistics(clip, features, checkpoint, adapter)


def vision_statistics(
    clip: CalibrationClip, checkpoint: Path, model: ModelSpec, adapter: Adapter | None = None
) -> tuple[dict[str, InputStatistics], Tensor]:
    """Of the vision encoder; and its visual tokens [C,width] float32, up to MAX_TOKENS."""
    config, began = read_configuration(checkpoint), time.perf_counter()
    vision = load_vision_of(checkpoint, config, model.fixed_size, torch.float32, adapter, True)
    combine(vision)
    inputs = InputCollector(calls=len(clip.units))
    features = []
    bar = step_bar(len(clip.units), "statistics, units")
    with inputs.watching(vision), torch.no_grad(), bar as step:
        for unit in clip.units:
            features.append(run_unit(vision, unit, model).flatten(0, 1))
            step()
    logger.info("statistics of the vision encoder took %.1f s", time.perf_counter() - began)
    return inputs.statistics(), torch.cat(features)[:MAX_TOKENS]


def run_unit(
    vision: VisionEncoder | DynamicVisionEncoder, unit: ClipUnit, model: ModelSpec
) -> Tensor:
    """The visual tokens of a unit, [1,P,width]."""
    if model.fixed_size:
        return vision(torch.from_numpy(unit.frames))
    row = model.patch * 3
    index = grid_inputs(unit.grid, model.patch, model.merge, model.window)
    frames = torch.from_numpy(unit.frames).reshape(len(unit.frames), -1, row)
    return vision(frames, *(torch.from_numpy(array) for array in index.values()))


def language_statistics(
    clip: CalibrationClip, features: Tensor, checkpoint: Path, adapter: Adapter | None = None
) -> Statistics:
    """Of the language model's graphs. features: of the clip, as `vision_statistics` gives them."""
    config, began = read_configuration(checkpoint), time.perf_counter()
    packed: dict[str, PackedWeight] = {}
    language = load_language(checkpoint, config, torch.float32, adapter, True, packed)
    combine(language, packed)
    inputs, last = InputCollector(), list[Tensor]()
    layers = [*language.layers]
    bar = step_bar(len(layers), "statistics, layers")
    with inputs.watching(language), torch.no_grad(), bar as step:
        hooks = [layer.register_forward_hook(lambda *_: step()) for layer in layers]
        # rows after the last layer, of which the model itself gives one
        hooks.append(layers[-1].register_forward_hook(lambda *call: last.append(call[-1][0])))
        run_language(language, clip, features)
        inputs.add(HEAD, language.norm(last[0][-len(clip.question) :]))
        for hook in hooks:
            hook.remove()
    logger.info("statistics of the language model took %.1f s", time.perf_counter() - began)
    found = inputs.statistics()
    head = {HEAD: found.pop(HEAD)}
    return {"llm": found, "head": head}


def run_language(language: LanguageModel, clip: CalibrationClip, features: Tensor) -> Any:
    """One causal pass over prompt, visual tokens and question, without pages."""
    positions = torch.from_numpy(clip.positions)
    before, after = (_embedded(language, tokens) for tokens in (clip.prompt, clip.question))
    rows = torch.cat([before, features, after])
    attention = language.layers[0].get_submodule("self_attn").config
    pool = torch.zeros(1, attention.layers, attention.kv_heads, 2, 1, attention.head_dim)
    where = torch.full((1, 1, 1, 1, 3), -1, dtype=torch.int32)
    table = torch.full((1, 1, 1, 1), -1, dtype=torch.int32)
    segment = torch.zeros(len(rows), dtype=torch.int32)
    until, ends = torch.full_like(segment, len(rows)), torch.full_like(segment[:1], len(rows) - 1)
    return language(rows, positions, segment, until, ends, pool, where, table)


def _embedded(language: LanguageModel, tokens: np.ndarray) -> Tensor:
    return language.embed_tokens.weight[torch.from_numpy(tokens).long()].float()


@dataclass
class _RunningSums:
    """Of the inputs of one product so far."""

    largest: Tensor
    squares: Tensor  # float64, sum of x^2
    rows: int = 0
    kept: list[Tensor] = field(default_factory=list)


class InputCollector:
    """Collects the inputs of the linear layers of a model while it runs."""

    def __init__(self, calls: int = 1, sample_rows: int = SAMPLE_ROWS):
        """calls: how often each layer will run; the sample has rows of each."""
        self._rows = sample_rows
        self._of_call = -(-sample_rows // calls)
        self._sums: dict[str, _RunningSums] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Collect what the products of a model get, by the names of their parameters."""
        hooks = [
            layer.register_forward_pre_hook(partial(self._see, f"{name}.weight"))
            for name, layer in model.named_modules()
            if isinstance(layer, Linear | JoinedLinear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.add(name, inputs[0])

    def add(self, name: str, x: Tensor) -> None:
        """x: [...,in], inputs of the product with that parameter."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        width = x.shape[1]
        sums = self._sums.setdefault(
            name, _RunningSums(torch.zeros(width), torch.zeros(width, dtype=torch.float64))
        )
        sums.largest = torch.maximum(sums.largest, x.abs().amax(0))
        sums.squares += x.square().sum(0, dtype=torch.float64)
        sums.rows += len(x)
        sums.kept.append(_evenly(x, self._of_call))

    def statistics(self) -> dict[str, InputStatistics]:
        return {
            name: InputStatistics(
                sums.largest,
                (sums.squares / sums.rows).float(),
                _evenly(torch.cat(sums.kept), self._rows),
            )
            for name, sums in self._sums.items()
        }


def _evenly(rows: Tensor, count: int) -> Tensor:
    """Up to `count` evenly spaced rows, a copy."""
    if len(rows) <= count:
        return rows.clone()
    return rows[torch.arange(count) * len(rows) // count]


@contextmanager
def step_bar(total: int, what: str) -> Iterator[Callable[[], object]]:
    """On a terminal, a progress bar. Yields a function that moves it one step."""
    shown = sys.stderr.isatty()
    with tqdm(total=total, desc=what, leave=False, disable=not shown) as bar:
        yield bar.update
