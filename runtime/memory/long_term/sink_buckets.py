"""LiveVLM's long-term memory (arXiv:2505.15269): few tokens of each chunk, in each layer different
ones, read by pages without positions.

All heads of a layer keep the same tokens, and all layers the same number of them, so that an index
counts alike in all of them: token i lies in the cells of slot i // T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.pages import HostPool, page_bytes, shifted
from vicort.runtime.errors import HostBudgetError, MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.bucket_view import BucketSnapshot, BucketView
from vicort.runtime.memory.long_term.protocols import Departing, LongTermSize, View
from vicort.runtime.memory.long_term.readers import ChunkBefore, TwoPass
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.long_term.vision_sinks import Buckets, keep_best, sink_scores
from vicort.runtime.memory.slots import Slots

if TYPE_CHECKING:
    from vicort.runtime.policies.long_term import SinkBuckets

MERGED_AT_ONCE = 16  # a full memory merges away 1/16 of its tokens, so that it seldom has to
MAX_LEVELS = 40  # of buckets: more than any stream reaches


class SinkBucketsMemory:
    """Compresses what leaves the recent window by the attention that its last tokens pay to it, and
    again whenever memory is full: neighbouring buckets merge, and each keeps its best tokens. So
    every part of the stream stays covered, with fewer and fewer tokens."""

    reads_in_prefill = False
    recall_sets = 1
    holds_window = False

    def __init__(
        self, model: ModelSpec, settings: SinkBuckets, host_mb: float, dtype: DTypeLike
    ) -> None:
        """Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` is too
        little."""
        self.model, self.settings = model, settings
        size = sink_buckets_size(model, settings, host_mb, dtype)
        self.page_cells = page_cells(model, settings)
        self.tokens = size.slots * model.page_tokens  # the most that a layer keeps
        pages = size.slots // self.page_cells
        self.pool = HostPool(np.empty, model, size.slots, dtype, by_head=True)
        self.max_cells = size.max_cells
        # of each token, [L, tokens]: score, number of its unit
        self._scores = np.zeros((model.layers, self.tokens), np.float32)
        self._units = np.zeros((model.layers, self.tokens), np.int64)
        # [L, pages, Hkv, D] mean key of each page
        self._digests = np.zeros((model.layers, pages, model.kv_heads, model.head_dim), np.float32)
        self._buckets = Buckets.none()
        self._pages: dict[int, Page] = {}  # by number of the unit
        self._leases = Slots(0, 1)  # the one slot is the whole memory

    # ---- called in the order of the stream

    def absorb(self, departing: Departing) -> None:
        """Compresses a chunk by Vision Sink Bucketing, and what is kept already if that is
        full."""
        settings, count = self.settings, len(departing.unit)
        observed = departing.queries[:, -settings.observed :]
        scores = sink_scores(departing.k, departing.positions, observed, self.model)
        buckets = bucket_count(self.settings, count)
        bucket = np.arange(count) * buckets // count
        kept = keep_best(scores, bucket, settings.capacity)
        self._merge_for(kept.shape[1])
        self._append(departing, scores, kept)
        self._buckets = self._buckets.grown(np.minimum(np.bincount(bucket), settings.capacity))

    def _append(self, departing: Departing, scores: np.ndarray, kept: np.ndarray) -> None:
        """Writes a chunk's kept tokens. scores: [L, n]; kept: [L, m] of the chunk's tokens."""
        first = self._buckets.tokens
        new = slice(first, first + kept.shape[1])
        slot, cell = np.divmod(np.arange(new.start, new.stop), self.model.page_tokens)
        layer = np.arange(self.model.layers)[:, None]
        self.pool.data[slot, layer, :, 0, cell] = departing.k[layer, kept]
        self.pool.data[slot, layer, :, 1, cell] = departing.v[layer, kept]
        self.pool.cell_positions[slot, layer, :, cell] = departing.positions[kept][:, :, None]
        self._scores[:, new] = np.take_along_axis(scores, kept, axis=1)
        numbers = np.array([page.unit for page in departing.pages])
        self._units[:, new] = numbers[departing.unit][kept]
        self._pages |= {page.unit: page for page in departing.pages}
        self._update_digests(new)

    def _merge_for(self, tokens: int) -> None:
        """Merges buckets until `tokens` more fit. Waits until no view reads what is about to
        move."""
        excess = self._buckets.tokens + tokens - self.tokens
        if excess <= 0:
            return
        self._leases.wait_unleased()
        before = self._buckets.tokens
        self._buckets, bucket = self._buckets.merged(
            self.settings.capacity, max(excess, self.tokens // MERGED_AT_ONCE)
        )
        kept = keep_best(self._scores[:, :before], bucket, self.settings.capacity)
        self._compact(kept)
        units = set(np.unique(self._units[:, : kept.shape[1]]).tolist())
        self._pages = {unit: page for unit, page in self._pages.items() if unit in units}

    def _compact(self, kept: np.ndarray) -> None:
        """Keeps these tokens only, [L, m] ascending, and closes the gaps.

        If a layer keeps tokens 0, 2 and 3 of four, token 0 stays, and 2 and 3 become 1 and 2. What
        stays in all layers is not written.
        """
        count = kept.shape[1]
        moves = (kept != np.arange(count)).any(axis=0)
        moved = slice(int(moves.argmax()) if moves.any() else count, count)
        to_slot, to_cell = np.divmod(np.arange(moved.start, count), self.model.page_tokens)
        data, positions = self.pool.data, self.pool.cell_positions
        for layer, tokens in enumerate(kept[:, moved]):
            slot, cell = np.divmod(tokens, self.model.page_tokens)
            data[to_slot, layer, :, :, to_cell] = data[slot, layer, :, :, cell]
            positions[to_slot, layer, :, to_cell] = positions[slot, layer, :, cell]
        for of_tokens in (self._scores, self._units):
            of_tokens[:, :count] = np.take_along_axis(of_tokens, kept, axis=1)
        self._update_digests(moved)

    def _update_digests(self, tokens: slice) -> None:
        """Computes the mean keys, not rotated, of the pages in which these tokens lie; of the last
        page, over the tokens that it has so far.

        In pages of eight tokens, tokens 10 to 19 lie in pages 1 and 2: page 1 has the mean of keys
        8 to 15, page 2 that of keys 16 to 19.
        """
        page_tokens = self.page_cells * self.model.page_tokens
        first, end = tokens.start // page_tokens, math.ceil(tokens.stop / page_tokens)
        # [cells, L, Hkv, T, D] -> [L, pages, tokens of a page, Hkv, D]
        keys = self.pool.data[first * self.page_cells : end * self.page_cells, :, :, 0]
        keys = keys.transpose(1, 0, 3, 2, 4).reshape(
            self.model.layers, end - first, page_tokens, *self._digests.shape[2:]
        )
        exists = np.arange(first * page_tokens, end * page_tokens) < tokens.stop
        exists = exists.reshape(1, -1, page_tokens, 1, 1)
        sums = np.where(exists, keys.astype(np.float32), 0).sum(axis=2)
        self._digests[:, first:end] = sums / exists.sum(axis=2)

    def shift(self, steps: int, floor: int) -> None:
        self._leases.wait_unleased()
        slots = slice(math.ceil(self._buckets.tokens / self.model.page_tokens))
        moved = shifted(self.pool.cell_positions[slots], np.array([steps, 0, 0]), floor)
        self.pool.cell_positions[slots] = moved

    @property
    def oldest(self) -> Fraction | None:
        return self._pages[int(self._units[:, 0].min())].start if self._buckets.tokens else None

    def cells_in_use(self) -> float:
        return math.ceil(self._buckets.tokens / self.model.page_tokens)

    def close(self) -> None:
        self._leases.close()

    # ---- views and readers

    def view(self, leased: bool = True, within: TimeRange | None = None) -> BucketView:
        return BucketView(self.snapshot(within), self._leases if leased else None)

    def snapshot(self, within: TimeRange | None = None) -> BucketSnapshot:
        """The memory as it is now. within: only its tokens of units that overlap this range."""
        tokens = self._buckets.tokens
        pages = math.ceil(tokens / (self.page_cells * self.model.page_tokens))
        return BucketSnapshot(
            model=self.model,
            share=self.settings.share,
            page_cells=self.page_cells,
            tokens=tokens,
            digests=self._digests,
            last_digest=self._digests[:, max(pages - 1, 0)].copy(),
            units=self._units,
            pages=self._pages,
            within=self._units_within(within) if within else None,
        )

    def _units_within(self, within: TimeRange) -> tuple[int, int]:
        """Numbers of the first and the last unit that overlap a range; last < first: there is
        none."""
        units = [
            page.unit for page in self._pages.values() if within.overlaps(page.start, page.end)
        ]
        return (min(units), max(units)) if units else (0, -1)

    def reader(self, view: View, recalls: Sequence[Recall]) -> ReadOnce:
        return ReadOnce(self.model, view, self.pool, recalls[0])

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> ChunkBefore:
        return ChunkBefore(self.model, view, self.pool, recalls[0])


class ReadOnce(TwoPass):
    """Reads for a question in two passes, and releases the view as soon as the chosen cells lie on
    the device."""

    def choose(self, q: np.ndarray) -> None:
        super().choose(q)
        self.release()


def sink_buckets_size(
    model: ModelSpec, settings: SinkBuckets, host_mb: float, dtype: DTypeLike
) -> LongTermSize:
    """As many tokens as the settings say, or as the budget holds, in whole pages.

    Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` is too little.
    """
    cells = page_cells(model, settings)
    page = cells * model.page_tokens
    bytes_of_page = cells * page_bytes(model, dtype, by_head=True)
    # scores, units and the page's digest
    bytes_of_page += model.layers * (page * (4 + 8) + model.kv_heads * model.head_dim * 4)
    chunk_tokens = model.chunk_frames // 2 * model.unit_tokens
    entering = bucket_count(settings, chunk_tokens) * settings.capacity
    min_pages = math.ceil((entering + MAX_LEVELS * settings.capacity) / page)
    pages = min(math.ceil(settings.tokens / page), int(host_mb * 1e6) // bytes_of_page)
    if settings.tokens < (min_pages - 1) * page + 1:
        raise MemoryBudgetError(
            f"long_term.tokens {settings.tokens} is too few for chunks of {model.chunk_frames} "
            f"frames: set long_term.tokens to at least {min_pages * page}"
        )
    if pages < min_pages:
        raise HostBudgetError(
            host_mb, min_pages * bytes_of_page, f"chunks of {model.chunk_frames} frames"
        )
    return LongTermSize(
        slots=pages * cells,
        max_cells=math.ceil(settings.share * pages) * cells,
        recall_sets=SinkBucketsMemory.recall_sets,
        reads_in_prefill=SinkBucketsMemory.reads_in_prefill,
    )


def page_cells(model: ModelSpec, settings: SinkBuckets) -> int:
    """Cells of the engines in a page of these settings."""
    return math.ceil(settings.page / model.page_tokens)


def bucket_count(settings: SinkBuckets, tokens: int) -> int:
    """Into how many buckets a chunk of that many tokens is divided."""
    return max(round(settings.keep * tokens / settings.capacity), 1)
