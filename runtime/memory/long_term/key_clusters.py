"""ReSV's long-term memory (V-Rex, arXiv 2512.12284): keys in clusters, in each layer and KV head
alone, read by cluster.

A chunk that leaves the recent window is clustered by the hash bits of its keys as they are cached,
before rotation: which keys the paper hashes, and whether it scores rotated means, was not found. A
cluster keeps the mean of its keys, their number, and its tokens one after the other in cells that
no other cluster uses. A reader scores the means with its query and reads the cells of the clusters
that WiCSum chooses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.pages import EMPTY, HostPool, page_bytes, shifted
from vicort.runtime.errors import HostBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.cluster_cells import ClusterCells
from vicort.runtime.memory.long_term.cluster_runs import ClusterRuns, sort_into_runs
from vicort.runtime.memory.long_term.cluster_view import ClusterSnapshot, ClusterView
from vicort.runtime.memory.long_term.hash_clustering import HashPlanes, assign
from vicort.runtime.memory.long_term.protocols import Departing, LongTermSize, View
from vicort.runtime.memory.long_term.readers import ChunkBefore, EachStep
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.long_term.sorted_groups import rank_in_group
from vicort.runtime.memory.page_tables import NONE

if TYPE_CHECKING:
    from vicort.runtime.policies.long_term import KeyClusters

SPARE = 16  # one cell in SPARE stands in for evicted cells that a question still reads
NO_CLUSTER = np.iinfo(np.int64).max  # newest serial of a slot that names no cluster


class KeyClusterMemory:
    """Clusters of G = L x Hkv groups, in at most S slots a group.

    A cluster is named by the slot of its first cell. An array over slots holds what is known of the
    cell, or of the cluster that the slot names.
    """

    recall_sets = 1
    holds_window = False
    reads_in_prefill = True

    def __init__(
        self, model: ModelSpec, host_mb: float, dtype: DTypeLike, settings: KeyClusters
    ) -> None:
        """Allocates all of `host_mb` MB. Raises MemoryBudgetError if it does not hold a chunk whose
        every token is a cluster."""
        self.model, self.settings = model, settings
        size = key_clusters_size(model, host_mb, dtype, settings)
        self.max_cells = size.max_cells
        groups, cells = model.layers * model.kv_heads, size.slots
        self.capacity = live_cells(cells)  # cells of a group that may be live
        self.pool = HostPool(np.empty, model, cells, dtype, by_head=True)
        self._data = self.pool.data.reshape(cells, groups, 2, model.page_tokens, model.head_dim)
        self._positions = self.pool.cell_positions.reshape(cells, groups, model.page_tokens, 3)
        self._planes = HashPlanes(groups, settings.hash_bits, model.head_dim, settings.seed)
        self._cells = ClusterCells(groups, cells)
        # [S, G, T] of each token: how many came before it
        self._serials = np.zeros((cells, groups, model.page_tokens), np.int64)
        # of the cluster that a slot names: [G, S, D] mean key; [G, S] number of tokens, serial of
        # the newest, last cell
        self._means = np.zeros((groups, cells, model.head_dim), np.float32)
        self._tokens = np.zeros((groups, cells), np.int32)
        self._newest = np.full((groups, cells), NO_CLUSTER)
        self._last_cells = np.full((groups, cells), NONE, np.int32)
        # [G, S] slots of the clusters in the order they were opened; the first `_counts` [G] count
        self._clusters = np.full((groups, cells), NONE, np.int32)
        self._counts = np.zeros(groups, np.int64)
        self._pages: list[Page] = []
        self._first_serials: list[int] = []  # of each unit in `_pages`
        self._next_serial = 0
        self._prune_pages_at = 64  # length of `_pages` at which units without tokens are dropped
        self.capped = 0  # how often `max_cells` cut the choice of a layer and head

    @property
    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest unit of which a token is left."""
        return self._pages[self._oldest_page()].start if self._pages else None

    # ---- called in the order of the stream

    def absorb(self, departing: Departing) -> None:
        """Clusters a chunk, unit by unit. Evicts the clusters whose newest token is oldest until as
        many cells are free as the chunk has tokens."""
        self._cells.advance()
        self._evict_for(len(departing.unit))
        k, v = self._by_group(departing.k), self._by_group(departing.v)
        bounds = np.searchsorted(departing.unit, np.arange(len(departing.pages) + 1)).tolist()
        for page, start, end in zip(departing.pages, bounds[:-1], bounds[1:], strict=True):
            self._first_serials.append(self._next_serial)
            self._pages.append(page)
            self._write_unit(k[:, start:end], v[:, start:end], departing.positions[start:end])
            self._next_serial += end - start

    def view(self, leased: bool = True, within: TimeRange | None = None) -> ClusterView:
        return ClusterView(self.snapshot(leased, within), self.count_capped)

    def snapshot(self, leased: bool, within: TimeRange | None = None) -> ClusterSnapshot:
        """The clusters as they are now. within: only their tokens of units that overlap this
        range."""
        groups = np.arange(len(self._counts))[:, None]
        moment = self._cells.lease() if leased else None
        count = int(self._counts.max())
        clusters = self._clusters[:, :count].copy()
        exists = np.arange(count) < self._counts[:, None]
        columns, slots = self.recent()
        return ClusterSnapshot(
            model=self.model,
            share=self.settings.share,
            max_cells=self.max_cells,
            cells=self._cells,
            moment=moment,
            clusters=clusters,
            tokens=np.where(exists, self._tokens[groups, clusters], 0),
            recent=np.maximum(columns, 0),
            recent_means=self._means[groups, slots],
            means=self._means,
            serials=self._serials,
            used_slots=self._cells.used,
            first_serials=self._first_serials,
            pages=self._pages,
            within=self._serials_within(within) if within else None,
        )

    def _serials_within(self, within: TimeRange) -> tuple[int, int]:
        """The serial of the first token of the units that overlap a range, and one more than that
        of their last; the same twice if there is none."""
        inside = within.slice_of(self._pages, lambda page: page)
        bounds = [*self._first_serials, self._next_serial]
        return bounds[inside.start], bounds[inside.stop]

    def shift(self, steps: int, floor: int) -> None:
        self._cells.wait_unleased()
        moved = shifted(self.pool.cell_positions, np.array([steps, 0, 0]), floor)
        self.pool.cell_positions[:] = moved

    def cells_in_use(self) -> float:
        return float(self._cells.live.mean())

    def cluster_tokens(self) -> np.ndarray:
        """[clusters] the number of tokens in each, of all layers and heads."""
        return self._tokens[self._tokens > 0]

    def reader(self, view: View, recalls: Sequence[Recall]) -> EachStep:
        return EachStep(self.model, view, self.pool, recalls[0])

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> ChunkBefore:
        return ChunkBefore(self.model, view, self.pool, recalls[0])

    def close(self) -> None:
        self._cells.close()

    # ---- clusters

    def recent(self) -> tuple[np.ndarray, np.ndarray]:
        """The R clusters opened last in each group, oldest first.

        Returns their columns in the list of all clusters, negative where there are fewer than R,
        and their slots: both [G, R].
        """
        columns = self._counts[:, None] - self.settings.recent + np.arange(self.settings.recent)
        return columns, np.take_along_axis(self._clusters, np.maximum(columns, 0), axis=1)

    def _write_unit(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> None:
        """Clusters one unit's tokens and writes them. k, v: [G, n, D]; positions: [n, 3]."""
        keys = k.astype(np.float32, copy=False)
        columns, slots = self.recent()
        groups = np.arange(len(k))[:, None]
        tokens = self._tokens[groups, slots]
        takes_tokens = (columns >= 0) & (tokens < self.settings.most_tokens)
        newness = np.where(takes_tokens, np.arange(self.settings.recent)[::-1], NONE)
        chosen = assign(
            self._planes.bits(keys),
            self._planes.bits(self._means[groups, slots]),
            newness,
            self.settings.threshold,
        )
        last_cells = self._last_cells[groups, slots]
        runs = sort_into_runs(chosen, slots, tokens, last_cells, self.model.page_tokens)
        cluster, slot = runs.allocate(self._cells)

        group, token, opens = runs.group, runs.token, runs.opens_cell
        cell = runs.index % self.model.page_tokens
        self._data[slot, group, 0, cell] = k[group, token]
        self._data[slot, group, 1, cell] = v[group, token]
        self._positions[slot[opens], group[opens]] = EMPTY
        self._positions[slot, group, cell] = positions[token]
        self._serials[slot, group, cell] = self._next_serial + token
        self._update_clusters(runs, cluster, slot, keys)

    def _update_clusters(
        self, runs: ClusterRuns, cluster: np.ndarray, slot: np.ndarray, keys: np.ndarray
    ) -> None:
        """Updates mean, token count, newest token and last cell of each run's cluster, and lists
        the new ones.

        cluster, slot: [m], as `ClusterRuns.allocate` returns them; keys: [G, n, D]. A cluster of
        three tokens with mean 1.0 that gets keys 2.0 and 5.0 has then five tokens with mean
        1.0 + (7.0 - 2 x 1.0) / (3 + 2) = 2.0.
        """
        first, last = runs.starts, runs.ends - 1
        group, cluster = runs.group[first], cluster[first]  # [r], of each run
        before = runs.index[first].astype(np.float32)  # tokens it had; 0 of a new one
        added = (runs.ends - first).astype(np.float32)
        sums = np.add.reduceat(keys[runs.group, runs.token], first, axis=0)
        mean = np.where(before[:, None] > 0, self._means[group, cluster], 0)
        self._means[group, cluster] = (
            mean + (sums - added[:, None] * mean) / (before + added)[:, None]
        )
        self._tokens[group, cluster] = runs.index[last] + 1
        self._newest[group, cluster] = self._next_serial + runs.token[last]
        self._last_cells[group, cluster] = slot[last]

        is_new = runs.is_new[first]
        new_group = group[is_new]
        column = self._counts[new_group] + rank_in_group(new_group)
        self._clusters[new_group, column] = cluster[is_new]
        self._counts += np.bincount(new_group, minlength=len(self._counts))

    def _evict_for(self, cells: int) -> None:
        """Evicts clusters until `cells` more cells fit in every group."""
        for group in np.flatnonzero(self._cells.live + cells > self.capacity).tolist():
            self._evict(group, int(self._cells.live[group]) + cells - self.capacity)
        if len(self._pages) >= self._prune_pages_at:
            self._prune_pages()
            # doubled, so that the cost a chunk stays small
            self._prune_pages_at = 2 * len(self._pages) + 64

    def _evict(self, group: int, cells: int) -> None:
        """Evicts the clusters whose newest token is oldest until `cells` cells are free.

        Newest serials of four clusters [8, 3, 12, 5], two cells to free: the two clusters at 3 and
        5 are looked at, as each has at least one cell. If the first has two, the second stays.
        """
        newest, count = self._newest[group, : self._cells.used], int(self._counts[group])
        candidates = min(cells, count)
        oldest = np.argpartition(newest, candidates - 1)[:candidates]
        for cluster in oldest[np.argsort(newest[oldest])].tolist():
            cells -= self._cells.free(group, cluster)
            self._newest[group, cluster], self._tokens[group, cluster] = NO_CLUSTER, 0
            if cells <= 0:
                break
        listed = self._clusters[group, :count]
        kept = listed[self._tokens[group, listed] > 0]
        self._clusters[group, : len(kept)] = kept
        self._counts[group] = len(kept)

    def _prune_pages(self) -> None:
        """Drops units of which no token is left; views keep the lists that they have."""
        first = self._oldest_page()
        self._first_serials, self._pages = self._first_serials[first:], self._pages[first:]

    def _oldest_page(self) -> int:
        """Index in `_pages` of the oldest unit of which a token is left.

        A group's oldest token is the first of its first cluster.
        """
        groups = np.flatnonzero(self._counts)
        first_tokens = self._serials[self._clusters[groups, 0], groups, 0]
        oldest = int(first_tokens.min(initial=self._next_serial))
        return max(bisect_right(self._first_serials, oldest) - 1, 0)

    def _by_group(self, tokens: np.ndarray) -> np.ndarray:
        """[L, n, Hkv, D] -> [G, n, D]"""
        return tokens.swapaxes(1, 2).reshape(-1, tokens.shape[1], tokens.shape[3])

    def count_capped(self, groups: int) -> None:
        self.capped += groups


def key_clusters_size(
    model: ModelSpec, host_mb: float, dtype: DTypeLike, settings: KeyClusters
) -> LongTermSize:
    """Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` does not hold a
    chunk whose every token is a cluster."""
    cells = int(host_mb * 1e6) // bytes_of_slot(model, dtype)
    chunk_tokens = model.chunk_frames // 2 * model.unit_tokens
    if live_cells(cells) < chunk_tokens:
        min_cells = chunk_tokens + chunk_tokens // (SPARE - 1) + 2
        raise HostBudgetError(
            host_mb,
            min_cells * bytes_of_slot(model, dtype),
            f"the clusters of one chunk of {model.chunk_frames} frames",
        )
    return LongTermSize(
        slots=cells,
        max_cells=settings.most_cells,
        recall_sets=KeyClusterMemory.recall_sets,
        reads_in_prefill=KeyClusterMemory.reads_in_prefill,
    )


def live_cells(cells: int) -> int:
    """Of the cells of a layer and head: how many may be live at a time."""
    return cells - cells // SPARE


def bytes_of_slot(model: ModelSpec, dtype: DTypeLike) -> int:
    """The bytes that a slot costs: a cell of every layer and head with its positions, and what is
    known of the cell and of the cluster that it names."""
    groups = model.layers * model.kv_heads
    # mean, tokens, newest, last cell, entry in the list
    of_cluster = model.head_dim * 4 + 4 + 8 + 4 + 4
    of_cell = model.page_tokens * 8 + ClusterCells.bytes_of_cell()
    return page_bytes(model, dtype, by_head=True) + groups * (of_cell + of_cluster)
