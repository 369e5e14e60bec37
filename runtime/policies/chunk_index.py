"""What memory holds of its chunks, as retrieval sees it: their units, how many pages they take, and
what they look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# chunks whose likeness to each other is kept, 67 MB; of more it is computed when it is asked for
MOST_COMPARED = 4096


@dataclass
class ChunkEntry:
    """What memory holds of one chunk."""

    chunk: int
    units: list[int]  # of which something is held, ascending
    pages: int  # that hold it
    last: int  # number of the chunk's last unit, held or not
    # [L, R, Hq, D] float32 of its last rows; None without long-term memory
    queries: np.ndarray | None = None


class ChunkIndex:
    """The chunks that memory holds, in the order of the stream, and the directions of their
    digests.

    A digest, [width], is the mean of a chunk's kept tokens as they entered the language model. Each
    has a row of a matrix from `add` to `forget`, so that a question compares itself with all chunks
    in one product.
    """

    def __init__(self, width: int, unit_pages: int, compares: bool) -> None:
        """width: of a digest; unit_pages: pages of a unit of which all is kept; compares: whether
        chunks are compared as they come."""
        self.unit_pages = unit_pages
        self._chunks: dict[int, ChunkEntry] = {}
        self._row: dict[int, int] = {}  # of each chunk, in the order of the stream
        self._free: list[int] = []
        # [rows, width], of unit length, or zero
        self._directions = np.empty((0, width), np.float32)
        self._likeness = np.empty((0, 0), np.float32) if compares else None  # [rows, rows] cosines
        # [n] rows in the order of the stream; None = to be read again
        self._order: np.ndarray | None = None

    def add(self, remembered: ChunkEntry, digest: np.ndarray) -> None:
        if not self._free:
            self._grow()
        self._chunks[remembered.chunk] = remembered
        self._row[remembered.chunk] = row = self._free.pop()
        self._order = None
        self._directions[row] = direction(digest)
        if self._likeness is not None:
            self._likeness[row] = self._likeness[:, row] = self._directions @ self._directions[row]

    def forget(self, chunk: int) -> None:
        del self._chunks[chunk]
        self._free.append(self._row.pop(chunk))
        self._order = None

    def remove_unit(self, chunk: int, unit: int, pages: int) -> None:
        """A unit of a chunk, which had so many pages, is evicted; a chunk without units leaves."""
        entry = self._chunks[chunk]
        entry.units.remove(unit)
        entry.pages -= pages
        if not entry.units:
            self.forget(chunk)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[ChunkEntry]:
        return iter(self._chunks.values())

    def __reversed__(self) -> Iterator[ChunkEntry]:
        return reversed(self._chunks.values())

    def __getitem__(self, chunk: int) -> ChunkEntry:
        return self._chunks[chunk]

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """[n] float32 of each chunk's digest with a vector [width]; 0 where one of them is zero."""
        return (self._directions @ direction(vector)).take(self._rows())

    def likeness(self, place: int) -> np.ndarray:
        """[n] float32: cosines between the digest of the chunk at that place in the stream and
        those of all."""
        rows = self._rows()
        if self._likeness is None:
            return (self._directions @ self._directions[rows[place]]).take(rows)
        return self._likeness[rows[place]].take(rows)

    def _rows(self) -> np.ndarray:
        if self._order is None:
            self._order = np.fromiter(self._row.values(), int, len(self._row))
        return self._order

    def _grow(self) -> None:
        """Twice the room."""
        rows = len(self._directions)
        more = max(rows, 16)
        self._directions = np.pad(self._directions, ((0, more), (0, 0)))
        if self._likeness is not None:
            self._likeness = (
                np.pad(self._likeness, (0, more)) if rows + more <= MOST_COMPARED else None
            )
        self._free.extend(reversed(range(rows, rows + more)))


def direction(vector: np.ndarray) -> np.ndarray:
    """The vector, of length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
