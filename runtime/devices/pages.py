"""Pages in host memory, and the layout that every pool of pages has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.device import Array, Pool, Stream
from vicort.runtime.devices.int8_vectors import quantised
from vicort.runtime.manifest import ModelSpec

EMPTY = -1  # position of a cell that holds no token


class HostPool:
    """Pages in NumPy arrays: the device tier of a CPU, and the host tier of every device."""

    def __init__(
        self,
        empty: Callable[..., np.ndarray],
        model: ModelSpec,
        pages: int,
        dtype: DTypeLike,
        by_head: bool = False,
    ) -> None:
        """empty: makes an array of a shape and a type. by_head: each layer and head may hold other
        tokens."""
        vectors = (pages, model.layers, model.kv_heads, 2, model.page_tokens)
        self.data: np.ndarray = empty((*vectors, model.head_dim), dtype)
        self.scales: np.ndarray | None = empty(vectors, np.float32) if is_int8(dtype) else None
        layers, heads = (model.layers, model.kv_heads) if by_head else (1, 1)
        shape = (pages, layers, heads, model.page_tokens, 3)
        self.cell_positions: np.ndarray = empty(shape, np.int32)
        self.cell_positions[:] = EMPTY
        self.host_positions = self.cell_positions

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        count = len(slots)
        for side, new in enumerate((k, v)):
            vectors = as_numpy(new)[:, :count].swapaxes(0, 1)
            if self.scales is not None:
                vectors, self.scales[slots, :, :, side, cells] = quantised(vectors)
            self.data[slots, :, :, side, cells] = vectors
        self.cell_positions[slots, :, :, cells] = positions[:, None, None]

    def clear(self, slots: Sequence[int], stream: Stream) -> None:
        self.cell_positions[list(slots)] = EMPTY

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Stream
    ) -> None:
        sources, targets = list(source_slots), list(slots)
        if len(sources) != len(targets):  # NumPy would broadcast one page to all slots
            raise ValueError(f"{len(sources)} pages cannot be copied to {len(targets)} slots")
        self.data[targets] = as_numpy(source.data)[sources]
        if self.scales is not None:
            self.scales[targets] = as_numpy(scales_of(source))[sources]
        self.cell_positions[targets] = as_numpy(source.cell_positions)[sources]

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Stream) -> None:
        self.cell_positions[list(slots)] = shifted(self.cell_positions[list(slots)], step, floor)


def is_int8(dtype: DTypeLike) -> bool:
    """Whether a pool of this type has scales."""
    return np.dtype(dtype) == np.int8


def scales_of(pool: Pool) -> Array:
    """Of an int8 pool."""
    if pool.scales is None:
        raise TypeError("a pool of floats has no scales: both pools of a copy are of one type")
    return pool.scales


def as_numpy(array: Array) -> np.ndarray:
    """An array of the host device, which is always a NumPy array."""
    return cast(np.ndarray, array)


def shifted(positions: np.ndarray, step: np.ndarray, floor: int) -> np.ndarray:
    """Positions [...,3] minus `step` [3], at least `floor`; empty cells stay empty."""
    return np.where(positions == EMPTY, EMPTY, np.maximum(positions - step.astype(np.int32), floor))


def page_bytes(model: ModelSpec, dtype: DTypeLike, by_head: bool = False) -> int:
    """Bytes of one page in a pool, positions and scales included."""
    cells = model.layers * model.kv_heads
    vector = model.head_dim * np.dtype(dtype).itemsize + (4 if is_int8(dtype) else 0)
    vectors = cells * 2 * model.page_tokens
    return vectors * vector + (cells if by_head else 1) * model.page_tokens * 3 * 4
