"""The chunks in memory as retrieval sees them: units, pages and digests."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vicort.runtime.policies.nearest_rows import NearestRows

# Up to this many chunks, all pairwise cosines are kept (67 MB); above it, they are computed on use.
MAX_COMPARED = 4096


@dataclass
class ChunkEntry:
    """A chunk in memory."""

    chunk: int
    units: list[int]  # units in memory, ascending
    pages: int  # pages of these units
    last: int  # number of the chunk's last unit, in memory or not
    # [L, R, Hq, D] float32 queries of its last rows; None without long-term memory
    queries: np.ndarray | None = None


class IndexedChunks(Protocol):
    """Chunks in the order of the stream, as a retrieval policy sees them."""

    unit_pages: int  # pages of a unit whose tokens are all kept

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ChunkEntry]: ...

    def at(self, place: int) -> ChunkEntry:
        """The chunk at this place in the order of the stream, counted from 0."""
        ...

    def spanning(self, first: int, last: int) -> range:
        """The places of the chunks that begin at unit `last` or before it, and end at unit `first`
        or after it."""
        ...

    def cosines(self, vector: np.ndarray, places: range | None = None) -> np.ndarray:
        """[n] float32: cosine of each digest with a vector [width]; 0 where one of them is 0.

        places: of these chunks alone, None = of all.
        """
        ...

    def likeness(self, index: int, places: range | None = None) -> np.ndarray:
        """[n] float32: cosine of each digest with that of the chunk at place `index`."""
        ...


class ChunkIndex:
    """The chunks in memory, in the order of the stream, with their digests scaled to length 1.

    A digest [width] is the mean of a chunk's kept tokens as they entered the language model. From
    `add` to `forget` it occupies one row of a matrix, so that a question is compared with all
    chunks in one matrix product.
    """

    def __init__(
        self, width: int, unit_pages: int, *, compares: bool = False, finds_alike: bool = False
    ) -> None:
        """
        width: length of a digest.
        unit_pages: pages of a unit whose tokens are all kept.
        compares: whether the cosines between chunks are computed when a chunk is added.
        finds_alike: whether `most_alike` is asked for.
        """
        self.unit_pages = unit_pages
        self._chunks: dict[int, ChunkEntry] = {}
        self._row: dict[int, int] = {}  # matrix row by chunk, in the order of the stream
        self._free: list[int] = []
        # [rows, width] digests of length 1, or 0
        self._directions = np.empty((0, width), np.float32)
        self._likeness = np.empty((0, 0), np.float32) if compares else None  # [rows, rows] cosines
        self._nearest = NearestRows() if finds_alike else None
        # in the order of the stream, which is ascending: [n] chunks, and their rows
        self._numbers = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)

    def add(self, entry: ChunkEntry, digest: np.ndarray) -> None:
        if not self._free:
            self._grow()
        self._chunks[entry.chunk] = entry
        self._row[entry.chunk] = row = self._free.pop()
        self._numbers = np.append(self._numbers, entry.chunk)
        self._rows = np.append(self._rows, row)
        self._directions[row] = direction(digest)
        if self._likeness is not None:
            self._likeness[row] = self._likeness[:, row] = self._directions @ self._directions[row]
        if self._nearest:
            self._nearest.add(row, self._rows, self._cosines_of(row))

    def forget(self, chunk: int) -> None:
        del self._chunks[chunk]
        row = self._row.pop(chunk)
        self._free.append(row)
        place = self._place(chunk)
        self._numbers = np.delete(self._numbers, place)
        self._rows = np.delete(self._rows, place)
        if self._nearest:
            self._nearest.forget(row)

    def remove_unit(self, chunk: int, unit: int, pages: int) -> None:
        """Remove an evicted unit, which had `pages` pages; a chunk without units is forgotten."""
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

    def at(self, place: int) -> ChunkEntry:
        return self._chunks[int(self._numbers[place])]

    def spanning(self, first: int, last: int) -> range:
        places = range(len(self))
        begin = bisect_left(places, first, key=lambda place: self.at(place).units[-1])
        return range(begin, max(begin, self.until(last)))

    def cosines(self, vector: np.ndarray, places: range | None = None) -> np.ndarray:
        if places is None:
            return (self._directions @ direction(vector)).take(self._rows)
        return self._directions[self._rows[_slice(places)]] @ direction(vector)

    def likeness(self, index: int, places: range | None = None) -> np.ndarray:
        rows = self._rows if places is None else self._rows[_slice(places)]
        row = int(self._rows[index])
        if self._likeness is None and places is not None:
            return self._directions[rows] @ self._directions[row]
        return self._cosines_of(row).take(rows)

    def until(self, unit: int) -> int:
        """How many of the oldest chunks begin at this unit or before it."""
        return bisect_right(range(len(self)), unit, key=lambda place: self.at(place).units[0])

    def most_alike(self, count: int) -> ChunkEntry:
        """Of the `count` oldest chunks, at least one, the one that is most like another chunk in
        memory.

        If that one is among these too, and its neighbours in time are closer to each other, it is
        that one. Of equals, the earlier.
        """
        if self._nearest is None:
            raise ValueError("this index does not look for chunks that are alike")
        rows = self._rows[:count]
        places = [
            place
            for row in self._nearest.most_alike(rows, self._rows, self._cosines_of)
            for place in np.flatnonzero(rows == row).tolist()
        ]
        return self.at(min(sorted(places), key=self._gap))

    def _gap(self, place: int) -> int:
        """Chunks between the neighbours of a chunk in memory; the first and the last have only one,
        which counts as far."""
        if place in (0, len(self) - 1):
            return sys.maxsize
        return int(self._numbers[place + 1] - self._numbers[place - 1])

    def _place(self, chunk: int) -> int:
        return int(np.searchsorted(self._numbers, chunk))

    def _cosines_of(self, row: int) -> np.ndarray:
        """[rows] cosines of a row with each row, those that are not in use too."""
        if self._likeness is not None:
            return self._likeness[row]
        return self._directions @ self._directions[row]

    def _grow(self) -> None:
        """Double the number of rows."""
        rows = len(self._directions)
        more = max(rows, 16)
        if self._nearest:
            self._nearest.grow(rows + more)
        self._directions = np.pad(self._directions, ((0, more), (0, 0)))
        if self._likeness is not None:
            self._likeness = (
                np.pad(self._likeness, (0, more)) if rows + more <= MAX_COMPARED else None
            )
        self._free.extend(reversed(range(rows, rows + more)))


class WithOpenChunk:
    """The chunks of an index, and after them one that is still being filled. The index does not
    change."""

    def __init__(self, index: ChunkIndex, entry: ChunkEntry, digest: np.ndarray) -> None:
        self.unit_pages = index.unit_pages
        self._index = index
        self._entry = entry
        self._direction = direction(digest)
        itself = self._direction @ self._direction
        self._likeness = np.append(index.cosines(digest), np.float32(itself))

    def __len__(self) -> int:
        return len(self._index) + 1

    def __iter__(self) -> Iterator[ChunkEntry]:
        yield from self._index
        yield self._entry

    def at(self, place: int) -> ChunkEntry:
        return self._entry if place == len(self._index) else self._index.at(place)

    def spanning(self, first: int, last: int) -> range:
        units, places = self._entry.units, self._index.spanning(first, last)
        if not units or units[0] > last or units[-1] < first:
            return places
        return range(places.start, len(self))

    def cosines(self, vector: np.ndarray, places: range | None = None) -> np.ndarray:
        own = np.float32(self._direction @ direction(vector))
        if places is None:
            return np.append(self._index.cosines(vector), own)
        held = self._index.cosines(vector, self._held(places))
        return np.append(held, own) if len(self._index) in places else held

    def likeness(self, index: int, places: range | None = None) -> np.ndarray:
        if index == len(self._index):
            return self._likeness.copy() if places is None else self._likeness[_slice(places)]
        if places is None:
            return np.append(self._index.likeness(index), self._likeness[index])
        held = self._index.likeness(index, self._held(places))
        return np.append(held, self._likeness[index]) if len(self._index) in places else held

    def _held(self, places: range) -> range:
        return range(places.start, min(places.stop, len(self._index)))


class ChunksWithin:
    """The chunks of an index reduced to some of their units, as if no other unit were in memory.
    The index does not change.

    A chunk of which some units are left keeps its digest, which is the mean of all its tokens.
    """

    def __init__(self, index: IndexedChunks, pages: Mapping[int, int]) -> None:
        """pages: of each unit that is left."""
        self.unit_pages = index.unit_pages
        self._index = index
        self._entries: list[ChunkEntry] = []
        places = []  # of these chunks in the index
        self._span = index.spanning(min(pages), max(pages)) if pages else range(0)
        for place in self._span:
            entry = index.at(place)
            if units := [unit for unit in entry.units if unit in pages]:
                count = sum(pages[unit] for unit in units)
                self._entries.append(replace(entry, units=units, pages=count))
                places.append(place)
        self._places = np.array(places, int) - self._span.start  # counted from the span's first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ChunkEntry]:
        return iter(self._entries)

    def at(self, place: int) -> ChunkEntry:
        return self._entries[place]

    def cosines(self, vector: np.ndarray, places: range | None = None) -> np.ndarray:
        found = self._index.cosines(vector, self._span)[self._places]
        return found if places is None else found[_slice(places)]

    def likeness(self, index: int, places: range | None = None) -> np.ndarray:
        place = self._span.start + int(self._places[index])
        found = self._index.likeness(place, self._span)[self._places]
        return found if places is None else found[_slice(places)]

    def spanning(self, first: int, last: int) -> range:
        units = [entry.units for entry in self._entries]
        begin = bisect_left(units, first, key=lambda each: each[-1])
        return range(begin, max(begin, bisect_right(units, last, key=lambda each: each[0])))


def _slice(places: range) -> slice:
    return slice(places.start, places.stop)


def direction(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length 1; a zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
