"""For each direction in a matrix, the other one that is nearest to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

UNKNOWN = -1  # in place of a nearest row that has gone, until the next one is looked for


class NearestRows:
    """Kept up to date while rows come and go.

    A row that goes leaves those to which it was the nearest with a cosine that is too high, if
    anything. The next nearest one of these is looked for when a search finds them first, so that a
    change costs about one product of the matrix with a vector, however many they are.
    """

    def __init__(self) -> None:
        self._cosine = np.empty(0, np.float32)  # [rows], -inf = there is no other row
        self._row = np.empty(0, np.int64)  # [rows]

    def grow(self, rows: int) -> None:
        more = rows - len(self._cosine)
        self._cosine = np.pad(self._cosine, (0, more), constant_values=-np.inf)
        self._row = np.pad(self._row, (0, more))

    def add(self, row: int, held: np.ndarray, cosines: np.ndarray) -> None:
        """held: [n] rows that are in use, this one included; cosines: [rows], of the row with each
        row."""
        near = self._others(row, held, cosines)
        self._set(row, held, near)
        closer = near > self._cosine[held]
        self._cosine[held[closer]] = near[closer]
        self._row[held[closer]] = row

    def forget(self, row: int) -> None:
        self._row[self._row == row] = UNKNOWN

    def most_alike(
        self, rows: np.ndarray, held: np.ndarray, cosines: Callable[[int], np.ndarray]
    ) -> tuple[int, int]:
        """Of these rows, the one that is nearest to another row, and that row; of equals, the
        first.

        rows: [m] in use, at least one; held: [n] that are in use; cosines: gives [rows], of a row
        with each row.
        """
        while True:
            found = int(rows[self._cosine[rows].argmax()])
            if self._row[found] != UNKNOWN:
                return found, int(self._row[found])
            self._set(found, held, self._others(found, held, cosines(found)))

    @staticmethod
    def _others(row: int, held: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """[n] cosines of a row with the rows that are in use, -inf with itself."""
        near: np.ndarray = cosines[held]
        near[held == row] = -np.inf
        return near

    def _set(self, row: int, held: np.ndarray, near: np.ndarray) -> None:
        best = int(near.argmax())  # where it is the only one, itself
        self._cosine[row], self._row[row] = near[best], held[best]
