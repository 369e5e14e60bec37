"""LiveVLM's long-term memory (arXiv:2505.15269): few tokens of each chunk, each layer its own, read
by pages without positions.

All heads of a layer keep the same tokens, and all layers equally many, so that a token's place
counts alike in all of them: token i lies in the cells of slot i // T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page
from vicort.runtime.devices.pages import HostPool, page_bytes, shifted
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.long_term import Departing, View
from vicort.runtime.memory.long_term.readers import ChunkBefore, TwoPass
from vicort.runtime.memory.long_term.selection import NONE, Recall, Selection
from vicort.runtime.memory.long_term.vision_sinks import Buckets, keep_best, sink_scores, softmax
from vicort.runtime.memory.slots import Slots

if TYPE_CHECKING:
    from vicort.runtime.policies.long_term import SinkBuckets

MERGED_AT_ONCE = 16  # a full memory makes room for that part of itself, so that it seldom has to
LEVELS = 40  # of buckets: more than any stream comes to
ALL = 0  # views hold fast all that there is


class SinkBucketsMemory:
    """What leaves the recent window is compressed by the attention that its own last tokens pay to
    it, and once more whenever memory is full: neighbouring buckets merge, and each keeps its best.
    So every stretch of the stream stays covered, ever more thinly."""

    reads_in_prefill = False
    recall_sets = 1

    def __init__(
        self, model: ModelSpec, settings: SinkBuckets, host_mb: float, dtype: DTypeLike
    ) -> None:
        """Raises MemoryBudgetError, with the smallest budget that works, if `host_mb` is too
        little."""
        self.model, self.settings = model, settings
        self.page_cells = math.ceil(settings.page / model.page_tokens)
        self.tokens = self._fitting_tokens(host_mb, dtype)  # the most that a layer keeps
        slots = self.tokens // model.page_tokens
        self.pool = HostPool(np.empty, model, slots, dtype, by_head=True)
        self.max_cells = math.ceil(settings.share * (slots // self.page_cells)) * self.page_cells
        self._scores = np.zeros((model.layers, self.tokens), np.float32)
        # number of the unit of each token
        self._units = np.zeros((model.layers, self.tokens), np.int64)
        self._digests = np.zeros(
            (model.layers, slots // self.page_cells, model.kv_heads, model.head_dim), np.float32
        )
        self._buckets = Buckets.none()
        self._pages: dict[int, Page] = {}  # by number of the unit
        self._views = Slots(0, 1)

    def _fitting_tokens(self, host_mb: float, dtype: DTypeLike) -> int:
        """As many as the settings say, or as the budget holds, in whole pages."""
        model, settings = self.model, self.settings
        page = self.page_cells * model.page_tokens
        page_size = self.page_cells * page_bytes(model, dtype, by_head=True)
        # scores, units and the page's digest
        page_size += model.layers * (page * (4 + 8) + model.kv_heads * model.head_dim * 4)
        entering = (
            self._bucket_count(model.chunk_frames // 2 * model.unit_tokens) * settings.capacity
        )
        least = math.ceil((entering + LEVELS * settings.capacity) / page)
        pages = min(math.ceil(settings.tokens / page), int(host_mb * 1e6) // page_size)
        if pages < least:
            raise MemoryBudgetError(
                f"a long-term memory of {pages * page} tokens a layer (long_term.tokens "
                f"{settings.tokens}, memory.host_mb {host_mb:g}) "
                f"is too small for chunks of {model.chunk_frames} frames: set long_term.tokens "
                f"to at least {least * page}, and "
                f"memory.host_mb to at least {math.ceil(least * page_size / 1e4) / 100:g}"
            )
        return pages * page

    # ---- what the stream does
    # -------------------------------------------------------------------------------------------

    def absorb(self, departing: Departing) -> None:
        """Compress a chunk by Vision Sink Bucketing, and what is kept already if there is no
        room."""
        settings, count = self.settings, len(departing.unit)
        observed = departing.queries[:, -settings.observed :]
        scores = sink_scores(departing.k, departing.positions, observed, self.model)
        buckets = self._bucket_count(count)
        bucket = np.arange(count) * buckets // count
        kept = keep_best(scores, bucket, settings.capacity)
        self._make_room(kept.shape[1])
        self._append(departing, scores, kept)
        self._buckets = self._buckets.grown(np.minimum(np.bincount(bucket), settings.capacity))

    def _bucket_count(self, tokens: int) -> int:
        return max(round(self.settings.keep * tokens / self.settings.capacity), 1)

    def _append(self, departing: Departing, scores: np.ndarray, kept: np.ndarray) -> None:
        """kept: [L, m] of the chunk's tokens."""
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
        self._digest(new)

    def _make_room(self, tokens: int) -> None:
        """Merge buckets until so many more tokens fit. Waits until no view reads what is about to
        move."""
        excess = self._buckets.tokens + tokens - self.tokens
        if excess <= 0:
            return
        self._views.wait_unleased()
        before = self._buckets.tokens
        self._buckets, bucket = self._buckets.merged(
            self.settings.capacity, max(excess, self.tokens // MERGED_AT_ONCE)
        )
        kept = keep_best(self._scores[:, :before], bucket, self.settings.capacity)
        self._close_up(kept)
        units = set(np.unique(self._units[:, : kept.shape[1]]).tolist())
        self._pages = {unit: page for unit, page in self._pages.items() if unit in units}

    def _close_up(self, kept: np.ndarray) -> None:
        """Only these tokens stay, [L, m] ascending, without gaps."""
        count = kept.shape[1]
        moves = (kept != np.arange(count)).any(axis=0)
        moved = slice(int(moves.argmax()) if moves.any() else count, count)
        to_slot, to_cell = np.divmod(np.arange(moved.start, count), self.model.page_tokens)
        for layer, tokens in enumerate(kept[:, moved]):
            slot, cell = np.divmod(tokens, self.model.page_tokens)
            self.pool.data[to_slot, layer, :, :, to_cell] = self.pool.data[slot, layer, :, :, cell]
            self.pool.cell_positions[to_slot, layer, :, to_cell] = self.pool.cell_positions[
                slot, layer, :, cell
            ]
        for of_tokens in (self._scores, self._units):
            of_tokens[:, :count] = np.take_along_axis(of_tokens, kept, axis=1)
        self._digest(moved)

    def _digest(self, tokens: slice) -> None:
        """Mean keys, not rotated, of the pages that these tokens lie in; of the last page, of the
        tokens that it has so far."""
        page = self.page_cells * self.model.page_tokens
        first, last = tokens.start // page, math.ceil(tokens.stop / page)
        # [cells, L, Hkv, T, D]
        keys = self.pool.data[first * self.page_cells : last * self.page_cells, :, :, 0]
        there = np.arange(first * page, last * page) < tokens.stop
        by_page = keys.transpose(1, 0, 3, 2, 4).reshape(
            self.model.layers, last - first, page, *self._digests.shape[2:]
        )
        there = there.reshape(1, -1, page, 1, 1)
        self._digests[:, first:last] = np.where(there, by_page.astype(np.float32), 0).sum(
            axis=2
        ) / there.sum(axis=2)

    def shift(self, steps: int, floor: int) -> None:
        self._views.wait_unleased()
        slots = slice(math.ceil(self._buckets.tokens / self.model.page_tokens))
        self.pool.cell_positions[slots] = shifted(
            self.pool.cell_positions[slots], np.array([steps, 0, 0]), floor
        )

    @property
    def oldest(self) -> Fraction | None:
        return self._pages[int(self._units[:, 0].min())].start if self._buckets.tokens else None

    def cells_in_use(self) -> float:
        return math.ceil(self._buckets.tokens / self.model.page_tokens)

    def close(self) -> None:
        self._views.close()

    # ---- how it is read
    # -------------------------------------------------------------------------------------------------

    def view(self, leased: bool = True) -> PagesView:
        return PagesView(self, self._views if leased else None)

    def reader(self, view: View, recalls: Sequence[Recall]) -> ReadOnce:
        return ReadOnce(self.model, view, self.pool, recalls[0])

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> ChunkBefore:
        return ChunkBefore(self.model, view, self.pool, recalls[0])


class PagesView:
    """Position-agnostic retrieval over what memory held when this was taken: what comes later is
    written behind it."""

    def __init__(self, memory: SinkBucketsMemory, views: Slots | None) -> None:
        """views: where to hold memory fast, if at all."""
        self._memory, self._views = memory, views
        self._tokens = memory._buckets.tokens
        # of pages
        self._count = math.ceil(self._tokens / (memory.page_cells * memory.model.page_tokens))
        # the page that may be filled further
        self._last = memory._digests[:, max(self._count - 1, 0)].copy()
        self._units, self._pages = memory._units, memory._pages
        if views:
            views.lease([ALL])

    def choose(self, q: np.ndarray) -> Selection:
        """In each layer the share of pages whose mean key the question's mean query attends to
        most, all heads together."""
        memory, model = self._memory, self._memory.model
        if not self._count:
            return Selection.nothing(model)
        most = math.ceil(memory.settings.share * self._count)
        best = np.argsort(-self.scores(q), axis=1, kind="stable")[:, :most]
        cells = (
            np.sort(best, axis=1)[:, :, None] * memory.page_cells + np.arange(memory.page_cells)
        ).reshape(model.layers, -1)
        filled = np.clip(self._tokens - cells * model.page_tokens, 0, model.page_tokens)
        cells, filled = (
            np.repeat(x[:, None], model.kv_heads, axis=1).astype(np.int32) for x in (cells, filled)
        )
        return Selection(np.where(filled > 0, cells, NONE), filled)

    def scores(self, q: np.ndarray) -> np.ndarray:
        """[L, pages]: attention of q [L, Hq, D] over mean keys, the mean of all query heads."""
        digests = np.concatenate(
            [self._memory._digests[:, : self._count - 1], self._last[:, None]], axis=1
        )
        layers, _, heads, dim = digests.shape
        grouped = q.reshape(layers, heads, -1, dim)  # query head h reads KV head h // G
        return softmax(grouped @ digests.transpose(0, 2, 3, 1) * np.float32(dim**-0.5)).mean(
            axis=(1, 2)
        )

    def pages(self, selection: Selection) -> list[Page]:
        tokens = selection.cells[:, 0, :, None] * self._memory.model.page_tokens + np.arange(
            self._memory.model.page_tokens
        )
        seen = np.arange(self._memory.model.page_tokens) < selection.filled[:, 0, :, None]
        layer = np.broadcast_to(np.arange(len(tokens))[:, None, None], tokens.shape)
        return [
            self._pages[unit] for unit in np.unique(self._units[layer[seen], tokens[seen]]).tolist()
        ]

    def release(self) -> None:
        """The first call counts."""
        if self._views:
            self._views.release([ALL])
            self._views = None


class ReadOnce(TwoPass):
    """A question's two passes; memory is held fast only until what is chosen lies on the device."""

    def choose(self, q: np.ndarray) -> None:
        super().choose(q)
        self.release()
