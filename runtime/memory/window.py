"""The recent window, for systems that keep no other chunks on the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Page
from vicort.runtime.devices.pages import as_numpy
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.tiers import PageLocation, Tiers
from vicort.runtime.policies.chunk_index import ChunkEntry, ChunkIndex
from vicort.runtime.policies.system import System


class RecentWindow:
    """Which chunks leave the window. All methods run in the order of the stream."""

    def __init__(self, model: ModelSpec, system: System, tiers: Tiers, chunks: ChunkIndex) -> None:
        self._tiers = tiers
        self._chunks = chunks
        self._page_tokens = model.page_tokens
        # Whether the pages of units are those of the window, and no others.
        self.holds_all_pages = system.long_term is not None or system.ingest.slides
        self._units: int | None = None  # units of a full window
        if self.holds_all_pages and system.ingest.window is not None:
            chunk_frames = system.chunk_frames or model.chunk_frames
            self._units = system.ingest.window * chunk_frames // UNIT_FRAMES

    def leaving(self, newest: int) -> list[int]:
        """Numbers of the chunks that leave once unit `newest` is there.

        A chunk leaves once a full window of units follows it, so short chunks do not shrink the
        window. A chunk is short at the end of frames of one size, and at a question that joins the
        stream.
        """
        if self._units is None:
            return []
        return [chunk.chunk for chunk in self._chunks if newest - chunk.last >= self._units]

    def copy_of(self, chunk: ChunkEntry) -> Departing:
        """The chunk's tokens, copied for long-term memory."""
        if chunk.queries is None:
            raise ValueError("long-term memory needs the queries of a chunk's last rows")
        units = [self._tiers.locations(unit) for unit in chunk.units]
        locations = [location for unit in units for location in unit]
        slots = [location.slot for location in locations]
        counts = np.array([location.page.tokens for location in locations])
        filled = np.arange(self._page_tokens) < counts[:, None]  # [pages, T]
        pool = self._tiers.pool
        data = as_numpy(pool.data)[slots].transpose(3, 1, 0, 4, 2, 5)[
            :, :, filled
        ]  # [2, L, n, Hkv, D]
        pages = [_whole_unit(unit) for unit in units]
        return Departing(
            pages=tuple(pages),
            unit=np.repeat(np.arange(len(units)), [page.tokens for page in pages]),
            k=data[0],
            v=data[1],
            positions=pool.host_positions[slots][:, 0, 0][filled],
            queries=chunk.queries,
        )


def _whole_unit(locations: list[PageLocation]) -> Page:
    """One page that stands for all pages of a unit."""
    tokens = sum(location.page.tokens for location in locations)
    return replace(locations[0].page, tokens=tokens)
