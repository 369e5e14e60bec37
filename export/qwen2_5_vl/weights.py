"""Loads the weights of a Hugging Face checkpoint into the modules of this package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.adapter import Adapter, LowRank
from vicort.export.qwen2_5_vl.configuration import Configuration, read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.vision import DynamicVisionEncoder, VisionEncoder
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
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
CONVOLUTION = "patch_embed.proj.weight"  # the only parameter with another name and shape here
STORED_TYPES = ("F32", "F16", "BF16")


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
) -> VisionEncoder:
    """The vision encoder alone, for frames of height x width pixels. adapter: merged into its
    weights."""
    with torch.device("meta"):
        model = VisionEncoder(config.vision, config.language.width, height, width)
    return _fill(model, folder, "vision", dtype, adapter)


def load_dynamic_vision(
    folder: Path,
    config: Configuration,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
) -> DynamicVisionEncoder:
    """As `load_vision`, for frames of any size."""
    with torch.device("meta"):
        model = DynamicVisionEncoder(config.vision, config.language.width)
    return _fill(model, folder, "vision", dtype, adapter)


def load_vision_of(
    folder: Path,
    config: Configuration,
    fixed_size: tuple[int, int] | None,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
) -> VisionEncoder | DynamicVisionEncoder:
    """As `load_vision`. fixed_size: height and width in pixels; None = any."""
    if fixed_size is None:
        return load_dynamic_vision(folder, config, dtype, adapter)
    return load_vision(folder, config, *fixed_size, dtype, adapter)


def load_language(
    folder: Path,
    config: Configuration,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter | None = None,
) -> LanguageModel:
    """The language model alone. adapter: merged into its weights.

    As in transformers, an output head that config.json ties is separate if the checkpoint has it
    with other values.
    """
    tied = config.language.tied and not _has_own_head(folder)
    with torch.device("meta"):
        model = LanguageModel(replace(config.language, tied=tied))
    return _fill(model, folder, "language", dtype, adapter)


def _fill(
    model: Model, folder: Path, part: Part, dtype: torch.dtype, adapter: Adapter | None
) -> Model:
    """Load the checkpoint's parameters, with the updates of an adapter, into a model on the meta
    device, one tensor at a time."""
    # a tied head is not a separate parameter
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    added = _added(adapter, part, wanted) if adapter else {}
    found: dict[str, Tensor] = {}
    for path in _files(folder):
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 (the file cannot be iterated)
                owner, name = _place(key, path)
                if owner != part or (name == HEAD and HEAD not in wanted):
                    continue
                tensor = _tensor(file, key, path, name, wanted)
                found[name] = (added[name].added_to(tensor) if name in added else tensor).to(dtype)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise EngineError(
            f"{folder} has no weight {missing[0]!r} ({len(missing)} missing) of the {part} "
            "model: download the checkpoint again"
        )
    for name, tensor in found.items():
        _replace(model, name, tensor)
    return model.eval()


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


def _has_own_head(folder: Path) -> bool:
    """Whether the checkpoint has an output head that differs from the token embedding."""
    held: dict[str, Tensor] = {}
    for path in _files(folder):
        with _opened(path) as file:
            names = {_place(key, path)[1]: key for key in file.keys()}  # noqa: SIM118 (the file cannot be iterated)
            held |= {
                name: file.get_tensor(names[name]) for name in (HEAD, EMBEDDING) if name in names
            }
    return HEAD in held and EMBEDDING in held and not torch.equal(held[HEAD], held[EMBEDDING])


def _place(key: str, path: Path) -> tuple[Part, str]:
    """The model that a checkpoint's key belongs to, and the parameter's name in it."""
    if key == HEAD:
        return "language", key
    for prefix, part in PREFIXES:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            return part, "patch_embed.weight" if name == CONVOLUTION else name
    raise EngineError(
        f"{path} has a weight {key!r} that Qwen2.5-VL does not have: name an unmodified checkpoint"
    )


def _tensor(
    file: safe_open, key: str, path: Path, name: str, wanted: dict[str, torch.Size]
) -> Tensor:
    if name not in wanted:
        raise EngineError(
            f"{path} has a weight {key!r} that does not fit config.json: name an unmodified "
            "checkpoint"
        )
    view = file.get_slice(key)
    if view.get_dtype() not in STORED_TYPES:
        raise EngineError(
            f"{path}: {key!r} is stored as {view.get_dtype()}, allowed are "
            f"{', '.join(STORED_TYPES)}: name an unquantised checkpoint"
        )
    tensor = file.get_tensor(key)
    if key.endswith(CONVOLUTION) and tensor.ndim == 5:
        # [width, channel, frame, y, x] -> pixels in the order of VisionEncoder.patches
        tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1)
    if tensor.shape != wanted[name]:
        shape, expected = list(view.get_shape()), list(wanted[name])
        raise EngineError(
            f"{path}: {key!r} has shape {shape}, config.json implies {expected}: the two are "
            "not of one checkpoint"
        )
    return tensor


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter wherever the model uses it, so that a tied head stays tied."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    old = model.get_parameter(name)
    for module in model.modules():
        for leaf, held in list(module.named_parameters(recurse=False)):
            if held is old:
                setattr(module, leaf, parameter)


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        names = ["model.safetensors"]
    else:
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{index} is not an index of weights ({error!r}): download the checkpoint again"
            ) from error
    for name in names:
        if not (folder / name).is_file():
            raise EngineError(
                f"{folder} has no {name}: weights must be in safetensors files, download the "
                "checkpoint again"
            )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise EngineError(f"{path} is damaged ({error}): download the checkpoint again") from error
