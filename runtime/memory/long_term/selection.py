"""The cells of long-term memory that one reader sees, and their copies where the engine reads."""

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
    """The cells of each layer and KV head, up to N each."""

    cells: np.ndarray  # [L, Hkv, N] int32 slots of the long-term pool, NONE = none
    # [L, Hkv, N] int32 tokens of each cell that count: tokens that were added to the cell later
    # are not read
    filled: np.ndarray

    @staticmethod
    def nothing(model: ModelSpec) -> Selection:
        empty = np.empty((model.layers, model.kv_heads, 0), np.int32)
        return Selection(empty, empty)

    @property
    def tokens(self) -> int:
        """The mean number of tokens over layers and heads."""
        return round(float(np.where(self.cells == NONE, 0, self.filled).sum(2).mean()))

    def read(self, where: tuple[np.ndarray, ...], page_tokens: int) -> np.ndarray:
        """Which tokens of n cells are read, [n, T] bool. where: layer, head and column of each
        cell, [n] each."""
        return np.arange(page_tokens) < self.filled[where][:, None]

    @property
    def max_cells(self) -> int:
        """N"""
        return self.cells.shape[2]

    def placed(self, positions: np.ndarray, where: tuple[np.ndarray, ...]) -> np.ndarray:
        """The positions at which tokens are read: their own, unless a memory says otherwise.

        positions: [n, T, 3] of n cells in the pool; where: layer, head and column of each cell,
        [n] each.
        """
        return positions


@dataclass(frozen=True)
class MaskedSelection(Selection):
    """Cells of which some tokens alone are read."""

    kept: np.ndarray  # [L, Hkv, N, T] bool, False in cells that are NONE

    @property
    def tokens(self) -> int:
        return round(float(self.kept.sum(axis=(2, 3)).mean()))

    def read(self, where: tuple[np.ndarray, ...], page_tokens: int) -> np.ndarray:
        kept: np.ndarray = self.kept[where]
        return kept


class Recall:
    """Device slots of one reader: the i-th cell of a layer and head is copied to that layer and
    head of the i-th slot."""

    def __init__(self, pool: Pool, slots: Sequence[int]) -> None:
        """pool: what the engine reads, by_head, in the host's memory."""
        self.pool, self.slots = pool, np.asarray(slots, np.int32)
        self.bytes_moved = 0

    def load(self, source: HostPool, selection: Selection) -> np.ndarray:
        """Copies cells from `source`; returns the table [L, Hkv, N] int32 that reads them."""
        cells = selection.cells
        layer, head, column = np.nonzero(cells != NONE)
        source_cells = cells[layer, head, column], layer, head
        target_cells = self.slots[column], layer, head
        positions = source.cell_positions[source_cells]  # [n, T, 3]
        positions = selection.placed(positions, (layer, head, column))
        is_unread = ~selection.read((layer, head, column), positions.shape[1])  # [n, T]
        as_numpy(self.pool.data)[target_cells] = source.data[source_cells]
        as_numpy(self.pool.cell_positions)[target_cells] = np.where(
            is_unread[..., None], EMPTY, positions
        )
        self.bytes_moved += len(column) * source.data[:1, 0, 0].nbytes
        return np.where(cells == NONE, NONE, self.slots[: cells.shape[2]])
