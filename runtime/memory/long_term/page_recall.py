"""All pages that left the window, uncompressed: FreeKV's host tier (arXiv 2505.13109), and what
each KV head chooses from it.

A page is a cell of the engines' `page_tokens`, with the same tokens in each layer and head. Layer 0
chooses as the others do: the paper lets it see everything, which no bounded memory can. A budget of
its own would cost the other layers as much (docs/systems.md#variants-of-published-systems).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.device import Device
from vicort.runtime.devices.pages import EMPTY, HostPool, page_bytes, shifted
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.errors import HostBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.long_term.page_digest import boxes, page_scores, top_pages
from vicort.runtime.memory.long_term.page_ring import PageRing, numbers_within
from vicort.runtime.memory.long_term.protocols import Departing, LongTermSize, View
from vicort.runtime.memory.long_term.recall_streams import RecallStreams
from vicort.runtime.memory.long_term.selection import Recall, Selection
from vicort.runtime.memory.long_term.speculative import Speculation, Speculative
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.policies.long_term import Digest, GroupScores, PageRecall

# chunks that the stream can absorb while a question reads the pages that they would overwrite
SPARE_CHUNKS = 4


@dataclass(frozen=True)
class PageSelection(Selection):
    pages: np.ndarray  # [L, Hkv, N] int64, ascending: number of the page in each cell


class PageRecallMemory:
    """The newest pages in the host's memory, each with a box around its keys."""

    recall_sets = 2  # one is filled while the other is read
    holds_window = False

    def __init__(
        self,
        model: ModelSpec,
        pool: HostPool,
        spare: int,
        max_cells: int,
        digest: Digest,
        group_scores: GroupScores,
        speculation: Speculation,
        of_questions: RecallStreams,
        of_chunks: RecallStreams | None,
    ) -> None:
        """pool: by_head. spare: slots of it that stand in for evicted pages that a question reads.
        of_chunks: None = chunks do not read this memory."""
        self.model = model
        self.pool = pool
        self.max_cells = max_cells
        self._digest = digest
        self.group_scores = group_scores
        self.reads_in_prefill = of_chunks is not None
        slots = len(pool.data)
        self.ring = PageRing(slots - spare, spare)
        # of the page in each slot: [L, Hkv, S, 2 D] box, [S] tokens, temporal unit
        self.boxes = np.zeros((model.layers, model.kv_heads, slots, 2 * model.head_dim), np.float32)
        self.tokens = np.zeros(slots, np.int32)
        self.units: list[Page | None] = [None] * slots
        self.shifts = 0  # how often positions were shifted in time
        self._speculation = speculation
        self._of_questions = of_questions
        self._of_chunks = of_chunks
        self._chunks: Speculative | None = None

    def absorb(self, departing: Departing) -> None:
        """Writes a chunk's tokens into new pages; a unit begins a page.

        Units of five and two tokens, in pages of four, become pages of 4, 1 and 2 tokens.
        """
        lengths = np.bincount(departing.unit, minlength=len(departing.pages)).tolist()
        layout = Layout.of(lengths, self.model.page_tokens)
        if not layout.tokens:
            return
        slots = self.ring.slot(self.ring.grow(len(layout.tokens)))
        token_slots = slots[layout.page]  # [n]
        self.pool.data[token_slots, :, :, 0, layout.cell] = departing.k.swapaxes(0, 1)
        self.pool.data[token_slots, :, :, 1, layout.cell] = departing.v.swapaxes(0, 1)
        self.pool.cell_positions[slots] = EMPTY
        positions = departing.positions[:, None, None]  # alike in all layers and heads
        self.pool.cell_positions[token_slots, :, :, layout.cell] = positions
        self.boxes[:, :, slots] = boxes(departing.k, layout.page, self._digest)
        self.tokens[slots] = layout.tokens
        for slot, run in zip(slots.tolist(), layout.run, strict=True):
            self.units[slot] = departing.pages[run]

    def view(self, leased: bool = True, within: TimeRange | None = None) -> PageView:
        return PageView(self, leased, within)

    def shift(self, steps: int, floor: int) -> None:
        self.ring.wait_unleased()
        if self._chunks:
            self._chunks.wait_for_recall()
        moved = shifted(self.pool.cell_positions, np.array([steps, 0, 0]), floor)
        self.pool.cell_positions[:] = moved
        self.shifts += 1

    @property
    def oldest(self) -> Fraction | None:
        first = self.ring.first
        unit = self.units[first % self.ring.slots] if first < self.ring.last else None
        return unit.start if unit else None

    def cells_in_use(self) -> float:
        return self.ring.last - self.ring.first

    def reader(self, view: View, recalls: Sequence[Recall]) -> Speculative:
        return Speculative(
            self,
            self.own_view(view),
            recalls,
            self._of_questions,
            self._speculation,
            of_stream=False,
        )

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> Speculative:
        if self._of_chunks is None:
            raise ValueError("chunks do not read this memory")
        self._chunks = Speculative(
            self, self.own_view(view), recalls, self._of_chunks, self._speculation, of_stream=True
        )
        return self._chunks

    def own_view(self, view: View) -> PageView:
        """The view, which must be one of this memory. Raises TypeError."""
        if not isinstance(view, PageView):
            raise TypeError("this is a view of another memory")
        return view

    def close(self) -> None:
        self.ring.close()


