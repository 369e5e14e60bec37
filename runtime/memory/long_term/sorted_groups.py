"""Values that are sorted by group (a layer and KV head, or a bucket), numbered and packed."""

from __future__ import annotations

import numpy as np


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """Numbers each element among those of its group, from 0.

    group: [m] integers, ascending. Returns [m] int64.

    >>> rank_in_group(np.array([0, 0, 2, 2, 2])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(len(group)) - np.searchsorted(group, group)


def pack_rows(group: np.ndarray, values: np.ndarray, groups: int, fill: int) -> np.ndarray:
    """Packs values into one row a group, each row as long as the longest.

    group: [m] ascending; values: [m] -> [groups, N] int32, short rows padded with `fill`.

    >>> pack_rows(np.array([0, 0, 2]), np.array([7, 5, 9]), groups=3, fill=-1).tolist()
    [[7, 5], [-1, -1], [9, -1]]
    """
    column = rank_in_group(group)
    rows = np.full((groups, int(column.max(initial=-1)) + 1), fill, np.int32)
    rows[group, column] = values
    return rows
