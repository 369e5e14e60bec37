"""The names, types and shapes of a checkpoint's tensors, from the headers of its files alone.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicort.runtime.errors import EngineError
from vicort.runtime.file_kinds import misfit
from vicort.runtime.safe_text import brief, shown

STORED_TYPES = ("F32", "F16", "BF16")  # that vicort-build takes
# bits of a number: https://docs.rs/safetensors/latest/safetensors/tensor/enum.Dtype.html
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
# what else a folder may have, and what to do with it
OTHER_WEIGHTS = {
    "*.gguf": "of llama.cpp: name the checkpoint that it was made from",
    "pytorch_model*.bin": "in PyTorch's own format: load it with transformers, and "
    "`save_pretrained` writes safetensors files",
    "*.safetensors": "which is not all: download the checkpoint again",
    "*.pt*": "in PyTorch's own format: save the model in safetensors files",
}
LENGTH_BYTES = 8  # of the header's length, little-endian
MAX_HEADER = 100_000_000  # bytes: the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    name: str
    dtype: str  # as safetensors calls it: F32, BF16, I32, F8_E4M3, …
    shape: tuple[int, ...]
    bytes: int
    start: int  # of its data, in the file

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name. Raises EngineError if one is
    missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        names = ["model.safetensors"]
    else:
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise ValueError("a file name is not a text")
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise EngineError(
                f"{index} is not an index of weights ({brief(error)}): download the checkpoint "
                "again"
            ) from error
    for name in names:
        if not (folder / name).is_file():
            raise EngineError(f"{folder} has no {name}: {_other_weights(folder)}")
    return [folder / name for name in names]


def _other_weights(folder: Path) -> str:
    """What to do about weights that are missing."""
    for pattern, advice in OTHER_WEIGHTS.items():
        if other := next(iter(sorted(folder.glob(pattern))), None):
            return f"it has {other.name}, {advice}"
    return "weights must be in safetensors files, download the checkpoint again"


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a file, whose data is not read. Raises EngineError if the file is damaged, cut
    off or something else."""
    try:
        if what := misfit(path):
            raise EngineError(f"{path} is {what}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER:
                raise ValueError(
                    f"a header of {length} bytes: it is no safetensors file, or is encrypted"
                )
            content = json.loads(file.read(length))
        content.pop("__metadata__", None)
        begin = LENGTH_BYTES + length
        tensors = [_tensor(name, value, begin) for name, value in content.items()]
        end = max((each["data_offsets"][1] for each in content.values()), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, brief(error)) from error
    missing = LENGTH_BYTES + length + end - path.stat().st_size
    if missing > 0:
        raise _damaged(path, f"{missing} bytes are missing at its end")
    return tensors


def _tensor(name: str, value: dict[str, Any], begin: int) -> StoredTensor:
    """begin: where the data of all tensors begins in the file. Raises ValueError, or another error
    of a value of the wrong type."""
    dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{shown(name)} is of the unknown type {shown(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise ValueError(f"{shown(name)} has the shape {shown(shape)}")
    if not (_is_count(start) and _is_count(end) and start <= end):
        raise ValueError(f"{shown(name)} has the offsets {shown([start, end])}")
    return StoredTensor(name, dtype, tuple(shape), end - start, begin + start)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _damaged(path: Path, why: str) -> EngineError:
    return EngineError(f"{path} is damaged ({why}): download the checkpoint again")
