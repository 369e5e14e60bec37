"""Every temporal unit, uncompressed on the host, and in each layer the ones nearest to a question:
ReKV (arXiv 2503.00540).

A unit stands for the paper's frame. Its digest is the mean of its keys, not rotated, in each layer
and KV head. Units of the recent window are here as well, so that a question chooses among all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import UNIT_FRAMES, Page, TimeRange
from vicort.runtime.devices.pages import EMPTY, HostPool, page_bytes, shifted
from vicort.runtime.errors import HostBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.long_term.frame_view import FrameView, WordsFirst
from vicort.runtime.memory.long_term.page_recall import SPARE_CHUNKS, chunk_pages
from vicort.runtime.memory.long_term.page_ring import PageRing
from vicort.runtime.memory.long_term.protocols import Departing, LongTermSize, StreamReader, View
from vicort.runtime.memory.long_term.selection import Recall

if TYPE_CHECKING:
    from vicort.runtime.policies.long_term import FrameRecall

# One byte in so many is for digests: enough for all units of 16 tokens or more in float16, of 8 or
# more in float32. Of smaller units, fewer are remembered than pages would hold.
DIGEST_PART = 16


class FrameRecallMemory:
    """The newest units that fit, in two rings: of pages, and of digests.

    Arrays over units have an entry for each slot of the ring `units`.
    """

    reads_in_prefill = False
    recall_sets = 1

    def __init__(
        self, model: ModelSpec, settings: FrameRecall, host_mb: float, dtype: DTypeLike
    ) -> None:
        """Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` is too
        little."""
        self.model, self.settings = model, settings
        self.holds_window = not settings.window
        size = frame_recall_size(model, settings, host_mb, dtype)
        self.max_cells = size.max_cells
        self.pool = HostPool(np.empty, model, size.slots, dtype, by_head=True)
        spare = SPARE_CHUNKS * chunk_pages(model)
        self.pages = PageRing(size.slots - spare, spare)
        spare = SPARE_CHUNKS * chunk_units(model)
        self.units = PageRing(_digests(model, host_mb) - spare, spare)
        self.first = 0  # number of the oldest unit of which every page is there
        count = self.units.slots
        # [L, U, Hkv, D] mean key
        self.digests = np.zeros((model.layers, count, model.kv_heads, model.head_dim), np.float32)
        self.first_pages = np.zeros(count, np.int64)
        self.tokens = np.zeros(count, np.int32)
        self.leads = np.zeros(count, np.int32)  # time positions from the unit before, see `_lead`
        self.held: list[Page | None] = [None] * count
        self.newest_time = 0  # position of the newest unit
        self.floor = 0  # the lowest time position
        self._newest: Page | None = None

    # ---- called in the order of the stream

    def absorb(self, departing: Departing) -> None:
        """Writes a chunk's units; a unit begins a page."""
        lengths = np.bincount(departing.unit, minlength=len(departing.pages))
        layout = Layout.of(lengths.tolist(), self.model.page_tokens)
        if not layout.tokens:
            return
        pages = self.pages.grow(len(layout.tokens))
        slots = self.pages.slot(pages)
        token_slots = slots[layout.page]  # [n]
        self.pool.data[token_slots, :, :, 0, layout.cell] = departing.k.swapaxes(0, 1)
        self.pool.data[token_slots, :, :, 1, layout.cell] = departing.v.swapaxes(0, 1)
        self.pool.cell_positions[slots] = EMPTY
        positions = departing.positions[:, None, None]  # alike in all layers and heads
        self.pool.cell_positions[token_slots, :, :, layout.cell] = positions
        self._note_units(departing, lengths, pages[np.unique(layout.run, return_index=True)[1]])

    def _note_units(
        self, departing: Departing, lengths: np.ndarray, first_pages: np.ndarray
    ) -> None:
        """lengths: [u] tokens of each unit, none of them 0; first_pages: [u]."""
        slots = self.units.slot(self.units.grow(len(lengths)))
        starts = np.cumsum(lengths) - lengths
        sums = np.add.reduceat(departing.k.astype(np.float32, copy=False), starts, axis=1)
        self.digests[:, slots] = sums / lengths[:, None, None].astype(np.float32)
        self.first_pages[slots], self.tokens[slots] = first_pages, lengths
        times = departing.positions[starts, 0].tolist()
        for slot, page, time in zip(slots.tolist(), departing.pages, times, strict=True):
            self.held[slot] = page
            self.leads[slot] = self._lead(page, time)
            self._newest, self.newest_time = page, time
        self.first = max(self.first, self.units.first)
        while self.first_pages[self.first % self.units.slots] < self.pages.first:
            self.first += 1

    def _lead(self, page: Page, time: int) -> int:
        """How many time positions lie between a new unit and the one before it, where no time is
        missing between them: no more than the one before takes itself.

        At two frames a second and two positions a second, units are two positions apart; after a
        pause of a minute, it is two as well.
        """
        before = self._newest
        if before is None or before.start is None or before.end is None:
            return 0
        seconds = UNIT_FRAMES * (before.end - before.start)  # it holds its first and last frame
        own = math.ceil(seconds * Fraction(self.model.tokens_per_second))
        return min(max(time - self.newest_time, 0), max(own, 1))

    def shift(self, steps: int, floor: int) -> None:
        self.pages.wait_unleased()
        moved = shifted(self.pool.cell_positions, np.array([steps, 0, 0]), floor)
        self.pool.cell_positions[:] = moved
        self.newest_time = max(self.newest_time - steps, floor)
        self.floor = floor

    @property
    def first_page(self) -> int:
        """Number of the oldest unit's first page."""
        return self.first_page_of(self.first)

    def first_page_of(self, unit: int) -> int:
        """Number of a unit's first page; of the unit to come, the page to come."""
        if unit == self.units.last:
            return self.pages.last
        return int(self.first_pages[unit % self.units.slots])

    @property
    def oldest(self) -> Fraction | None:
        held = self.held[self.first % self.units.slots] if self.first < self.units.last else None
        return held.start if held else None

    def cells_in_use(self) -> float:
        return self.pages.last - self.first_page

    def close(self) -> None:
        self.pages.close()
        self.units.close()

    # ---- views and readers

    def view(self, leased: bool = True, within: TimeRange | None = None) -> FrameView:
        return FrameView(self, leased, within)

    def reader(self, view: View, recalls: Sequence[Recall]) -> WordsFirst:
        if not isinstance(view, FrameView):
            raise TypeError("this is a view of another memory")
        return WordsFirst(self.model, view, self.pool, recalls[0], self.settings.passes)

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> StreamReader:
        raise ValueError("chunks do not read this memory")


def frame_recall_size(
    model: ModelSpec, settings: FrameRecall, host_mb: float, dtype: DTypeLike
) -> LongTermSize:
    """Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` does not hold
    the spare chunks and one more."""
    bytes_of_page = page_bytes(model, dtype, by_head=True)
    pages_part = 1 - 1 / DIGEST_PART
    slots = int(host_mb * 1e6 * pages_part) // bytes_of_page
    chunks = SPARE_CHUNKS + 1
    least = max(
        chunks * chunk_pages(model) * bytes_of_page / pages_part,
        chunks * chunk_units(model) * _digest_bytes(model) * DIGEST_PART,
    )
    if host_mb * 1e6 < least:
        raise HostBudgetError(host_mb, math.ceil(least), "frame-recall with this model")
    unit_pages = math.ceil(model.unit_tokens / model.page_tokens)
    return LongTermSize(
        slots=slots,
        max_cells=min(settings.top * unit_pages, slots),
        recall_sets=FrameRecallMemory.recall_sets,
        reads_in_prefill=FrameRecallMemory.reads_in_prefill,
    )


def chunk_units(model: ModelSpec) -> int:
    """Units of a full chunk."""
    return model.chunk_frames // UNIT_FRAMES


def _digest_bytes(model: ModelSpec) -> int:
    """Of a unit."""
    return model.layers * model.kv_heads * model.head_dim * np.dtype(np.float32).itemsize


def _digests(model: ModelSpec, host_mb: float) -> int:
    """How many units have a digest within the budget."""
    return int(host_mb * 1e6 / DIGEST_PART) // _digest_bytes(model)
