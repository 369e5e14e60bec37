"""The units of one moment in ReKV's memory (arXiv 2503.00540), and how a question chooses and reads
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.pages import HostPool
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.page_digest import top_pages
from vicort.runtime.memory.long_term.page_ring import numbers_within
from vicort.runtime.memory.long_term.readers import CellReader
from vicort.runtime.memory.long_term.selection import Recall, Selection
from vicort.runtime.memory.page_tables import NONE

if TYPE_CHECKING:
    from vicort.runtime.memory.long_term.frame_recall import FrameRecallMemory


@dataclass(frozen=True)
class FrameSelection(Selection):
    units: np.ndarray  # [L, n] int64, ascending: numbers of the units, the same for all heads
    # [L, N] int32: the time position at which each cell's tokens are read; None = their own
    time: np.ndarray | None

    def placed(self, positions: np.ndarray, where: tuple[np.ndarray, ...]) -> np.ndarray:
        if self.time is None:
            return positions
        layer, _, column = where
        time = np.broadcast_to(self.time[layer, column][:, None], positions.shape[:2])
        return np.concatenate([time[..., None], positions[..., 1:]], axis=-1)


class FrameView:
    """The units first, …, last - 1 of one moment. If it is leased, they stay until `release`."""

    def __init__(
        self, memory: FrameRecallMemory, leased: bool, within: TimeRange | None = None
    ) -> None:
        """within: only units that overlap it."""
        self._memory, self._leased = memory, leased
        self.first, self.last = numbers_within(within, memory.held, memory.first, memory.units.last)
        self._spans = memory.units.spans(self.first, self.last)
        self._newest_time, self._floor = memory.newest_time, memory.floor
        self._first_page = memory.first_page_of(self.first)
        if leased:
            memory.units.lease(self.first)
            memory.pages.lease(self._first_page)

    @property
    def count(self) -> int:
        return self.last - self.first

    def choose(self, q: np.ndarray) -> FrameSelection:
        """Chooses, in each layer, the units with the highest scores; of equals, the earlier."""
        top = min(self._memory.settings.top, self.count)
        best = top_pages(self.scores(q)[:, None], top)[:, 0] if top else None
        layers = self._memory.model.layers
        return self._selection(np.empty((layers, 0), int) if best is None else self.first + best)

    def scores(self, q: np.ndarray) -> np.ndarray:
        """q [L, Hq, D] · mean key, summed over the query heads, of which head h reads KV head
        h // G: [L, count] float32.

        The public code calls this a cosine, and divides by no length.
        """
        digests, layers = self._memory.digests, len(q)
        # the sum over a group's queries, since they meet the same key
        grouped = q.reshape(layers, digests.shape[2], -1, q.shape[2]).sum(axis=2)
        query = grouped.reshape(layers, -1, 1)
        parts = [digests[:, span].reshape(layers, -1, query.shape[1]) for span in self._spans]
        return np.concatenate([part @ query for part in parts], axis=1)[..., 0]

    def _selection(self, units: np.ndarray) -> FrameSelection:
        """The cells of units. units: [L, n] numbers, ascending."""
        memory, page_tokens = self._memory, self._memory.model.page_tokens
        layers, count = units.shape
        slots = memory.units.slot(units.ravel())
        pages = -(-memory.tokens[slots] // page_tokens)  # of each unit
        ends = np.cumsum(pages)
        number = np.repeat(np.arange(units.size), pages)  # of each cell: which unit it belongs to
        cell = np.arange(len(number)) - (ends - pages)[number]  # which of the unit's pages it is
        layer = number // max(count, 1)
        of_layer = pages.reshape(layers, count).sum(axis=1)
        column = np.arange(len(number)) - (np.cumsum(of_layer) - of_layer)[layer]
        width = int(of_layer.max(initial=0))
        cells, filled, time = (np.full((layers, width), value, np.int32) for value in (NONE, 0, 0))
        cells[layer, column] = memory.pages.slot(memory.first_pages[slots][number] + cell)
        filled[layer, column] = np.minimum(
            memory.tokens[slots][number] - cell * page_tokens, page_tokens
        )
        consecutive = memory.settings.positions == "consecutive"
        if consecutive:
            time[layer, column] = self.times(units).ravel()[number]
        shape = layers, memory.model.kv_heads, width
        return FrameSelection(
            np.broadcast_to(cells[:, None], shape),
            np.broadcast_to(filled[:, None], shape),
            units,
            time if consecutive else None,
        )

    def times(self, units: np.ndarray) -> np.ndarray:
        """Time positions of units [L, n], without the gaps between them: the last is where the
        newest unit of the stream is. [L, n] int32.

        In the public code what a question reads has consecutive positions, and the question follows
        them.
        """
        leads = self._memory.leads[self._memory.units.slot(units)]
        after = leads[:, ::-1].cumsum(axis=1)[:, ::-1] - leads  # of the units that follow each
        return np.maximum(self._newest_time - after, self._floor)

    def pages(self, selection: Selection) -> list[Page]:
        if not isinstance(selection, FrameSelection):
            raise TypeError("this is a selection of another memory")
        slots = self._memory.units.slot(np.unique(selection.units)).tolist()
        return [page for slot in slots if (page := self._memory.held[slot])]

    def release(self) -> None:
        """Ends the lease; further calls do nothing."""
        if self._leased:
            self._leased = False
            self._memory.units.release(self.first)
            self._memory.pages.release(self._first_page)


class WordsFirst(CellReader):
    """Runs a question's words alone, over the prompt and what has been chosen so far, so that their
    queries choose; then its rows, and its answer, over that choice.

    The public code chooses in each layer with queries that come from the choices of the layers
    below. An engine gives all layers at once: after k passes, the choices of the first k layers are
    those.
    """

    def __init__(
        self, model: ModelSpec, view: FrameView, source: HostPool, recall: Recall, passes: int
    ) -> None:
        super().__init__(model, view, source, recall)
        self._left = passes if view.count else 0  # passes that still choose

    @property
    def by_words(self) -> bool:
        return self._left > 0

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        if not self._left:
            return False
        before = self.selection
        self.choose(q)
        self._left -= 1
        if np.array_equal(before.cells, self.selection.cells):
            self._left = 0
        if not self._left:
            self.release()  # what it reads lies on the device
        self.reruns += 1
        return True
