"""The cells of a pool that belong to each cluster, and their leases. Each layer and KV head (group)
has its own."""

from __future__ import annotations

import threading
from collections import Counter, deque

import numpy as np

from vicort.runtime.memory.page_tables import NONE


class ClusterCells:
    """Slots 0, 1, … of each group. A cluster is named by the slot of its first cell; its cells are
    linked in the order in which they were filled.

    Cells that are freed under a lease are allocated again only when the leases of that time have
    ended: `allocate` waits for it. Thread-safe: the stream allocates and frees, questions lease
    and read.

    Cluster 0 fills cells 0 and 2, cluster 1 has cell 1. With cells of 4 tokens, clusters of 5 and 2
    tokens fill them like this:

    >>> cells = ClusterCells(groups=1, cells=4)
    >>> slots = cells.allocate(np.array([3]))
    >>> slots.tolist()
    [0, 1, 2]
    >>> group, cluster = np.array([0, 0, 0]), np.array([0, 1, 0])
    >>> cells.link(group, slots, cluster, np.array([0, 0, 1]), previous=np.array([NONE, NONE, 0]))
    >>> cluster, filled = cells.filled(np.array([[5, 2, 0]]), page_tokens=4)
    >>> cluster.tolist(), filled.tolist()
    ([[0, 1, 0]], [[4, 2, 1]])
    >>> cells.free(group=0, cluster=0)
    2
    """

    def __init__(self, groups: int, cells: int) -> None:
        self.live = np.zeros(groups, np.int64)  # [G] cells allocated and not freed
        self.used = 0  # every slot that was ever allocated is below this
        self._owner = np.full((groups, cells), NONE, np.int32)  # cluster of each cell
        self._ordinal = np.zeros((groups, cells), np.int32)  # which of its cluster's cells it is
        self._next = np.full((groups, cells), NONE, np.int32)  # cell of the same cluster
        # [G, cells] a stack of free slots for each group, and [G] how deep it is
        self._free = np.tile(np.arange(cells - 1, -1, -1, dtype=np.int32), (groups, 1))
        self._depth = np.full(groups, cells)
        # (moment, group, slots) of cells that were freed and may still be leased
        self._freed: deque[tuple[int, int, list[int]]] = deque()
        self._leases: Counter[int] = Counter()  # by moment
        self._moment = 0
        self._closed = False
        self._changed = threading.Condition()

    @staticmethod
    def bytes_of_cell() -> int:
        """The bytes that this class keeps for a cell."""
        return 4 * np.dtype(np.int32).itemsize

    def allocate(self, counts: np.ndarray) -> np.ndarray:
        """Allocates counts[g] slots in each group; waits until enough of them are free.

        Returns [sum of counts] int32, group after group. Raises RuntimeError once closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._depth >= counts).all())
            if self._closed:
                raise RuntimeError("the memory is closed")
            self._depth -= counts
            self.live += counts
            allocated = [
                self._free[group, depth : depth + count][::-1]
                for group, (depth, count) in enumerate(zip(self._depth, counts, strict=True))
            ]
            slots = np.concatenate(allocated)
            self.used = max(self.used, int(slots.max(initial=-1)) + 1)
            return slots

    def link(
        self,
        group: np.ndarray,
        slot: np.ndarray,
        cluster: np.ndarray,
        ordinal: np.ndarray,
        previous: np.ndarray,
    ) -> None:
        """Adds allocated cells to clusters; all arrays are [m].

        ordinal: which of its cluster's cells each becomes; previous: the cell before it, NONE for a
        cluster's first.
        """
        with self._changed:
            self._owner[group, slot] = cluster
            self._ordinal[group, slot] = ordinal
            follows = previous != NONE
            self._next[group[follows], previous[follows]] = slot[follows]

    def free(self, group: int, cluster: int) -> int:
        """Frees all cells of a cluster; returns how many."""
        with self._changed:
            slots, slot = [], cluster
            while slot != NONE:
                slots.append(slot)
                slot = int(self._next[group, slot])
            self.live[group] -= len(slots)
            self._freed.append((self._moment, group, slots))
            self._reclaim()
            return len(slots)

    def advance(self) -> None:
        """Starts a new moment: leases so far keep what is freed from now on."""
        with self._changed:
            self._moment += 1

    def lease(self) -> int:
        """Keeps all cells as they are now; returns the moment to pass to `release`."""
        with self._changed:
            self._leases[self._moment] += 1
            return self._moment

    def release(self, moment: int) -> None:
        with self._changed:
            self._leases[moment] -= 1
            if not self._leases[moment]:
                del self._leases[moment]
            self._reclaim()
            self._changed.notify_all()

    def filled(self, tokens: np.ndarray, page_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each cell, and how many of its tokens lie in the cell.

        tokens: [G, C] tokens of each cluster, at the cluster's slot. Returns two arrays [G, C].
        """
        width = tokens.shape[1]
        with self._changed:
            owner, ordinal = self._owner[:, :width].copy(), self._ordinal[:, :width].copy()
        of_owner = np.take_along_axis(tokens, np.clip(owner, 0, width - 1), axis=1)
        cluster_tokens = np.where(owner == NONE, 0, of_owner)
        return owner, np.clip(cluster_tokens - ordinal * page_tokens, 0, page_tokens)

    def wait_unleased(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._leases)

    def close(self) -> None:
        """Wakes whoever waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _reclaim(self) -> None:
        oldest = min(self._leases, default=self._moment + 1)
        while self._freed and self._freed[0][0] <= oldest:
            _, group, slots = self._freed.popleft()
            self._owner[group, slots] = NONE
            self._next[group, slots] = NONE
            depth = self._depth[group]
            self._free[group, depth : depth + len(slots)] = slots[::-1]
            self._depth[group] += len(slots)
