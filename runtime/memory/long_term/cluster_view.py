"""Key clusters as they were at one moment, and what a query reads of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.cluster_cells import ClusterCells
from vicort.runtime.memory.long_term.selection import MaskedSelection, Selection
from vicort.runtime.memory.long_term.sorted_groups import pack_rows, rank_in_group
from vicort.runtime.memory.long_term.wicsum import wicsum
from vicort.runtime.memory.page_tables import NONE


@dataclass(frozen=True)
class ClusterSnapshot:
    """What a view reads: G groups, C clusters in the order they were opened, S slots.

    `means`, `serials` and both lists are the memory's own. The stream goes on writing there, but
    changes nothing that a leased view reads: clusters that still take tokens are copied.
    """

    model: ModelSpec
    share: float  # see `wicsum`
    max_cells: int  # that a selection names for a layer and head
    cells: ClusterCells
    moment: int | None  # of its lease, None = not leased
    clusters: np.ndarray  # [G, C] slot that names each cluster
    tokens: np.ndarray  # [G, C] tokens in it, 0 = no cluster
    recent: np.ndarray  # [G, R] columns of the clusters that still take tokens
    recent_means: np.ndarray  # [G, R, D] a copy of their means
    means: np.ndarray  # [G, S, D] float32, by the cluster's slot
    serials: np.ndarray  # [S, G, T] how many tokens of the stream came before each
    used_slots: int
    first_serials: list[int]  # of each unit in `pages`
    pages: list[Page]
    # serial of the first token that may be read, and one more than that of the last; None = all
    within: tuple[int, int] | None = None


class ClusterView:
    """Reads a snapshot of the clusters."""

    def __init__(self, snapshot: ClusterSnapshot, report_capped: Callable[[int], None]) -> None:
        """report_capped: called with the number of groups in which `max_cells` cut a choice."""
        self.snapshot = snapshot
        self._report_capped = report_capped
        self._lease = snapshot.moment

    def choose(self, q: np.ndarray) -> Selection:
        """Chooses clusters by WiCSum for each query head; a KV head reads what any of its query
        heads chose.

        If these are more than `max_cells` cells, the KV head reads those of the clusters to which
        one of its query heads gives the largest share a token.

        With a range, a cluster is what it has there: it weighs as many tokens, and no other token
        is read. Its score is that of its mean key all the same, which is the mean of all its keys.
        """
        snapshot = self.snapshot
        model, clusters = snapshot.model, snapshot.clusters.shape[1]
        if not self._tokens.any():
            return Selection.nothing(model)
        heads = model.query_heads // model.kv_heads
        scores = self._scores(q.reshape(-1, heads, q.shape[-1]))  # [G, heads, C]
        tokens = np.repeat(self._tokens, heads, axis=0)  # [G x heads, C]
        by_head = wicsum(scores.reshape(-1, clusters), tokens, snapshot.share)
        chosen = np.logical_or.reduce(by_head.reshape(scores.shape), axis=1)
        return self._select(chosen, scores)

    def pages(self, selection: Selection) -> list[Page]:
        snapshot = self.snapshot
        layer, head, column = np.nonzero(selection.filled)
        group = layer * snapshot.model.kv_heads + head
        slot = selection.cells[layer, head, column]
        is_read = selection.read((layer, head, column), snapshot.model.page_tokens)  # [cells, T]
        serials = snapshot.serials[slot, group][is_read]
        units = np.searchsorted(snapshot.first_serials, serials, "right") - 1
        return [snapshot.pages[unit] for unit in np.unique(units)]

    def release(self) -> None:
        """Ends the lease; further calls do nothing."""
        moment, self._lease = self._lease, None
        if moment is not None:
            self.snapshot.cells.release(moment)

    @cached_property
    def _tokens(self) -> np.ndarray:
        """[G, C] tokens of each cluster that may be read."""
        snapshot = self.snapshot
        if snapshot.within is None:
            return snapshot.tokens
        owner, kept = self._kept
        by_slot = np.zeros(owner.shape, snapshot.tokens.dtype)
        group, slot = np.nonzero(kept.any(axis=2))
        np.add.at(by_slot, (group, owner[group, slot]), kept[group, slot].sum(axis=1))
        groups = np.arange(len(by_slot))[:, None]
        return np.where(snapshot.tokens > 0, by_slot[groups, snapshot.clusters], 0)

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        """With a range: the cluster of each cell, [G, S], and which of its tokens may be read,
        [G, S, T] bool."""
        snapshot, page_tokens = self.snapshot, self.snapshot.model.page_tokens
        first, end = snapshot.within or (0, 0)
        tokens = self._by_slot(snapshot.tokens, 0, np.int32)
        owner, filled = snapshot.cells.filled(tokens, page_tokens)
        serials = snapshot.serials[: snapshot.used_slots].swapaxes(0, 1)
        kept = (serials >= first) & (serials < end)
        kept &= np.arange(page_tokens) < filled[:, :, None]
        return owner, kept

    def _scores(self, q: np.ndarray) -> np.ndarray:
        """q . mean / sqrt(D). [G, heads, D] -> [G, heads, C]"""
        groups = np.arange(len(q))[:, None]
        means = self.snapshot.means[groups, self.snapshot.clusters]
        means[groups, self.snapshot.recent] = self.snapshot.recent_means
        return q @ means.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))

    def _select(self, chosen: np.ndarray, scores: np.ndarray) -> Selection:
        """The cells of the chosen clusters, in the order of the stream.

        chosen: [G, C] bool; scores: [G, heads, C].
        """
        snapshot = self.snapshot
        tokens = self._by_slot(np.where(chosen, snapshot.tokens, 0), 0, np.int32)
        owner, filled = snapshot.cells.filled(tokens, snapshot.model.page_tokens)
        if snapshot.within:
            filled = np.where(self._kept[1].any(axis=2), filled, 0)
        serials = snapshot.serials[: snapshot.used_slots, :, 0].T  # [G, S] of cells' first tokens
        is_capped = np.count_nonzero(filled, axis=1) > snapshot.max_cells
        if is_capped.any():
            self._report_capped(int(is_capped.sum()))
            share = self._by_slot(self._shares(scores), -np.inf, np.float64)
            share_of_cell = np.take_along_axis(share, np.maximum(owner, 0), axis=1)
            filled = keep_largest(filled, share_of_cell, serials, snapshot.max_cells)
        cells, cell_tokens = in_stream_order(filled, serials)
        shape = snapshot.model.layers, snapshot.model.kv_heads, cells.shape[1]
        selected = cells.reshape(shape), cell_tokens.reshape(shape)
        if snapshot.within is None:
            return Selection(*selected)
        groups = np.arange(len(cells))[:, None]
        kept = self._kept[1][groups, cells] & (cells != NONE)[:, :, None]
        return MaskedSelection(*selected, kept.reshape(*shape, kept.shape[2]))

    def _shares(self, scores: np.ndarray) -> np.ndarray:
        """The logarithm of the attention that a token of each cluster gets, of the query head that
        gives it the most. scores: [G, heads, C] -> [G, C]
        """
        tokens = self._tokens[:, None]
        weights = np.where(tokens > 0, scores + np.log(np.maximum(tokens, 1)), -np.inf)
        return (scores - np.logaddexp.reduce(weights, axis=2, keepdims=True)).max(axis=1)

    def _by_slot(self, values: np.ndarray, fill: float, dtype: type) -> np.ndarray:
        """Values of clusters [G, C], moved to the slots that name them: [G, S]."""
        snapshot = self.snapshot
        group, column = np.nonzero(snapshot.tokens)
        by_slot: np.ndarray = np.full((len(values), snapshot.used_slots), fill, dtype)
        by_slot[group, snapshot.clusters[group, column]] = values[group, column]
        return by_slot


def in_stream_order(filled: np.ndarray, serials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells that are read, oldest first, and how many tokens of each.

    filled: [G, S] tokens to read of each cell; serials: [G, S] number of the cell's first token.
    Returns two arrays [G, N] int32, padded with NONE and 0.

    Cluster 0 has five tokens in cells 0 and 2, cluster 1 has two in cell 1, the oldest cell.

    >>> cells, tokens = in_stream_order(np.array([[4, 2, 1]]), serials=np.array([[2, 0, 7]]))
    >>> cells.tolist(), tokens.tolist()
    ([[1, 0, 2]], [[2, 4, 1]])
    """
    group, slot = np.nonzero(filled)
    order = np.lexsort((serials[group, slot], group))
    group, slot = group[order], slot[order]
    cells = pack_rows(group, slot, len(filled), NONE)
    return cells, pack_rows(group, filled[group, slot], len(filled), 0)


def keep_largest(
    filled: np.ndarray, share: np.ndarray, serials: np.ndarray, max_cells: int
) -> np.ndarray:
    """`filled` [G, S] with only each group's first `max_cells` cells by share, of equals the older.

    share, serials: [G, S], of each cell.

    >>> share = np.array([[0.1, 0.3, 0.1]])
    >>> serials = np.array([[2, 0, 7]])
    >>> keep_largest(np.array([[4, 2, 1]]), share, serials, max_cells=2).tolist()
    [[4, 2, 0]]
    """
    group, slot = np.nonzero(filled)
    order = np.lexsort((serials[group, slot], -share[group, slot], group))
    group, slot = group[order], slot[order]
    is_kept = rank_in_group(group) < max_cells
    kept = np.zeros_like(filled)
    kept[group[is_kept], slot[is_kept]] = filled[group[is_kept], slot[is_kept]]
    return kept
