"""Bucketed memory as it was at one moment, and LiveVLM's position-agnostic retrieval from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.selection import Selection
from vicort.runtime.memory.long_term.vision_sinks import softmax
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.memory.slots import Slots

WHOLE_MEMORY = 0  # the one slot that a view leases: nothing moves while it is leased


@dataclass(frozen=True)
class BucketSnapshot:
    """What a view reads of a memory with n tokens in P pages.

    `digests`, `units` and `pages` are the memory's own: while the view is leased, the stream only
    adds to them, and the digest of the page that it may fill further is copied.
    """

    model: ModelSpec
    share: float  # of the pages, that is read
    page_cells: int  # cells of a page
    tokens: int  # n
    digests: np.ndarray  # [L, >= P, Hkv, D] float32, mean key of each page
    last_digest: np.ndarray  # [L, Hkv, D] a copy of the last page's
    units: np.ndarray  # [L, >= n] int64, number of each token's unit
    pages: dict[int, Page]  # by number of the unit

    @property
    def page_count(self) -> int:
        return math.ceil(self.tokens / (self.page_cells * self.model.page_tokens))


class BucketView:
    """Reads a snapshot of the memory."""

    def __init__(self, snapshot: BucketSnapshot, leases: Slots | None) -> None:
        """leases: where the memory is leased until `release`; None = not leased."""
        self._snapshot, self._leases = snapshot, leases
        if leases:
            leases.lease([WHOLE_MEMORY])

    def choose(self, q: np.ndarray) -> Selection:
        """Chooses in each layer the share of pages whose mean key the question's mean query attends
        to most, the same for all heads."""
        snapshot, model = self._snapshot, self._snapshot.model
        if not snapshot.page_count:
            return Selection.nothing(model)
        count = math.ceil(snapshot.share * snapshot.page_count)
        best = np.argsort(-self.scores(q), axis=1, kind="stable")[:, :count]
        cells, filled = cells_of_pages(
            np.sort(best, axis=1), snapshot.page_cells, snapshot.tokens, model.page_tokens
        )
        cells = np.where(filled > 0, cells, NONE)
        shape = model.layers, model.kv_heads, cells.shape[1]
        return Selection(
            np.broadcast_to(cells[:, None], shape).astype(np.int32),
            np.broadcast_to(filled[:, None], shape).astype(np.int32),
        )

    def scores(self, q: np.ndarray) -> np.ndarray:
        """The attention of q [L, Hq, D] over the pages' mean keys, averaged over the query heads:
        [L, P]."""
        snapshot = self._snapshot
        earlier = snapshot.digests[:, : snapshot.page_count - 1]
        digests = np.concatenate([earlier, snapshot.last_digest[:, None]], axis=1)
        layers, _, heads, dim = digests.shape
        grouped = q.reshape(layers, heads, -1, dim)  # query head h reads KV head h // G
        products = grouped @ digests.transpose(0, 2, 3, 1)  # [L, Hkv, G, P]
        return softmax(products * np.float32(dim**-0.5)).mean(axis=(1, 2))

    def pages(self, selection: Selection) -> list[Page]:
        page_tokens = self._snapshot.model.page_tokens
        cells, filled = selection.cells[:, 0], selection.filled[:, 0]  # alike in all heads
        layer, column, cell = np.nonzero(np.arange(page_tokens) < filled[:, :, None])
        token = cells[layer, column] * page_tokens + cell
        units = np.unique(self._snapshot.units[layer, token])
        return [self._snapshot.pages[unit] for unit in units.tolist()]

    def release(self) -> None:
        """Ends the lease; further calls do nothing."""
        if self._leases:
            self._leases.release([WHOLE_MEMORY])
            self._leases = None


def cells_of_pages(
    pages: np.ndarray, page_cells: int, tokens: int, page_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cells of pages, and how many tokens each cell holds in a memory of `tokens` tokens.

    pages: [L, n] -> two arrays [L, n x page_cells].

    Ten tokens fill pages of two cells of four tokens: 4 and 4, then 2 and 0.

    >>> cells, filled = cells_of_pages(np.array([[0, 1]]), page_cells=2, tokens=10, page_tokens=4)
    >>> cells.tolist(), filled.tolist()
    ([[0, 1, 2, 3]], [[4, 4, 2, 0]])
    """
    cells = pages[:, :, None] * page_cells + np.arange(page_cells)
    cells = cells.reshape(len(pages), -1)
    return cells, np.clip(tokens - cells * page_tokens, 0, page_tokens)
