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
from vicort.runtime.safe_text import brief

STORED_TYPES = ("F32", "F16", "BF16")  # that vicort-build takes
LENGTH_BYTES = 8  # of the header's length, little-endian
MAX_HEADER = 100_000_000  # bytes: the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    name: str
    dtype: str  # as safetensors calls it: F32, BF16, I32, F8_E4M3, …
    shape: tuple[int, ...]
    bytes: int

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
                f"{index} is not an index of weights ({brief(error)}): download the checkpoint again"
            ) from error
    for name in names:
        if not (folder / name).is_file():
            raise EngineError(
                f"{folder} has no {name}: weights must be in safetensors files, download the "
                "checkpoint again"
            )
    return [folder / name for name in names]


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a file, whose data is not read. Raises EngineError if the file is damaged or
    cut off."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            content = json.loads(file.read(length))
        content.pop("__metadata__", None)
        tensors = [_tensor(name, value) for name, value in content.items()]
        end = max((value["data_offsets"][1] for value in content.values()), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, brief(error)) from error
    missing = LENGTH_BYTES + length + end - path.stat().st_size
    if missing > 0:
        raise _damaged(path, f"{missing} bytes are missing at its end")
    return tensors


def _tensor(name: str, value: dict[str, Any]) -> StoredTensor:
    start, end = value["data_offsets"]
    return StoredTensor(name, value["dtype"], tuple(value["shape"]), end - start)


def _damaged(path: Path, why: str) -> EngineError:
    return EngineError(f"{path} is damaged ({why}): download the checkpoint again")
