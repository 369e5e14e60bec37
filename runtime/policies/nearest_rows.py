"""For each direction in a matrix, the other one that is nearest to it."""

from __future__ import annotations

import numpy as np


class NearestRows:
    """Kept up to date while rows come and go: each change costs one product of the matrix with a
    vector, and one for each row whose nearest one has gone."""

    def __init__(self) -> None:
        self.cosine = np.empty(0, np.float32)  # [rows], -inf = there is no other row
        self.row = np.empty(0, np.int64)  # [rows]

    def grow(self, rows: int) -> None:
        more = rows - len(self.cosine)
        self.cosine = np.pad(self.cosine, (0, more), constant_values=-np.inf)
        self.row = np.pad(self.row, (0, more))

    def add(self, row: int, held: np.ndarray, directions: np.ndarray) -> None:
        """held: [n] rows that are in use, this one included; directions: [rows, width], of length 1
        or 0."""
        others = held[held != row]
        cosines = directions[others] @ directions[row]
        self._set(row, others, cosines)
        closer = cosines > self.cosine[others]
        self.cosine[others[closer]] = cosines[closer]
        self.row[others[closer]] = row

    def forget(self, row: int, held: np.ndarray, directions: np.ndarray) -> None:
        """held: [n] rows that are in use, without this one."""
        for orphan in held[self.row[held] == row]:
            others = held[held != orphan]
            self._set(int(orphan), others, directions[others] @ directions[orphan])

    def _set(self, row: int, others: np.ndarray, cosines: np.ndarray) -> None:
        if not others.size:
            self.cosine[row], self.row[row] = -np.inf, row
            return
        best = int(cosines.argmax())
        self.cosine[row], self.row[row] = cosines[best], others[best]
