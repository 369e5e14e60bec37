"""Where the visual tokens of a frame lie: the order in which the vision encoder holds its patches,
and its attention windows.

Everything here is index arithmetic on a grid of fixed size, done once, when the encoder is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Patches are held window after window, in a window token after token (row-major), in a token
    patch after patch (row-major).

    S = patches of a unit, P = tokens of a unit, W = windows, K = patches of a full window.
    """

    patches: np.ndarray  # [S] int64: which patch of the row-major patch grid stands at each place
    tokens: np.ndarray  # [P] int64: at which place each token of the row-major token grid stands
    count: int  # W
    # [W*K] int64: which place fills each cell of the windows; 0 where there is none
    gather: np.ndarray
    filled: np.ndarray  # [W,K] bool: the cells that hold a patch
    scatter: np.ndarray  # [S] int64: the cell that holds each place

    @property
    def whole(self) -> bool:
        """Every window is full: no gather is needed, and no mask."""
        return bool(self.filled.all())


def arrange(rows: int, columns: int, merge: int, window: int) -> Windows:
    """rows, columns: of the token grid; merge: patches a side of a token; window: tokens a side of
    a window.

    Windows start at the upper left corner; those at the right and lower edge are cut where the grid
    ends.
    """
    window_rows, window_columns = min(window, rows), min(window, columns)
    down, across = -(-rows // window_rows), -(-columns // window_columns)
    grid = np.full((down * window_rows, across * window_columns), -1)
    grid[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    # token of each cell, or -1
    by_window = (
        grid.reshape(down, window_rows, across, window_columns).transpose(0, 2, 1, 3).reshape(-1)
    )
    order = by_window[by_window >= 0]  # [P] token at each place

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
    """[P] int64: the window that each token of the row-major grid lies in, as `arrange` cuts
    them."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return y // window * columns + x // window


def patches_of(order: np.ndarray, columns: int, merge: int) -> np.ndarray:
    """Index, in the row-major patch grid, of the merge*merge patches of each token in `order`."""
    row, column = np.divmod(order, columns)
    inner_row, inner_column = np.divmod(np.arange(merge * merge), merge)
    y = row[:, None] * merge + inner_row
    x = column[:, None] * merge + inner_column
    return (y * columns * merge + x).reshape(-1)
