"""The order of patches in the vision encoder, and its attention windows: index arithmetic on a grid
of fixed size, done once when the encoder is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Patches are ordered by window, in a window by token (row-major), in a token row-major.

    S = patches of a unit, P = tokens of a unit, W = windows, K = patches of a full window.
    """

    patches: np.ndarray  # [S] int64: index in the row-major patch grid of each patch in this order
    tokens: np.ndarray  # [P] int64: index in this order of each token of the row-major grid
    count: int  # W
    # [W*K] int64: patch (in this order) of each cell of the windows; 0 for empty cells
    gather: np.ndarray
    filled: np.ndarray  # [W,K] bool: cells with a patch
    scatter: np.ndarray  # [S] int64: cell of each patch

    @property
    def whole(self) -> bool:
        """Every window is full, so neither gather nor mask is needed."""
        return bool(self.filled.all())


def arrange(rows: int, columns: int, merge: int, window: int) -> Windows:
    """rows, columns: of the token grid; merge: patches per side of a token; window: tokens per side
    of a window.

    Windows start at the upper left corner; those at the right and lower edge are cut where the grid
    ends.
    """
    window_rows, window_columns = min(window, rows), min(window, columns)
    down, across = -(-rows // window_rows), -(-columns // window_columns)
    grid = np.full((down * window_rows, across * window_columns), -1)
    grid[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    # token of each cell, -1 = empty
    by_window = (
        grid.reshape(down, window_rows, across, window_columns).transpose(0, 2, 1, 3).reshape(-1)
    )
    order = by_window[by_window >= 0]  # [P] tokens in window order

    cells = np.repeat(by_window >= 0, merge * merge)
    scatter = np.flatnonzero(cells)
    gather = np.zeros(cells.size, dtype=np.int64)
    gather[scatter] = np.arange(scatter.size)
    return Windows(
        patches=patches_of(order, columns, merge),
        tokens=np.argsort(order),
        count=down * across,
        gather=gather,
        filled=cells.reshape(down * across, -1),
        scatter=scatter,
    )


def window_of(rows: int, columns: int, window: int) -> np.ndarray:
    """[P] int64: the window of each token of the row-major grid, as in `arrange`."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return y // window * columns + x // window


def patches_of(order: np.ndarray, columns: int, merge: int) -> np.ndarray:
    """Index, in the row-major patch grid, of the merge*merge patches of each token in `order`."""
    row, column = np.divmod(order, columns)
    inner_row, inner_column = np.divmod(np.arange(merge * merge), merge)
    y = row[:, None] * merge + inner_row
    x = column[:, None] * merge + inner_column
    return (y * columns * merge + x).reshape(-1)
