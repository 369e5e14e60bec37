"""Which cells of long-term memory one reader sees, and how they come to where the engine reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vicort.runtime.devices.device import Pool
from vicort.runtime.devices.pages import EMPTY, HostPool, as_numpy
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.page_tables import NONE


@dataclass(frozen=True)
class Selection:
    """Of each layer and KV head its own cells, as many as it likes."""

    cells: np.ndarray  # [L, Hkv, N] int32 slots of the long-term pool, NONE = none
    # [L, Hkv, N] int32, tokens of each cell that count: a cell that has been filled further is read
    # as it was
    filled: np.ndarray

    @staticmethod
    def nothing(model: ModelSpec) -> Selection:
        empty = np.empty((model.layers, model.kv_heads, 0), np.int32)
        return Selection(empty, empty)

    @property
    def tokens(self) -> int:
        """Seen tokens, the mean over layers and heads."""
        return round(float(np.where(self.cells == NONE, 0, self.filled).sum(2).mean()))

    @property
    def most(self) -> int:
        """N: the most cells of a layer and head."""
        return self.cells.shape[2]


class Recall:
    """Device slots of one reader, into which cells are copied: the i-th of a layer and head into
    that layer and head of slot i."""

    def __init__(self, pool: Pool, slots: Sequence[int]) -> None:
        """pool: what the engine reads, by_head, in the host's memory."""
        self.pool, self.slots = pool, np.asarray(slots, np.int32)
        self.bytes_moved = 0

    def load(self, source: HostPool, selection: Selection) -> np.ndarray:
        """Copy cells from `source`; returns the table [L, Hkv, N] int32 that reads them."""
        cells = selection.cells
        layer, head, place = np.nonzero(cells != NONE)
        there, here = cells[layer, head, place], self.slots[place]
        where = source.cell_positions[there, layer, head]  # [n, T, 3]
        beyond = np.arange(where.shape[1]) >= selection.filled[layer, head, place][:, None]
        as_numpy(self.pool.data)[here, layer, head] = source.data[there, layer, head]
        as_numpy(self.pool.cell_positions)[here, layer, head] = np.where(
            beyond[..., None], EMPTY, where
        )
        self.bytes_moved += len(there) * source.data[:1, 0, 0].nbytes
        return np.where(cells == NONE, NONE, self.slots[: cells.shape[2]])
