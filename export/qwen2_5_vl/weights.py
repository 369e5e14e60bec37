"""Loads the weights of a Hugging Face checkpoint into the modules of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.adapter import Adapter, LowRank
from vicort.export.qwen2_5_vl.checkpoint_quantisation import (
    IGNORED_LEAVES,
    WeightLayout,
    check_unquantised,
    read_quantisation,
)
from vicort.export.qwen2_5_vl.configuration import Configuration, read_configuration
from vicort.export.qwen2_5_vl.float8_weights import Float8Layout
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.stored_tensors import (
    FLOATS,
    CheckpointTensor,
    StoredModule,
    open_stored,
)
from vicort.export.qwen2_5_vl.tied_head import EMBEDDING, HEAD, HEAD_MODULE, has_tied_head
from vicort.export.qwen2_5_vl.vision import DynamicVisionEncoder, VisionEncoder
from vicort.export.safetensors_headers import weight_files
from vicort.export.token_control import TokenControlGraph
from vicort.runtime.errors import EngineError

Part = Literal["vision", "language"]
Model = TypeVar("Model", bound=nn.Module)

# Checkpoints before transformers 4.52 have `visual.` and `model.`, later ones may have
# `model.visual.` and `model.language_model.`.
PREFIXES: tuple[tuple[str, Part], ...] = (
    ("model.visual.", "vision"),
    ("visual.", "vision"),
    ("model.language_model.", "language"),
    ("model.", "language"),
)
CONVOLUTION = "patch_embed.proj.weight"  # the only parameter with another name and shape here


def load_models(
    folder: Path, height: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[VisionEncoder, LanguageModel, TokenControlGraph, Configuration]:
    """The three graphs of a checkpoint folder, for frames of height x width pixels, ready to be
    exported.

    Raises EngineError if a file, a key or a shape is not what config.json says, ConfigError if the
    image size is not allowed.
    """
    config = read_configuration(folder)
    return (
        load_vision(folder, config, height, width, dtype),
        load_language(folder, config, dtype),
        TokenControlGraph().eval(),
        config,
    )


def load_vision(
    folder: Path,
    config: Configuration,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
    as_stored: bool = False,
) -> VisionEncoder:
    """The vision encoder alone, for frames of height x width pixels. adapter: merged into its
    weights. as_stored: the matrices of linear layers keep the checkpoint's type, which takes half
    the memory, and are cast to `dtype` where they are used."""
    with torch.device("meta"):
        model = VisionEncoder(config.vision, config.language.width, height, width)
    return _fill(model, folder, "vision", dtype, adapter, as_stored)


def load_dynamic_vision(
    folder: Path,
    config: Configuration,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
    as_stored: bool = False,
) -> DynamicVisionEncoder:
    """As `load_vision`, for frames of any size."""
    with torch.device("meta"):
        model = DynamicVisionEncoder(config.vision, config.language.width)
    return _fill(model, folder, "vision", dtype, adapter, as_stored)


def load_vision_of(
    folder: Path,
    config: Configuration,
    fixed_size: tuple[int, int] | None,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
    as_stored: bool = False,
) -> VisionEncoder | DynamicVisionEncoder:
    """As `load_vision`. fixed_size: height and width in pixels; None = any."""
    if fixed_size is None:
        return load_dynamic_vision(folder, config, dtype, adapter, as_stored)
    return load_vision(folder, config, *fixed_size, dtype, adapter, as_stored)


def load_language(
    folder: Path,
    config: Configuration,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
    as_stored: bool = False,
    packed: dict[str, PackedWeight] | None = None,
) -> LanguageModel:
    """The language model alone. adapter, as_stored: as of `load_vision`. packed: gets the integers
    of each parameter, by its name, that is exactly what a quantised checkpoint stores as integers.

    As in transformers, an output head that config.json ties is separate if the checkpoint has it
    with other values.
    """
    tied = has_tied_head(folder, config)
    with torch.device("meta"):
        model = LanguageModel(replace(config.language, tied=tied))
    return _fill(model, folder, "language", dtype, adapter, as_stored, packed)


def _fill(
    model: Model,
    folder: Path,
    part: Part,
    dtype: torch.dtype,
    adapter: Adapter | None,
    as_stored: bool,
    packed: dict[str, PackedWeight] | None = None,
) -> Model:
    """Load the checkpoint's parameters, with the updates of an adapter, into a model on the meta
    device, one at a time."""
    # a tied head is not a separate parameter
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    kept = _matrices(model) if as_stored else set()
    added = _added(adapter, part, wanted) if adapter else {}
    found: dict[str, Tensor] = {}
    for name, weight in _weights(folder, part, wanted):
        tensor = weight.dequantised() if isinstance(weight, PackedWeight) else weight
        if isinstance(weight, PackedWeight) and packed is not None and name not in added:
            packed[name] = weight
            if name in kept:
                tensor = tensor.to(torch.bfloat16)  # the integers are used instead of it
        tensor = added[name].added_to(tensor) if name in added else tensor
        found[name] = tensor if name in kept else tensor.to(dtype)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise EngineError(
            f"{folder} has no weight {missing[0]!r} ({len(missing)} missing) of the {part} "
            "model: download the checkpoint again"
        )
    for name, tensor in found.items():
        _replace(model, name, tensor)
    return model.eval()


def _matrices(model: nn.Module) -> set[str]:
    """The names of the weights of linear layers, and of the token embedding."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = (each for each in model.modules() if isinstance(each, Linear | nn.Embedding))
    return {names[id(layer.weight)] for layer in layers}