class PageView:
    """The pages first, …, last - 1 of one moment. If it is leased, they stay until `release`."""

    def __init__(
        self, memory: PageRecallMemory, leased: bool, within: TimeRange | None = None
    ) -> None:
        """within: only pages of units that overlap it."""
        self._memory, self._leased = memory, leased
        self.first, self.last = numbers_within(
            within, memory.units, memory.ring.first, memory.ring.last
        )
        self.shifts = memory.shifts
        self._spans = memory.ring.spans(self.first, self.last)
        self._units = [unit for span in self._spans for unit in memory.units[span] if unit]
        if leased:
            memory.ring.lease(self.first)

    @property
    def count(self) -> int:
        return self.last - self.first

    def choose(self, q: np.ndarray) -> PageSelection:
        memory = self._memory
        if not self.count:
            return self.selection(np.empty((*memory.boxes.shape[:2], 0), np.int64))
        boxes_of_spans = [memory.boxes[:, :, span] for span in self._spans]
        scores = page_scores(q, boxes_of_spans, memory.group_scores)
        index = top_pages(scores, memory.max_cells)  # from the view's first page on
        return self.selection(self.first + index)

    def selection(self, pages: np.ndarray) -> PageSelection:
        """The cells of pages. pages: [L, Hkv, N] numbers of pages, NONE = none."""
        slots, exists = self._memory.ring.slot(pages), pages != NONE
        return PageSelection(
            np.where(exists, slots, NONE).astype(np.int32),
            np.where(exists, self._memory.tokens[slots], 0),
            pages,
        )

    def pages(self, selection: Selection) -> list[Page]:
        if not isinstance(selection, PageSelection):
            raise TypeError("this is a selection of another memory")
        return self.units(np.unique(selection.pages[selection.pages != NONE]))

    def units(self, pages: Iterable[int]) -> list[Page]:
        """The temporal units of pages, given by their numbers in ascending order."""
        units = (self._units[page - self.first] for page in pages)
        return list({unit.unit: unit for unit in units}.values())

    def release(self) -> None:
        """Ends the lease; further calls do nothing."""
        if self._leased:
            self._leased = False
            self._memory.ring.release(self.first)


def open_page_recall(
    device: Device,
    model: ModelSpec,
    host_mb: float,
    dtype: DTypeLike,
    clock: StageClock,
    policy: PageRecall,
) -> PageRecallMemory:
    """Opens a memory of as many pages, with their boxes, as `host_mb` MB of 1e6 bytes hold.

    Raises MemoryBudgetError if the pages are fewer than the spare ones and those of one chunk.
    """
    size = page_recall_size(model, host_mb, dtype, policy)
    max_cells, spare = size.max_cells, SPARE_CHUNKS * chunk_pages(model)
    pool = HostPool(np.empty, model, size.slots, dtype, by_head=True)
    of_questions = RecallStreams(device, model, dtype, max_cells, clock, urgent=True)
    of_chunks = (
        RecallStreams(device, model, dtype, max_cells, clock, urgent=False)
        if policy.chunks
        else None
    )
    speculation = Speculation(
        policy.tau_prefill, policy.tau_decode, policy.lookahead, policy.group_similarity
    )
    return PageRecallMemory(
        model,
        pool,
        spare,
        max_cells,
        policy.digest,
        policy.group_scores,
        speculation,
        of_questions,
        of_chunks,
    )


def page_recall_size(
    model: ModelSpec, host_mb: float, dtype: DTypeLike, policy: PageRecall
) -> LongTermSize:
    """As `open_page_recall`."""
    box_bytes = model.layers * model.kv_heads * 2 * model.head_dim * np.dtype(np.float32).itemsize
    bytes_of_page = page_bytes(model, dtype, by_head=True) + box_bytes
    slots = int(host_mb * 1e6) // bytes_of_page
    min_slots = (SPARE_CHUNKS + 1) * chunk_pages(model)
    if slots < min_slots:
        raise HostBudgetError(host_mb, min_slots * bytes_of_page, "page-recall with this model")
    return LongTermSize(
        slots=slots,
        max_cells=max(policy.budget // model.page_tokens, 1),
        recall_sets=PageRecallMemory.recall_sets,
        reads_in_prefill=policy.chunks,
    )


def chunk_pages(model: ModelSpec) -> int:
    """Pages of a full chunk of which nothing is dropped."""
    return model.chunk_frames // 2 * math.ceil(model.unit_tokens / model.page_tokens)
