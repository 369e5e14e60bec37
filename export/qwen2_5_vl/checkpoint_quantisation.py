"""How a checkpoint is quantised, from the `quantization_config` of its config.json, or from the
quantize_config.json of older GPTQ checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vicort.export.qwen2_5_vl.float8_weights import FineGrainedLayout, Float8Layout
from vicort.export.qwen2_5_vl.packed_weights import (
    AwqLayout,
    GptqLayout,
    Int8Layout,
    PackedWeight,
    PackQuantizedLayout,
)
from vicort.export.qwen2_5_vl.stored_tensors import StoredModule
from vicort.runtime.errors import EngineError
from vicort.runtime.safe_text import brief, shown

if TYPE_CHECKING:
    from torch import Tensor

# of quantised activations and caches, which vicort does not quantise
IGNORED_LEAVES = (
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "k_scale",
    "v_scale",
    "k_zero_point",
    "v_zero_point",
)
PACKED_LEAVES = ("qweight", "weight_packed", "weight_scale_inv", "SCB", "absmax", "quant_map")
GPTQ_FILE = "quantize_config.json"
KINDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
# of compressed-tensors' formats
NUMBERS = {
    "pack-quantized": ("int",),
    "int-quantized": ("int",),
    "float-quantized": ("float",),
    "naive-quantized": ("int", "float"),
}


class WeightLayout(Protocol):
    """Where the weight of a quantised layer is in a checkpoint."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """The last parts of its tensors' names."""

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> PackedWeight | Tensor:
        """The weight [out,in]; a tensor is float32. Raises EngineError if a tensor is missing or is
        not as the layout has it."""


def read_quantisation(folder: Path) -> WeightLayout | None:
    """The layout of a checkpoint's quantised layers, None if it is not quantised; its `str` names
    the method, the bits and the groups. Raises EngineError if vicort does not read it."""
    given = _given(folder)
    if given is None:
        return None
    return METHODS[given.only("quant_method", str, tuple(METHODS))](given)


def method_of(folder: Path) -> str:
    """What a quantised checkpoint calls its method, also if vicort does not read it."""
    try:
        given = _given(folder)
    except EngineError:
        given = None
    method = given.values.get("quant_method") if given else None
    return shown(method).strip("'\"") if method else "an unknown method"


def check_unquantised(folder: Path, names: Iterable[str]) -> None:
    """Raises EngineError if one of the names is that of a packed weight."""
    packed = next((name for name in names if name.rpartition(".")[2] in PACKED_LEAVES), None)
    if packed:
        raise EngineError(
            f"{folder} has a quantised weight {packed!r}, but neither a quantization_config in "
            f"config.json nor a {GPTQ_FILE}: download the checkpoint again"
        )


