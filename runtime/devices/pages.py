"""Pages in the host's memory, and what every pool of pages agrees on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.device import Pool, Stream
from vicort.runtime.manifest import ModelSpec

EMPTY = -1  # position of a cell that holds no token


class HostPool:
    """Pages in NumPy arrays: the device tier of the host, and the host tier behind it."""

    def __init__(
        self,
        empty: Callable[..., np.ndarray],
        model: ModelSpec,
        pages: int,
        dtype: DTypeLike,
        by_head: bool = False,
    ) -> None:
        """empty: gives an array of a shape and a type. by_head: whether each layer and head may
        hold other tokens than the next."""
        self.data = empty(
            (pages, model.layers, model.kv_heads, 2, model.page_tokens, model.head_dim), dtype
        )
        alike = (model.layers, model.kv_heads) if by_head else (1, 1)
        self.cell_positions = self.host_positions = empty(
            (pages, *alike, model.page_tokens, 3), np.int32
        )
        self.cell_positions[:] = EMPTY

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        count = len(slots)
        self.data[slots, :, :, 0, cells] = k[:, :count].swapaxes(0, 1)
        self.data[slots, :, :, 1, cells] = v[:, :count].swapaxes(0, 1)
        self.cell_positions[slots, :, :, cells] = positions[:, None, None]

    def clear(self, slots: Sequence[int], stream: Stream) -> None:
        self.cell_positions[list(slots)] = EMPTY

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Stream
    ) -> None:
        there, here = list(source_slots), list(slots)
        if len(there) != len(here):  # NumPy would copy one page to all
            raise ValueError(f"{len(there)} pages cannot be copied to {len(here)} slots")
        self.data[here] = source.data[there]
        self.cell_positions[here] = source.cell_positions[there]

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Stream) -> None:
        self.cell_positions[list(slots)] = shifted(self.cell_positions[list(slots)], step, floor)


def shifted(positions: np.ndarray, step: np.ndarray, floor: int) -> np.ndarray:
    """Positions [..., 3] with `step` [3] taken off where there is a token, not below `floor`."""
    return np.where(positions == EMPTY, EMPTY, np.maximum(positions - step.astype(np.int32), floor))


def page_bytes(model: ModelSpec, dtype: DTypeLike, by_head: bool = False) -> int:
    """Bytes of one page in a pool, positions included."""
    cells = model.layers * model.kv_heads
    values = cells * 2 * model.page_tokens * model.head_dim * np.dtype(dtype).itemsize
    return values + (cells if by_head else 1) * model.page_tokens * 3 * 4
