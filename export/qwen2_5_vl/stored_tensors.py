"""Tensors in the safetensors files of a checkpoint, read when they are asked for.

safetensors is imported by what opens and reads files, because `vicort-info` does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vicort.runtime.errors import EngineError

if TYPE_CHECKING:
    from safetensors import SafetensorError, safe_open
    from torch import Tensor

FLOATS = ("F32", "F16", "BF16")  # as safetensors calls the types


@dataclass(frozen=True)
class CheckpointTensor:
    path: Path
    key: str
    file: safe_open

    @property
    def dtype(self) -> str:
        """As safetensors calls it."""
        return self.file.get_slice(self.key).get_dtype()

    @property
    def shape(self) -> list[int]:
        return list(self.file.get_slice(self.key).get_shape())

    def read(self) -> Tensor:
        """Raises EngineError if the file is damaged."""
        from safetensors import SafetensorError

        try:
            return self.file.get_tensor(self.key)
        except SafetensorError as error:
            raise _damaged(self.path, error) from error


@dataclass(frozen=True)
class StoredModule:
    """What a checkpoint has of one quantised layer."""

    name: str  # in the checkpoint
    tensors: Mapping[str, CheckpointTensor]  # by the last part of their names

    @property
    def path(self) -> Path:
        """One of its files, for messages."""
        return next(iter(self.tensors.values())).path

    def read(self, leaf: str, types: tuple[str, ...], *shapes: list[int]) -> Tensor:
        """The tensor of that name, of one of `types` and one of `shapes`. Raises EngineError if
        there is none."""
        stored = self.tensors.get(leaf)
        if stored is None:
            raise EngineError(
                f"{self.path}: {self.name!r} has {', '.join(sorted(self.tensors))} but no {leaf}: "
                "download the checkpoint again"
            )
        if stored.dtype not in types:
            raise EngineError(
                f"{stored.path}: {stored.key!r} is stored as {stored.dtype}, quantization_config "
                f"implies {' or '.join(types)}: the two are not of one checkpoint"
            )
        if stored.shape not in shapes:
            raise EngineError(
                f"{stored.path}: {stored.key!r} has shape {stored.shape}, config.json implies "
                f"{' or '.join(map(str, shapes))}: the two are not of one checkpoint"
            )
        return stored.read()

    def groups(self, inputs: int, group: int | None) -> int:
        """How many groups of columns there are. group: columns of one, None = all. Raises
        EngineError if it does not divide the inputs."""
        if group is None:
            return 1
        if inputs % group:
            raise EngineError(
                f"{self.path}: {self.name!r} has {inputs} inputs, which groups of {group} do not "
                "divide: name a checkpoint with another group_size"
            )
        return inputs // group


def open_stored(path: Path) -> dict[str, CheckpointTensor]:
    """The tensors of a file by their keys. Raises EngineError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise _damaged(path, error) from error
    return {key: CheckpointTensor(path, key, file) for key in file.keys()}  # noqa: SIM118 (the file cannot be iterated)


def _damaged(path: Path, error: SafetensorError) -> EngineError:
    return EngineError(f"{path} is damaged ({error}): download the checkpoint again")