@dataclass(frozen=True)
class _Given:
    """A configuration of quantisation, or a part of it."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """Its value of that type; None is as if it were missing. Raises EngineError if it has
        another type, or is missing and has no default."""
        value = self.values.get(key)
        if value is None and default:
            return default[0]
        if type(value) is not kind:
            raise self.refused(key, value, KINDS[kind])
        return value

    def part(self, key: str) -> _Given:
        return _Given(self.path, self.get(key, dict, {}))

    def only(self, key: str, kind: type, allowed: tuple[Any, ...], *default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default:
            return default[0]
        if type(value) is not kind or value not in allowed:
            raise self.refused(key, value, " or ".join(map(str, allowed)))
        return value

    def group(self) -> int | None:
        group = self.get("group_size", int)
        if group < -1 or group == 0:
            raise self.refused("group_size", group, "-1 or a number of columns")
        return None if group == -1 else group

    def refused(self, key: str, value: object, allowed: str) -> EngineError:
        return EngineError(
            f"{self.path}: {key} of the quantisation is {shown(value)}, allowed is {allowed}: name "
            "another checkpoint of the model, such as the unquantised one"
        )


def _given(folder: Path) -> _Given | None:
    path, older = folder / "config.json", folder / GPTQ_FILE
    config = _object(path, _json(path))
    value = config.get("quantization_config")
    if value is None and isinstance(config.get("text_config"), dict):
        value = config["text_config"].get("quantization_config")
    if value is not None:
        given = _object(path, value, "quantization_config")
        if given.get("load_in_8bit") or given.get("load_in_4bit"):  # without quant_method at first
            given = {"quant_method": "bitsandbytes"} | given
        return _Given(path, given)
    if older.is_file():
        return _Given(older, {"quant_method": "gptq"} | _object(older, _json(older)))
    return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON ({brief(error)}): download the checkpoint again"
        ) from error


def _object(path: Path, value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EngineError(
            f"{path}: {name or 'the file'} is of type {type(value).__name__}, allowed is an "
            "object: download the checkpoint again"
        )
    return value


def _awq(given: _Given) -> WeightLayout:
    # gemv and gemv_fast have other shapes for each group size, and few checkpoints have them
    version = given.get("version", str, None) or given.get("checkpoint_format", str, "gemm")
    if version.lower() != "gemm":
        raise given.refused("version", version, "gemm")
    given.only("bits", int, (4,))
    given.only("zero_point", bool, (True,), True)
    return AwqLayout(given.group())


def _gptq(given: _Given) -> WeightLayout:
    key = next((k for k in ("checkpoint_format", "format") if given.values.get(k)), "format")
    form = given.only(key, str, ("gptq", "gptq_v2"), "gptq")
    given.only("is_marlin_format", bool, (False,), False)
    given.only("pack_dtype", str, ("int32",), "int32")
    # rules that begin with "-:" leave layers unquantised, and others have values of their own
    dynamic = given.get("dynamic", dict, {})
    if any(not rule.startswith("-:") for rule in dynamic):
        raise given.refused("dynamic", sorted(dynamic), "rules that begin with '-:'")
    return GptqLayout(
        group=given.group(),
        bits=given.only("bits", int, (4, 8)),
        act_order=given.get("desc_act", bool, False),
        subtracted=form == "gptq",
    )


def _compressed_tensors(given: _Given) -> WeightLayout:
    form = given.only("format", str, tuple(NUMBERS))
    for key in ("sparsity_config", "transform_config"):
        part = given.get(key, dict, {})
        if part and part.get("format") != "dense":
            raise given.refused(key, part, "none")
    scheme = _one_scheme(given)
    # `group` scatters the columns of a group; `weight` and its other name `static` do not
    order = scheme.values.get("actorder")
    if order not in (None, False, "weight", "static"):
        raise scheme.refused("actorder", order, "weight or none")
    number = scheme.only("type", str, NUMBERS[form], "int")
    if form == "pack-quantized":
        return PackQuantizedLayout(
            group=_strategy_group(scheme, ("group", "channel")),
            bits=scheme.only("num_bits", int, (4, 8)),
            symmetric=scheme.get("symmetric", bool, True),
        )
    scheme.only("num_bits", int, (8,))
    if number == "int":
        return Int8Layout(
            group=_strategy_group(scheme, ("group", "channel", "tensor")),
            whole=scheme.get("strategy", str) == "tensor",
            symmetric=scheme.get("symmetric", bool, True),
        )
    scheme.only("symmetric", bool, (True,), True)
    return Float8Layout("compressed-tensors", _strategy_block(scheme))


def _one_scheme(given: _Given) -> _Given:
    """How weights are quantised, in all groups of layers."""
    groups = list(given.get("config_groups", dict, {}).values())
    weights = [group.get("weights") if isinstance(group, dict) else None for group in groups]
    if not weights or weights[0] is None or any(each != weights[0] for each in weights):
        raise given.refused("config_groups", groups, "groups with the same weights")
    return _Given(given.path, {"weights": weights[0]}).part("weights")


def _strategy_group(scheme: _Given, allowed: tuple[str, ...]) -> int | None:
    return scheme.group() if scheme.only("strategy", str, allowed) == "group" else None


def _strategy_block(scheme: _Given) -> tuple[int, int]:
    strategy = scheme.only("strategy", str, ("tensor", "channel", "block"))
    if strategy == "block":
        return _block(scheme, "block_structure")
    return (1, 0) if strategy == "channel" else (0, 0)


def _fp8(given: _Given) -> WeightLayout:
    given.only("scale_fmt", str, ("float",), "float")
    return FineGrainedLayout("FP8", _block(given, "weight_block_size"))


def _block(given: _Given, key: str) -> tuple[int, int]:
    block = given.get(key, list)
    if len(block) != 2 or any(type(side) is not int or side < 1 for side in block):
        raise given.refused(key, block, "two positive numbers")
    return block[0], block[1]


METHODS: dict[str, Callable[[_Given], WeightLayout]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
}
