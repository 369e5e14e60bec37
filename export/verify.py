"""Compares engines with their PyTorch model, and measures their speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vicort.export.eight_bit_inputs import round_inputs
from vicort.export.graphs import TORCH_TYPES
from vicort.export.product_choice import Choices, fold_norms, read_choices
from vicort.export.qwen2_5_vl.adapter import Adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel, OutputHead
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.pruned_vision import pruned
from vicort.export.qwen2_5_vl.weights import load_language, load_vision_of
from vicort.export.token_control import TokenControlGraph
from vicort.export.weight_compression import Scheme, dequantise_parameters
from vicort.runtime.core import UNIT_FRAMES, TokenMode
from vicort.runtime.devices.int8_vectors import quantised
from vicort.runtime.engines.engine_run import Arrays
from vicort.runtime.engines.engine_set import EngineSet, feature_dtype
from vicort.runtime.engines.reference import (
    REFERENCE_FILE,
    Difference,
    ReferenceRun,
    differences,
    write_runs,
)
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import KV, GraphName, Manifest, ModelSpec
from vicort.runtime.vision_windows import grid_inputs, pruned_grid_inputs

# maximum difference relative to the maximum value
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# onnxruntime multiplies quantised weights with activations that it rounds to 8 bits
ROUNDED_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Inputs:
    """How large the random inputs are that engines are compared on."""

    units: int
    prefill_pages: int
    decode_pages: int
    all_grids: bool  # where sizes follow the source, those of a square, a wide and a high frame


WHOLE = Inputs(units=2, prefill_pages=5, decode_pages=9, all_grids=True)
STORED = Inputs(units=1, prefill_pages=2, decode_pages=2, all_grids=False)


def compare(
    folder: Path, checkpoint: Path, seed: int = 0, adapter: Adapter | None = None
) -> Iterator[Difference]:
    """Run an engine set and the PyTorch model of its precision on the same random input: vision,
    token control, a prefill over pages and a decode step."""
    with EngineSet.open(folder) as engines:
        for run in model_runs(folder, engines.manifest, checkpoint, WHOLE, seed, adapter):
            yield from differences(engines, run)


def write_reference(
    folder: Path, manifest: Manifest, checkpoint: Path, adapter: Adapter | None = None
) -> None:
    """Write what the model computes for small random inputs into an engine set, for machines that
    have neither PyTorch nor the checkpoint. The set's other files are there already."""
    write_runs(
        model_runs(folder, manifest, checkpoint, STORED, adapter=adapter), folder / REFERENCE_FILE
    )