def _weights(
    folder: Path, part: Part, wanted: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """Each parameter that the checkpoint has of a model, and its name."""
    stored = _stored(folder, part)
    if HEAD not in wanted:
        stored.pop(HEAD, None)
    layout = read_quantisation(folder)
    if layout:
        for module, leaves in _quantised(stored, layout).items():
            name = f"{module}.weight"
            tensors = {leaf: stored.pop(f"{module}.{leaf}") for leaf in leaves}
            first = next(iter(tensors.values()))
            if len(wanted.get(name, ())) != 2:
                raise _unknown(first)
            key = first.key.rpartition(".")[0]
            yield name, layout.read(StoredModule(key, tensors), (*wanted[name],))
            _drop_zero_bias(stored, f"{module}.bias", wanted)
    else:
        check_unquantised(folder, stored)
    for name, tensor in stored.items():
        if layout is None or name.rpartition(".")[2] not in IGNORED_LEAVES:
            yield name, _tensor(tensor, name, wanted)


def integer_parameters(folder: Path, adapter: Adapter | None = None) -> set[str]:
    """The parameters of the language model that `load_language` gives in `packed`, from names
    alone."""
    layout = read_quantisation(folder)
    if layout is None or isinstance(layout, Float8Layout):
        return set()
    modules = _quantised(_stored(folder, "language"), layout)
    changed = {_place(key, folder)[1] for key in adapter.weights} if adapter else set()
    return {f"{module}.weight" for module in modules} - changed


def _quantised(
    stored: Mapping[str, CheckpointTensor], layout: WeightLayout
) -> dict[str, list[str]]:
    """The modules that have something which only quantised ones have, and their tensors that are of
    the layout. A module that was left as it is has `weight` alone, as floating point numbers."""
    modules: dict[str, list[str]] = {}
    quantised = set()
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        if leaf in layout.leaves:
            modules.setdefault(module, []).append(leaf)
            if leaf != "weight" or tensor.dtype not in FLOATS:
                quantised.add(module)
    return {module: leaves for module, leaves in modules.items() if module in quantised}


def _drop_zero_bias(
    stored: dict[str, CheckpointTensor], name: str, wanted: Mapping[str, torch.Size]
) -> None:
    """Some tools write a bias of zeros to layers that have none."""
    if name in stored and name not in wanted and not stored[name].read().any():
        del stored[name]


def _added(adapter: Adapter, part: Part, wanted: dict[str, torch.Size]) -> dict[str, LowRank]:
    """The adapter's updates of one model's parameters, by parameter name."""
    added = {}
    for key, low_rank in adapter.weights.items():
        owner, name = _place(key, adapter.folder)
        if owner != part:
            continue
        if wanted.get(name) != low_rank.shape:
            has = (
                f"of shape {list(wanted[name])}"
                if name in wanted
                else "no weight of that name, or a tied one,"
            )
            raise EngineError(
                f"{adapter.folder} adds {list(low_rank.shape)} to {key!r}, the checkpoint has "
                f"{has}: name the base that it was trained on"
            )
        added[name] = low_rank
    return added


def stores_bfloat16_embedding(folder: Path, adapter: Adapter | None = None) -> bool:
    """Whether the token embedding is bfloat16 in the checkpoint, and no adapter changes it."""
    stored = _stored(folder, "language").get(EMBEDDING)
    changed = adapter is not None and any(
        _place(key, adapter.folder)[1] == EMBEDDING for key in adapter.weights
    )
    return stored is not None and stored.dtype == "BF16" and not changed


def _stored(folder: Path, part: Part) -> dict[str, CheckpointTensor]:
    """What the checkpoint has of a model, by the names of its parameters."""
    stored = {}
    for path in weight_files(folder):
        for key, tensor in open_stored(path).items():
            owner, name = _place(key, path)
            if owner == part:
                stored[name] = tensor
    return stored


def _place(key: str, path: Path) -> tuple[Part, str]:
    """The model that a checkpoint's key belongs to, and the parameter's name in it."""
    if key.startswith(f"{HEAD_MODULE}."):
        return "language", key
    for prefix, part in PREFIXES:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            return part, "patch_embed.weight" if name == CONVOLUTION else name
    raise EngineError(
        f"{path} has a weight {key!r} that Qwen2.5-VL does not have: name an unmodified checkpoint"
    )


def _tensor(stored: CheckpointTensor, name: str, wanted: Mapping[str, torch.Size]) -> Tensor:
    if name not in wanted:
        raise _unknown(stored)
    if stored.dtype not in FLOATS:
        raise EngineError(
            f"{stored.path}: {stored.key!r} is stored as {stored.dtype}, allowed are "
            f"{', '.join(FLOATS)}: name an unquantised checkpoint, or one whose config.json has a "
            "quantization_config"
        )
    tensor = stored.read()
    if stored.key.endswith(CONVOLUTION) and tensor.ndim == 5:
        # [width, channel, frame, y, x] -> pixels in the order of VisionEncoder.patches
        tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1)
    if tensor.shape != wanted[name]:
        raise EngineError(
            f"{stored.path}: {stored.key!r} has shape {stored.shape}, config.json implies "
            f"{list(wanted[name])}: the two are not of one checkpoint"
        )
    return tensor


def _unknown(stored: CheckpointTensor) -> EngineError:
    return EngineError(
        f"{stored.path} has a weight {stored.key!r} that does not fit config.json: name an "
        "unmodified checkpoint"
    )


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter wherever the model uses it, so that a tied head stays tied."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    old = model.get_parameter(name)
    for module in model.modules():
        for leaf, held in list(module.named_parameters(recurse=False)):
            if held is old:
                setattr(module, leaf, parameter)
