"""ReSV's long-term memory (V-Rex, arXiv 2512.12284): keys in clusters, each layer and KV head for
itself, read by cluster.

A chunk that leaves the recent window is clustered by the hash bits of its keys as they are cached,
before rotation: which keys the paper hashes, and whether it scores rotated means, was not found. A
cluster keeps the mean of its keys, how many they are, and its tokens one behind the other in cells
of its own. A reader scores the means with its query and takes the cells of what WiCSum chooses.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page
from vicort.runtime.devices.pages import EMPTY, HostPool, page_bytes, shifted
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.cluster_cells import ClusterCells
from vicort.runtime.memory.long_term.hash_clustering import HashPlanes, assign
from vicort.runtime.memory.long_term.long_term import Departing, View
from vicort.runtime.memory.long_term.readers import ChunkBefore, EachStep
from vicort.runtime.memory.long_term.selection import NONE, Recall, Selection
from vicort.runtime.memory.long_term.wicsum import wicsum

if TYPE_CHECKING:
    from vicort.runtime.policies.long_term import KeyClusters

SPARE = 16  # one cell in so many stands in for cells that are forgotten while a question reads them
UNTAKEN = np.iinfo(np.int64).max  # in `newest`: no cluster goes by this slot


class KeyClusterMemory:
    """G = L x Hkv groups. A cluster goes by the slot of its first cell; arrays over slots hold what
    is known of cluster or cell."""

    recall_sets = 1
    reads_in_prefill = True

    def __init__(
        self, model: ModelSpec, host_mb: float, dtype: DTypeLike, settings: KeyClusters
    ) -> None:
        """Allocates all of `host_mb` MB. Raises MemoryBudgetError if it does not hold a chunk whose
        every token is a cluster."""
        self.model, self.settings = model, settings
        self.max_cells = settings.most_cells
        groups, cells = (
            model.layers * model.kv_heads,
            int(host_mb * 1e6) // bytes_of_slot(model, dtype),
        )
        self.room = cells - cells // SPARE  # cells of a group that may be live
        self._chunk_tokens = model.chunk_frames // 2 * model.unit_tokens
        if self.room < self._chunk_tokens:
            least = (
                math.ceil(
                    (self._chunk_tokens + self._chunk_tokens // (SPARE - 1) + 2)
                    * bytes_of_slot(model, dtype)
                    / 1e4
                )
                / 100
            )
            raise MemoryBudgetError(
                f"a host budget of {host_mb:g} MB is too small for the clusters of one chunk of "
                f"{model.chunk_frames} frames: "
                f"set memory.host_mb to at least {least:g}"
            )
        self.pool = HostPool(np.empty, model, cells, dtype, by_head=True)
        self._data = self.pool.data.reshape(cells, groups, 2, model.page_tokens, model.head_dim)
        self._where = self.pool.cell_positions.reshape(cells, groups, model.page_tokens, 3)
        self._planes = HashPlanes(groups, settings.hash_bits, model.head_dim, settings.seed)
        self._cells = ClusterCells(groups, cells)
        # of each token: how many came before it
        self._serials = np.zeros((cells, groups, model.page_tokens), np.int64)
        self._mean = np.zeros((groups, cells, model.head_dim), np.float32)
        self._tokens = np.zeros((groups, cells), np.int32)
        self._newest = np.full((groups, cells), UNTAKEN)  # serial of the cluster's newest token
        self._last = np.full((groups, cells), NONE, np.int32)  # the cluster's last cell
        # in the order they were opened, `_count` of them
        self._clusters = np.full((groups, cells), NONE, np.int32)
        self._count = np.zeros(groups, np.int64)
        self._first_serial: list[int] = []  # of each unit in `_pages`
        self._pages: list[Page] = []
        self._taken = 0  # tokens so far
        self._tidy_at = 64  # how many pages are listed when those without tokens are looked for
        self.capped = 0  # how often a layer and head of a selection had to do with `max_cells`

    @property
    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest unit of which a token is left."""
        return self._pages[self._oldest_page()].start if self._pages else None

    # ---- what the stream does
    # -------------------------------------------------------------------------------------------

    def absorb(self, departing: Departing) -> None:
        """Cluster a chunk, unit by unit; to make room for as many cells as it has tokens, the
        clusters whose newest token is oldest go."""
        self._cells.advance()
        self._make_room(len(departing.unit))
        k, v = (self._by_group(tokens) for tokens in (departing.k, departing.v))
        starts = np.searchsorted(departing.unit, np.arange(len(departing.pages) + 1))
        for page, start, end in zip(departing.pages, starts[:-1], starts[1:], strict=True):
            self._first_serial.append(self._taken)
            self._pages.append(page)
            self._place(k[:, start:end], v[:, start:end], departing.positions[start:end])
            self._taken += int(end - start)

    def view(self, leased: bool = True) -> ClusterView:
        return ClusterView(self, leased)

    def shift(self, steps: int, floor: int) -> None:
        self._cells.wait_unheld()
        self.pool.cell_positions[:] = shifted(
            self.pool.cell_positions, np.array([steps, 0, 0]), floor
        )

    def cells_in_use(self) -> float:
        return float(self._cells.live.mean())

    def cluster_tokens(self) -> np.ndarray:
        """[clusters] how many tokens each holds, of all layers and heads."""
        return self._tokens[self._tokens > 0]

    def reader(self, view: View, recalls: Sequence[Recall]) -> EachStep:
        return EachStep(self.model, view, self.pool, recalls[0])

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> ChunkBefore:
        return ChunkBefore(self.model, view, self.pool, recalls[0])

    def close(self) -> None:
        self._cells.close()

    # ---- clusters
    # -------------------------------------------------------------------------------------------------------

    def recent(self) -> tuple[np.ndarray, np.ndarray]:
        """The clusters that were opened last, oldest first: where they stand among all, [G, R], and
        their slots; where < 0: none."""
        place = self._count[:, None] - self.settings.recent + np.arange(self.settings.recent)
        return place, np.take_along_axis(self._clusters, np.maximum(place, 0), axis=1)

    def _place(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> None:
        """One unit's tokens. k, v: [G, n, D]; positions: [n, 3]."""
        places, slots = self.recent()
        groups = np.arange(len(k))[:, None]
        open_now = (places >= 0) & (self._tokens[groups, slots] < self.settings.most_tokens)
        newness = np.where(open_now, np.arange(self.settings.recent)[::-1], NONE)
        keys = k.astype(np.float32, copy=False)
        joined = assign(
            self._planes.bits(keys),
            self._planes.bits(self._mean[groups, slots]),
            newness,
            self.settings.threshold,
        )
        run = _Runs(
            joined,
            slots,
            self._tokens[groups, slots],
            self._last[groups, slots],
            self.model.page_tokens,
        )
        run.fill(self._cells)
        group, token, slot, cell = (
            run.group,
            run.token,
            run.slot,
            run.index % self.model.page_tokens,
        )
        self._data[slot, group, 0, cell] = k[group, token]
        self._data[slot, group, 1, cell] = v[group, token]
        self._where[slot[run.opens], group[run.opens]] = EMPTY
        self._where[slot, group, cell] = positions[token]
        self._serials[slot, group, cell] = self._taken + token
        self._update(run, keys)

    def _update(self, run: _Runs, keys: np.ndarray) -> None:
        """Means, counts and the newest token of the clusters that got tokens; new ones are
        listed."""
        first, last = run.starts, run.ends - 1
        group, cluster, added = (
            run.group[first],
            run.cluster[first],
            (run.ends - first).astype(np.float32),
        )
        sums = np.add.reduceat(keys[run.group, run.token], first, axis=0)
        before = run.index[first].astype(np.float32)  # tokens it held; of a new one 0
        mean = np.where(before[:, None] > 0, self._mean[group, cluster], 0)
        self._mean[group, cluster] = (
            mean + (sums - added[:, None] * mean) / (before + added)[:, None]
        )
        self._tokens[group, cluster] = run.index[last] + 1
        self._newest[group, cluster] = self._taken + run.token[last]
        self._last[group, cluster] = run.slot[last]
        new = run.index[first] == 0
        counts = np.bincount(group[new], minlength=len(self._count))
        order = np.arange(len(group[new])) - np.repeat(np.cumsum(counts) - counts, counts)
        self._clusters[group[new], self._count[group[new]] + order] = cluster[new]
        self._count += counts

    def _make_room(self, cells: int) -> None:
        for group in np.flatnonzero(self._cells.live + cells > self.room):
            self._forget(int(group), int(self._cells.live[group]) + cells - self.room)
        if len(self._pages) >= self._tidy_at:
            self._forget_pages()
            self._tidy_at = 2 * len(self._pages) + 64  # so that it costs little

    def _forget(self, group: int, cells: int) -> None:
        """Drop the clusters whose newest token is oldest until so many cells are free."""
        newest, count = self._newest[group, : self._cells.used], int(self._count[group])
        most = min(cells, count) - 1  # each has a cell at least
        oldest = np.argpartition(newest, most)[: most + 1]
        for cluster in oldest[np.argsort(newest[oldest])].tolist():
            cells -= self._cells.free(group, cluster)
            self._newest[group, cluster], self._tokens[group, cluster] = UNTAKEN, 0
            if cells <= 0:
                break
        listed = self._clusters[group, :count]
        kept = listed[self._tokens[group, listed] > 0]
        self._clusters[group, : len(kept)] = kept
        self._count[group] = len(kept)

    def _forget_pages(self) -> None:
        """Units of which no token is left. Views hold the lists as they were."""
        first = self._oldest_page()
        self._first_serial, self._pages = self._first_serial[first:], self._pages[first:]

    def _oldest_page(self) -> int:
        """Which of `_pages` is the oldest of which a token is left: the first of a group's first
        cluster."""
        held = np.flatnonzero(self._count)
        oldest = int(self._serials[self._clusters[held, 0], held, 0].min(initial=self._taken))
        return max(bisect_right(self._first_serial, oldest) - 1, 0)

    def _by_group(self, tokens: np.ndarray) -> np.ndarray:
        """[L, n, Hkv, D] -> [G, n, D]"""
        return tokens.swapaxes(1, 2).reshape(-1, tokens.shape[1], tokens.shape[3])


class _Runs:
    """A unit's tokens, of all groups, sorted by group and cluster: each cluster's follow one
    another, in the order of the stream."""

    def __init__(
        self,
        joined: np.ndarray,
        slots: np.ndarray,
        tokens: np.ndarray,
        last: np.ndarray,
        page_tokens: int,
    ) -> None:
        """joined: [G, n] as `assign` gives it; slots, tokens, last: [G, R] of the recent clusters,
        their cells filled last."""
        groups, count = joined.shape
        recent, width = slots.shape[1], slots.shape[1] + count
        local = (np.arange(groups)[:, None] * width + joined).ravel()
        order = np.argsort(local, kind="stable")
        local = local[order]
        self.group, self.token = np.divmod(order, count)
        self.starts = np.flatnonzero(np.diff(local, prepend=-1))
        self.ends = np.append(self.starts[1:], len(local))
        run = np.repeat(np.arange(len(self.starts)), self.ends - self.starts)
        self._place = joined[self.group, self.token]
        self._new = joined[self.group, self.token] >= recent
        old = self.group, np.where(self._new, 0, self._place)
        # of each token in its cluster
        self.index = np.where(self._new, 0, tokens[old]) + np.arange(len(local)) - self.starts[run]
        self.opens = self.index % page_tokens == 0  # a cell
        self.cluster = np.where(self._new, NONE, slots[old])
        self._last = np.where(self._new, NONE, last[old])
        self._run = run
        self._groups = groups
        self._page_tokens = page_tokens

    def fill(self, cells: ClusterCells) -> None:
        """Sets `slot` of each token, and `cluster` of those that are new."""
        opens = self.opens
        taken = cells.take(np.bincount(self.group[opens], minlength=self._groups))
        # token that opened the newest cell so far
        newest = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), -1))
        here = newest >= self.starts[self._run]  # in this run
        self.slot = np.where(
            here, taken[np.maximum(np.cumsum(opens) - 1, 0)] if len(taken) else NONE, self._last
        )
        self.cluster = np.where(self._new, self.slot[self.starts][self._run], self.cluster)
        begins = np.zeros(len(opens), bool)
        begins[self.starts] = True
        before = np.where(begins, self._last, np.roll(self.slot, 1))
        cells.link(
            self.group[opens],
            taken,
            self.cluster[opens],
            self.index[opens] // self._page_tokens,
            before[opens],
        )


