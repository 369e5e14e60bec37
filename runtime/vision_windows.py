"""The order of patches in the vision encoder, and its attention windows: index arithmetic on a grid
of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vicort.runtime.frame_grid import Grid


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
    down, across = -(-rows // window), -(-columns // window)
    grid = np.full((down * window, across * window), -1)
    grid[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    # token of each cell, -1 = empty
    by_window = grid.reshape(down, window, across, window).transpose(0, 2, 1, 3).reshape(-1)
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


def segments_of(patches: np.ndarray, columns: int, patch: int) -> np.ndarray:
    """[S*patch] int32: a frame [height,width,3] is a list of segments, each the pixels of one row
    of one patch. These are the segments of `patches` [S], whose grid has `columns` patches a row.
    """
    y, x = np.divmod(patches, columns)
    rows = y[:, None] * patch + np.arange(patch)  # [S,patch] of pixels
    return (rows * columns + x[:, None]).reshape(-1).astype(np.int32)


def grid_inputs(grid: Grid, patch: int, merge: int, window: int) -> dict[str, np.ndarray]:
    """What the vision graph of any grid takes besides frames, all int32. Patches are in the order
    of `Windows`.

    patch: pixels, side of a patch; merge and window: as in `arrange`.
    segments: [S*patch], of each patch; places: [S,2] row and column of each patch; windows: [W,K]
    patch of each cell of the windows, -1 = none; cells: [S] cell of each patch; row_major: [P]
    index in this order of each token of the row-major grid.
    """
    windows, columns = arrange(grid.rows, grid.columns, merge, window), grid.columns * merge
    placed = np.where(windows.filled.reshape(-1), windows.gather, -1)
    inputs = {
        "segments": segments_of(windows.patches, columns, patch),
        "places": np.column_stack(np.divmod(windows.patches, columns)),
        "windows": placed.reshape(windows.filled.shape),
        "cells": windows.scatter,
        "row_major": windows.tokens,
    }
    return {name: array.astype(np.int32) for name, array in inputs.items()}


def pruned_grid_inputs(grid: Grid, patch: int, merge: int, window: int) -> dict[str, np.ndarray]:
    """What the pruned vision graph of any grid takes besides frames and kept tokens, all int32.
    Tokens are row-major.

    token_segments: [P,merge*merge*patch], of the patches of each token; token_places:
    [P,merge*merge,2] row and column of each patch; token_windows: [P] window of each token.
    """
    columns = grid.columns * merge
    patches = patches_of(np.arange(grid.tokens), grid.columns, merge)
    inputs = {
        "token_segments": segments_of(patches, columns, patch).reshape(grid.tokens, -1),
        "token_places": np.column_stack(np.divmod(patches, columns)).reshape(grid.tokens, -1, 2),
        "token_windows": window_of(grid.rows, grid.columns, window),
    }
    return {name: array.astype(np.int32) for name, array in inputs.items()}


def most_windows(tokens: int, window: int) -> int:
    """The most windows that a grid of at most `tokens` has: those of a strip one token wide."""
    return -(-tokens // window)
