"""One temporal unit's tokens, sorted by the clusters that they go to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vicort.runtime.memory.long_term.cluster_cells import ClusterCells
from vicort.runtime.memory.page_tables import NONE


@dataclass(frozen=True)
class ClusterRuns:
    """The m tokens of a unit, of all groups, sorted by group and cluster. The tokens of one cluster
    are a *run*, in the order of the stream; there are r runs.

    Clusters that the unit opens have no slot yet: `allocate` gives them one.
    """

    groups: int
    page_tokens: int
    group: np.ndarray  # [m] group of each token
    token: np.ndarray  # [m] its index in the unit
    run: np.ndarray  # [m] which run it is in
    index: np.ndarray  # [m] its index in its cluster
    is_new: np.ndarray  # [m] bool, whether the unit opens its cluster
    old_cluster: np.ndarray  # [m] slot of its cluster, NONE if that is new
    old_last_cell: np.ndarray  # [m] the cell its cluster filled last, NONE if that is new
    starts: np.ndarray  # [r] first token of each run
    ends: np.ndarray  # [r] one past its last token

    @property
    def opens_cell(self) -> np.ndarray:
        """[m] bool: tokens that begin a cell."""
        return self.index % self.page_tokens == 0

    def allocate(self, cells: ClusterCells) -> tuple[np.ndarray, np.ndarray]:
        """Allocates and links the cells that the tokens need.

        Returns the slot of each token's cluster and of its cell, both [m].
        """
        opens = self.opens_cell
        new_cells = cells.allocate(np.bincount(self.group[opens], minlength=self.groups))
        slot = self._cell_of_each_token(new_cells)
        cluster = np.where(self.is_new, slot[self.starts][self.run], self.old_cluster)
        cells.link(
            self.group[opens],
            new_cells,
            cluster[opens],
            self.index[opens] // self.page_tokens,
            self._previous_cell(slot)[opens],
        )
        return cluster, slot

    def _cell_of_each_token(self, new_cells: np.ndarray) -> np.ndarray:
        """[m]: the newest cell that its run opened so far, or else the last one of its cluster."""
        if not len(new_cells):
            return self.old_last_cell
        opens = self.opens_cell
        newest_opener = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), -1))
        in_new_cell = newest_opener >= self.starts[self.run]  # not opened by an earlier run
        newest_cell = new_cells[np.maximum(np.cumsum(opens) - 1, 0)]
        return np.where(in_new_cell, newest_cell, self.old_last_cell)

    def _previous_cell(self, slot: np.ndarray) -> np.ndarray:
        """[m]: the cell of the token before it in its cluster, NONE for a cluster's first."""
        begins_run = np.zeros(len(slot), bool)
        begins_run[self.starts] = True
        return np.where(begins_run, self.old_last_cell, np.roll(slot, 1))


def sort_into_runs(
    chosen: np.ndarray,
    slots: np.ndarray,
    tokens: np.ndarray,
    last_cells: np.ndarray,
    page_tokens: int,
) -> ClusterRuns:
    """Sorts a unit's tokens by cluster.

    chosen: [G, n], what `assign` returns; slots, tokens, last_cells: [G, R] of the recent clusters,
    the number of their tokens, and the cells that they filled last.

    One group, cells of four tokens. The recent clusters are named 7 and 4 and hold three tokens and
    four. Of three keys, the first and the third go to cluster 7, and the second opens a cluster.
    So the first fills the last place of cell 7, and the other two need a new cell each.

    >>> runs = sort_into_runs(
    ...     chosen=np.array([[0, 2, 0]]),
    ...     slots=np.array([[7, 4]]),
    ...     tokens=np.array([[3, 4]]),
    ...     last_cells=np.array([[7, 4]]),
    ...     page_tokens=4,
    ... )
    >>> runs.token.tolist(), runs.starts.tolist(), runs.index.tolist()
    ([0, 2, 1], [0, 2], [3, 4, 0])
    >>> cluster, slot = runs.allocate(ClusterCells(groups=1, cells=8))
    >>> cluster.tolist(), slot.tolist()
    ([7, 7, 1], [7, 0, 1])
    """
    groups, count = chosen.shape
    recent = slots.shape[1]
    # one number for each pair of group and cluster; a unit opens at most `count` clusters
    pair = (np.arange(groups)[:, None] * (recent + count) + chosen).ravel()
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    group, token = np.divmod(order, count)
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    ends = np.append(starts[1:], len(pair))
    run = np.repeat(np.arange(len(starts)), ends - starts)
    index_in_run = np.arange(len(pair)) - starts[run]

    is_new = chosen[group, token] >= recent
    old = group, np.where(is_new, 0, chosen[group, token])
    return ClusterRuns(
        groups=groups,
        page_tokens=page_tokens,
        group=group,
        token=token,
        run=run,
        index=np.where(is_new, 0, tokens[old]) + index_in_run,
        is_new=is_new,
        old_cluster=np.where(is_new, NONE, slots[old]),
        old_last_cell=np.where(is_new, NONE, last_cells[old]),
        starts=starts,
        ends=ends,
    )