class ClusterView:
    """The clusters as they were: those that still took tokens by copies, those that did not by
    their slots."""

    def __init__(self, memory: KeyClusterMemory, leased: bool) -> None:
        self._memory, self._leased = memory, leased
        self._moment = memory._cells.hold() if leased else 0
        most = int(memory._count.max())
        groups = np.arange(len(memory._count))[:, None]
        self._clusters = memory._clusters[:, :most].copy()
        there = np.arange(most) < memory._count[:, None]
        self._tokens = np.where(there, memory._tokens[groups, self._clusters], 0)
        places, slots = memory.recent()
        self._recent, self._recent_mean = np.maximum(places, 0), memory._mean[groups, slots]
        self._used = memory._cells.used
        self._pages, self._first_serial = memory._pages, memory._first_serial

    def choose(self, q: np.ndarray) -> Selection:
        """WiCSum for each query head; a KV head reads what any of its query heads chose. At most
        `max_cells` cells: of more, those of the clusters to which one of its query heads gives the
        largest share a token."""
        memory = self._memory
        heads, clusters = memory.model.query_heads // memory.model.kv_heads, self._clusters.shape[1]
        if not clusters:
            return Selection.nothing(memory.model)
        scores = self._scores(q.reshape(-1, heads, q.shape[-1]))  # [G, heads, C]
        tokens = np.repeat(self._tokens, heads, axis=0)
        by_head = wicsum(scores.reshape(-1, clusters), tokens, memory.settings.share).reshape(
            scores.shape
        )
        return self._select(np.logical_or.reduce(by_head, axis=1), scores)

    def pages(self, selection: Selection) -> list[Page]:
        layer, head, place = np.nonzero(selection.filled)
        group, slot = (
            layer * self._memory.model.kv_heads + head,
            selection.cells[layer, head, place],
        )
        there = (
            np.arange(self._memory.model.page_tokens)
            < selection.filled[layer, head, place][:, None]
        )
        units = (
            np.searchsorted(self._first_serial, self._memory._serials[slot, group][there], "right")
            - 1
        )
        return [self._pages[unit] for unit in np.unique(units)]

    def release(self) -> None:
        """Once is enough; more does nothing."""
        if self._leased:
            self._leased = False
            self._memory._cells.release(self._moment)

    def _scores(self, q: np.ndarray) -> np.ndarray:
        """q . mean / sqrt(D). [G, heads, D] -> [G, heads, C]"""
        groups = np.arange(len(q))[:, None]
        means = self._memory._mean[groups, self._clusters]
        means[groups, self._recent] = self._recent_mean
        return q @ means.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))

    def _select(self, chosen: np.ndarray, scores: np.ndarray) -> Selection:
        """The cells of the chosen clusters [G, C], in the order of the stream."""
        memory, model = self._memory, self._memory.model
        group, column = np.nonzero(chosen)
        tokens = np.zeros((len(chosen), self._used), np.int32)
        tokens[group, self._clusters[group, column]] = self._tokens[group, column]
        cluster, filled = memory._cells.filled(tokens, model.page_tokens)
        group, slot = np.nonzero(filled)
        serial = memory._serials[slot, group, 0]
        counts = np.bincount(group, minlength=len(chosen))
        if counts.max(initial=0) > memory.max_cells:
            memory.capped += int((counts > memory.max_cells).sum())
            kept = _best(
                group, self._share(scores)[group, cluster[group, slot]], serial, memory.max_cells
            )
            group, slot, serial = group[kept], slot[kept], serial[kept]
            counts = np.minimum(counts, memory.max_cells)
        order = np.lexsort((serial, group))
        group, slot = group[order], slot[order]
        place = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        cells = np.full((len(chosen), int(counts.max(initial=0))), NONE, np.int32)
        held = np.zeros(cells.shape, np.int32)
        cells[group, place], held[group, place] = slot, filled[group, slot]
        shape = model.layers, model.kv_heads, cells.shape[1]
        return Selection(cells.reshape(shape), held.reshape(shape))

    def _share(self, scores: np.ndarray) -> np.ndarray:
        """[G, slots]: of each cluster, the logarithm of the largest share of attention that a query
        head would give one of its tokens."""
        weights = np.where(
            self._tokens[:, None] > 0,
            scores + np.log(np.maximum(self._tokens[:, None], 1)),
            -np.inf,
        )
        share = (scores - np.logaddexp.reduce(weights, axis=2, keepdims=True)).max(axis=1)
        group, column = np.nonzero(self._tokens)
        by_slot = np.full((len(scores), self._used), -np.inf)
        by_slot[group, self._clusters[group, column]] = share[group, column]
        return by_slot


def _best(group: np.ndarray, share: np.ndarray, serial: np.ndarray, most: int) -> np.ndarray:
    """Of cells [m], those of each group's first `most` by share, of equals the older."""
    order = np.lexsort((serial, -share, group))
    ranked = group[order]
    return order[np.arange(len(order)) - np.searchsorted(ranked, ranked) < most]


def bytes_of_slot(model: ModelSpec, dtype: DTypeLike) -> int:
    """What a slot costs: a cell of every layer and head, with its positions, and what is known of
    it and of a cluster that goes by it."""
    groups = model.layers * model.kv_heads
    # mean, tokens, newest, last cell, its place in the list
    of_cluster = model.head_dim * 4 + 4 + 8 + 4 + 4
    return page_bytes(model, dtype, by_head=True) + groups * (
        model.page_tokens * 8 + of_cluster + ClusterCells.bytes_of_cell()
    )
