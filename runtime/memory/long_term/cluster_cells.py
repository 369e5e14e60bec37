"""Which cells of a pool belong to which cluster, each layer and KV head (group) for itself, and
which of them questions hold fast."""

from __future__ import annotations

import threading
from collections import Counter, deque

import numpy as np

NONE = -1


class ClusterCells:
    """Slots 0, 1, … of each group. A cluster goes by the slot of its first cell; its cells are
    linked in the order they were filled.

    Cells that are freed while questions hold memory as it was are given out again when those have
    ended: `take` waits for that. Thread-safe: the stream takes and frees, questions hold and read.
    """

    def __init__(self, groups: int, cells: int) -> None:
        self.live = np.zeros(groups, np.int64)  # cells taken and not freed, a group
        self.used = 0  # slots that were ever taken are below this
        self._owner = np.full((groups, cells), NONE, np.int32)  # cluster of each cell
        self._ordinal = np.zeros((groups, cells), np.int32)  # which of its cluster's cells it is
        self._next = np.full((groups, cells), NONE, np.int32)
        # a stack a group
        self._free = np.tile(np.arange(cells - 1, -1, -1, dtype=np.int32), (groups, 1))
        self._depth = np.full(groups, cells)  # of the stacks
        # moment, group, slots: freed, but perhaps held
        self._left: deque[tuple[int, int, list[int]]] = deque()
        self._holds: Counter[int] = Counter()  # by moment
        self._moment = 0
        self._closed = False
        self._changed = threading.Condition()

    @staticmethod
    def bytes_of_cell() -> int:
        """That a cell costs here."""
        return 4 * np.dtype(np.int32).itemsize

    def take(self, counts: np.ndarray) -> np.ndarray:
        """counts[g] slots of each group, group after group: [sum] int32."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._depth >= counts).all())
            if self._closed:
                raise RuntimeError("the memory is closed")
            self._depth -= counts
            self.live += counts
            taken = [
                self._free[group, depth : depth + count][::-1]
                for group, (depth, count) in enumerate(zip(self._depth, counts, strict=True))
            ]
            slots = np.concatenate(taken)
            self.used = max(self.used, int(slots.max(initial=-1)) + 1)
            return slots

    def link(
        self,
        group: np.ndarray,
        slot: np.ndarray,
        cluster: np.ndarray,
        ordinal: np.ndarray,
        before: np.ndarray,
    ) -> None:
        """Taken slots become the cells `ordinal` of clusters, behind cells `before`, NONE for the
        first; all [m]."""
        with self._changed:
            self._owner[group, slot], self._ordinal[group, slot] = cluster, ordinal
            follows = before != NONE
            self._next[group[follows], before[follows]] = slot[follows]

    def free(self, group: int, cluster: int) -> int:
        """Give all cells of a cluster back; returns how many."""
        with self._changed:
            slots, slot = [], cluster
            while slot != NONE:
                slots.append(slot)
                slot = int(self._next[group, slot])
            self.live[group] -= len(slots)
            self._left.append((self._moment, group, slots))
            self._reclaim()
            return len(slots)

    def advance(self) -> None:
        """What is freed from now on was still there in all holds so far."""
        with self._changed:
            self._moment += 1

    def hold(self) -> int:
        """Keep all cells as they are now, until `release` of what this returns."""
        with self._changed:
            self._holds[self._moment] += 1
            return self._moment

    def release(self, moment: int) -> None:
        with self._changed:
            self._holds[moment] -= 1
            if not self._holds[moment]:
                del self._holds[moment]
            self._reclaim()
            self._changed.notify_all()

    def filled(self, tokens: np.ndarray, page_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each cell its cluster and the tokens it held when its cluster held tokens[group,
        cluster] [G, C]: both [G, C]."""
        width = tokens.shape[1]
        with self._changed:
            owner, ordinal = self._owner[:, :width].copy(), self._ordinal[:, :width].copy()
        held = np.where(
            owner == NONE, 0, np.take_along_axis(tokens, np.clip(owner, 0, width - 1), axis=1)
        )
        return owner, np.clip(held - ordinal * page_tokens, 0, page_tokens)

    def wait_unheld(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._holds)

    def close(self) -> None:
        """Wake whoever waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _reclaim(self) -> None:
        oldest = min(self._holds, default=self._moment + 1)
        while self._left and self._left[0][0] <= oldest:
            _, group, slots = self._left.popleft()
            self._owner[group, slots] = NONE
            self._next[group, slots] = NONE
            depth = self._depth[group]
            self._free[group, depth : depth + len(slots)] = slots[::-1]
            self._depth[group] += len(slots)
