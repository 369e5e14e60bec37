"""The chunk that is being filled, as questions see it: in memory, and no part of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vicort.runtime.memory.tiers import PageLocation
from vicort.runtime.policies.chunk_index import ChunkEntry


@dataclass(frozen=True)
class ChunkFork:
    index: int  # that the chunk will have
    start: Fraction  # seconds
    last: int  # number of its last unit
    locations: tuple[PageLocation, ...]  # of its kept tokens
    digest: np.ndarray  # [width] float32
    next_text: int  # position of the first text token after it
    positions: np.ndarray  # [n, 3] of its kept tokens
    table: np.ndarray  # the page table that it was run over

    @property
    def units(self) -> list[int]:
        """Numbers of the units of which anything is kept, ascending."""
        return sorted({location.page.unit for location in self.locations})

    def locations_of(self, units: Sequence[int]) -> list[PageLocation]:
        return [location for location in self.locations if location.page.unit in units]

    def kept(self) -> list[tuple[int, Fraction, int]]:
        """Number, end in seconds and kept tokens of each unit of which anything is kept."""
        pages = [location.page for location in self.locations]
        ends = {page.unit: page.end for page in pages}
        return [
            (unit, end, sum(page.tokens for page in pages if page.unit == unit))
            for unit, end in ends.items()
        ]

    def entry(self) -> ChunkEntry:
        """As retrieval sees it."""
        return ChunkEntry(self.index, self.units, len(self.locations), self.last)