def model_runs(
    folder: Path,
    manifest: Manifest,
    checkpoint: Path,
    sizes: Inputs,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Iterator[ReferenceRun]:
    """What the PyTorch model of a set's precision computes for random input. folder: of the set,
    whose calibration is read."""
    random = np.random.default_rng(seed)
    model, dtype = manifest.model, TORCH_TYPES[manifest.precision]
    floats = feature_dtype(manifest)
    config = read_configuration(checkpoint)
    scheme, choices = Scheme.of(manifest, "vision"), read_choices(folder)
    units = min(model.chunk_frames // UNIT_FRAMES, sizes.units)
    vision = load_vision_of(
        checkpoint, config, model.fixed_size, dtype, adapter, scheme is not None
    )
    if scheme:
        combine(vision)
        as_engine_multiplies(vision, replace(scheme, choices=choices))
    run = partial(_model_run, manifest)
    for grid in grids(model)[: None if sizes.all_grids else 1]:
        shape = "" if model.fixed_size else f" {grid.rows}x{grid.columns}"
        inputs = frame_inputs(model, units, random, grid)
        yield run(f"vision{shape}", "vision", vision, inputs)
        if "vision_pruned" in manifest.graphs:
            inputs = pruned_inputs(model, units, random, grid)
            yield run(f"pruned{shape}", "vision_pruned", pruned(vision), inputs)
    inputs = feature_inputs(model, floats, random)
    yield run("tokens", "tokens", TokenControlGraph(), inputs)
    inputs = inputs | {"mode": np.array([TokenMode.FROM_BEFORE], np.int32)}
    yield run("tokens since", "tokens", TokenControlGraph(), inputs)
    del vision
    language = _language(checkpoint, manifest, adapter, choices)
    yield run("head", "head", OutputHead(language), head_inputs(model, floats, random))
    for name, rows, pages in (
        ("llm prefill", 13, sizes.prefill_pages),
        ("llm decode", 1, sizes.decode_pages),
    ):
        inputs = language_inputs(model, floats, rows, pages, random, manifest.kv)
        real = inputs["pos"][:, 0] >= 0
        yield run(name, "llm", language, inputs, {"k": real, "v": real})


def _model_run(
    manifest: Manifest,
    name: str,
    graph: GraphName,
    module: nn.Module,
    inputs: Arrays,
    rows: dict[str, np.ndarray] | None = None,
) -> ReferenceRun:
    """rows: output name -> the rows C of [L,C,…] that are compared."""
    signature, allowed = manifest.graphs[graph], _tolerance(manifest, graph)
    with torch.no_grad():
        found = module(*(_to_torch(inputs[spec.name]) for spec in signature.inputs))
    found = (found,) if isinstance(found, Tensor) else found
    wanted, tolerances = dict[str, np.ndarray](), dict[str, float]()
    for spec, tensor in zip(signature.outputs, found, strict=True):
        whole = spec.dtype == "int32"
        wanted[spec.name] = tensor.numpy() if whole else tensor.float().numpy()
        tolerances[spec.name] = 0.0 if whole else allowed
    return ReferenceRun(name, graph, inputs, wanted, rows or {}, tolerances)


def _tolerance(manifest: Manifest, graph: GraphName) -> float:
    rounded = Scheme.of(manifest, graph) and manifest.backend == "onnxruntime"
    return ROUNDED_TOLERANCE if rounded else TOLERANCE[manifest.precision]


def _language(
    checkpoint: Path, manifest: Manifest, adapter: Adapter | None, choices: Choices | None = None
) -> LanguageModel:
    """The language model with the weights that its engine multiplies with. choices: of a calibrated
    set."""
    scheme, packed = Scheme.of(manifest, "llm"), dict[str, PackedWeight]()
    language = load_language(
        checkpoint,
        read_configuration(checkpoint),
        TORCH_TYPES[manifest.precision],
        adapter,
        as_stored=scheme is not None,
        packed=packed if scheme else None,
    )
    if scheme:
        combine(language, packed)
        choices = choices or {}
        as_engine_multiplies(language, replace(scheme, choices=choices), packed)
        fold_norms(language, choices)
    return language


def as_engine_multiplies(
    model: nn.Module, scheme: Scheme, packed: dict[str, PackedWeight] | None = None
) -> None:
    """Round in place what an engine's products take. packed: integers of a quantised checkpoint."""
    dequantise_parameters(model, scheme, scheme.ready(packed or {}))
    if scheme.both:
        round_inputs(model, scheme.choices, scheme.both)


def language_inputs(
    model: ModelSpec,
    dtype: np.dtype,
    rows: int,
    pages: int,
    random: np.random.Generator,
    kv: KV = "float",
) -> Arrays:
    """Random input of the language graph, with padding rows, empty cells and a slot of -1; where
    there are enough rows, some are a branch that later rows do not see. kv: what pages hold."""
    cells = (pages, model.layers, model.kv_heads, 2, model.page_tokens, model.head_dim)
    pos = random.integers(0, model.max_position, (rows, 3))
    where = random.integers(0, model.max_position, (pages, 1, 1, model.page_tokens, 3))
    pos[2::5] = -1
    where[random.random(where.shape[:-1]) < 0.3] = -1
    table = random.permutation(pages)
    table[-1] = -1
    until = np.full(rows, rows, np.int32)
    until[rows // 4 : rows // 2] = rows // 2
    real = np.flatnonzero(pos[:, 0] >= 0)
    features = random.standard_normal((rows, model.width), np.float32).astype(dtype)
    numbers = random.standard_normal(cells, np.float32)
    cached = (
        dict(zip(("pool", "scales"), quantised(numbers), strict=True))
        if kv == "int8"
        else {"pool": numbers.astype(dtype)}
    )
    return {
        "features": features,
        "pos": pos.astype(np.int32),
        "segment": np.zeros(rows, np.int32),
        "until": until,
        "ends": real[sorted({len(real) // 2, len(real) - 1})].astype(np.int32),
        "where": where.astype(np.int32),
        "table": table[None, None, None].astype(np.int32),
        **cached,
    }


def head_inputs(model: ModelSpec, dtype: np.dtype, random: np.random.Generator) -> Arrays:
    """Random input of the output head's graph, of three rows."""
    return {"hidden": random.standard_normal((3, model.width), np.float32).astype(dtype)}


def grids(model: ModelSpec) -> list[Grid]:
    """The fixed grid; where sizes follow the source, those of a square, a wide and a high one."""
    if model.fixed_grid:
        return [model.fixed_grid]
    return [model.grid(*size) for size in ((1080, 1080), (1080, 1920), (1920, 864))]


def frame_inputs(
    model: ModelSpec, units: int, random: np.random.Generator, grid: Grid | None = None
) -> Arrays:
    """Random input of the vision graph. grid: None = of square frames, or the fixed one."""
    grid = grid or grids(model)[0]
    return _frames(model, units, random, grid) | _index_inputs(model, grid, grid_inputs)


def pruned_inputs(
    model: ModelSpec, units: int, random: np.random.Generator, grid: Grid | None = None
) -> Arrays:
    """Random input of the pruned graph: half of each unit's tokens, and fewer of the last
    unit's."""
    grid = grid or grids(model)[0]
    groups = -(-grid.tokens // 2)
    kept = np.array(
        [np.sort(random.permutation(grid.tokens)[:groups]) for _ in range(units)], np.int32
    )
    kept[-1, groups // 2 :] = -1
    frames = _frames(model, units, random, grid)
    return frames | {"kept": kept} | _index_inputs(model, grid, pruned_grid_inputs)


def _frames(model: ModelSpec, units: int, random: np.random.Generator, grid: Grid) -> Arrays:
    height, width = grid.pixels(model.token_pixels)
    shape: tuple[int, ...] = (UNIT_FRAMES * units, height, width, 3)
    if not model.fixed_size:
        row = model.patch * 3
        shape = (UNIT_FRAMES * units, height * width * 3 // row, row)
    return {"frames": random.integers(0, 256, shape, np.uint8)}


def _index_inputs(model: ModelSpec, grid: Grid, inputs: Callable[..., Arrays]) -> Arrays:
    if model.fixed_size:
        return {}
    return inputs(grid, model.patch, model.merge, model.window)


def feature_inputs(model: ModelSpec, dtype: np.dtype, random: np.random.Generator) -> Arrays:
    """Units with some tokens similar to the previous unit's, and limits that keep a few."""
    features = random.standard_normal(
        (min(model.chunk_frames // UNIT_FRAMES, 3), model.unit_tokens, model.width), np.float32
    )
    features[1:, ::2] += 3 * features[:1, ::2]
    bounds = {
        "threshold": np.array([0.2], np.float32),
        "positions": np.array([model.unit_tokens // 3], np.int32),
        "before": np.roll(features[0], 1, axis=0).astype(dtype),
        "mode": np.array([TokenMode.WITHIN_CHUNK], np.int32),
    }
    return {"features": features.astype(dtype), **bounds}


def _to_torch(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
