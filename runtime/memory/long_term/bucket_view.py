"""Bucketed memory as it was at one moment, and LiveVLM's position-agnostic retrieval from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.selection import MaskedSelection, Selection
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
    # numbers of the first and the last unit whose tokens may be read; None = all
    within: tuple[int, int] | None = None

    @property
    def page_count(self) -> int:
        return math.ceil(self.tokens / (self.page_cells * self.model.page_tokens))

    def kept(self) -> np.ndarray:
        """[L, tokens of P whole pages] bool: tokens that may be read."""
        page_tokens = self.page_cells * self.model.page_tokens
        kept = np.zeros((self.model.layers, self.page_count * page_tokens), bool)
        units = self.units[:, : self.tokens]
        first, last = self.within or (0, int(units.max(initial=0)))
        kept[:, : self.tokens] = (units >= first) & (units <= last)
        return kept


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
        if snapshot.within:
            return self._choose_within(q)
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

    def _choose_within(self, q: np.ndarray) -> Selection:
        """As many pages as without a range, of those that have a token in it; of these pages, such
        tokens alone."""
        snapshot, model = self._snapshot, self._snapshot.model
        kept = snapshot.kept()
        # [L, P] bool
        has_tokens = np.any(kept.reshape(model.layers, snapshot.page_count, -1), axis=2)
        count = min(
            math.ceil(snapshot.share * snapshot.page_count), int(has_tokens.sum(axis=1).max())
        )
        scores = np.where(has_tokens, self.scores(q, has_tokens), -1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        # where a layer has fewer, the page after the last one, which has no tokens
        best = np.where(np.take_along_axis(has_tokens, best, axis=1), best, snapshot.page_count)
        cells, filled = cells_of_pages(
            np.sort(best, axis=1), snapshot.page_cells, snapshot.tokens, model.page_tokens
        )
        tokens = cells[:, :, None] * model.page_tokens + np.arange(model.page_tokens)
        layer = np.arange(model.layers)[:, None, None]
        is_kept = kept[layer, np.minimum(tokens, kept.shape[1] - 1)] & (filled > 0)[:, :, None]
        return _of_all_heads(cells, filled, is_kept, model.kv_heads)

    def scores(self, q: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The attention of q [L, Hq, D] over the pages' mean keys, averaged over the query heads:
        [L, P]. among: [L, P] bool, the pages that share it; None = all."""
        snapshot = self._snapshot
        earlier = snapshot.digests[:, : snapshot.page_count - 1]
        digests = np.concatenate([earlier, snapshot.last_digest[:, None]], axis=1)
        layers, _, heads, dim = digests.shape
        grouped = q.reshape(layers, heads, -1, dim)  # query head h reads KV head h // G
        products = grouped @ digests.transpose(0, 2, 3, 1)  # [L, Hkv, G, P]
        exponents = products * np.float32(dim**-0.5)
        if among is not None:
            exponents = np.where(among[:, None, None], exponents, np.finfo(np.float32).min)
        return softmax(exponents).mean(axis=(1, 2))

    def pages(self, selection: Selection) -> list[Page]:
        page_tokens = self._snapshot.model.page_tokens
        layer, column = np.nonzero(selection.filled[:, 0])  # alike in all heads
        head = np.zeros_like(layer)
        index, cell = np.nonzero(selection.read((layer, head, column), page_tokens))
        layer, column = layer[index], column[index]
        token = selection.cells[layer, 0, column] * page_tokens + cell
        units = np.unique(self._snapshot.units[layer, token])
        return [self._snapshot.pages[unit] for unit in units.tolist()]

    def release(self) -> None:
        """Ends the lease; further calls do nothing."""
        if self._leases:
            self._leases.release([WHOLE_MEMORY])
            self._leases = None


def _of_all_heads(
    cells: np.ndarray, filled: np.ndarray, kept: np.ndarray, heads: int
) -> MaskedSelection:
    """The cells of each layer of which a token is kept, in their order, for all heads.

    cells, filled: [L, n]; kept: [L, n, T] bool.
    """
    is_read = kept.any(axis=2)
    order = np.argsort(~is_read, axis=1, kind="stable")[:, : is_read.sum(axis=1).max(initial=0)]
    is_read = np.take_along_axis(is_read, order, axis=1)
    cells = np.where(is_read, np.take_along_axis(cells, order, axis=1), NONE)
    filled = np.where(is_read, np.take_along_axis(filled, order, axis=1), 0)
    kept = np.take_along_axis(kept, order[:, :, None], axis=1)
    shape = len(cells), heads, cells.shape[1]
    return MaskedSelection(
        np.broadcast_to(cells[:, None], shape).astype(np.int32),
        np.broadcast_to(filled[:, None], shape).astype(np.int32),
        np.broadcast_to(kept[:, None], (*shape, kept.shape[2])),
    )


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
