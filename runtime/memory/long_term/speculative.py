"""FreeKV's way to read (arXiv 2505.13109): a run reads the pages that an earlier run chose, while
the next run's pages are chosen and recalled in the background.

The engine gives the queries of all layers at the end of a run. So these queries choose what a run
reads:

- With a lookahead of 2, a token of an answer reads what the queries of the token *two* before it
  chose: that choice was made, and its cells copied, while the token before it ran. The first two
  tokens of an answer read what the question's text chose in a second pass, because there are no
  queries before them.
- With a lookahead of 1, a token reads what the queries of the token before it chose. That is
  FreeKV's rule; but FreeKV knows each layer's queries in the middle of a step, and recalls while
  the rest of the step runs. Here all layers choose and recall between two tokens, and the next
  token waits for that.
- A chunk reads what the queries of the chunk *before* it chose: cells are copied between the two
  runs, while vision encodes later chunks.
- A KV head is corrected if its queries in a run differ too much from those that chose (cosine below
  tau): it chooses again with the run's own queries, and the run is repeated, once. The next run
  reads that choice, too.

Each layer and head has two sets of device cells, one to read and one to fill, and swaps them
independently of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.devices.device import StreamEvent
from vicort.runtime.memory.long_term.page_digest import query_similarity
from vicort.runtime.memory.long_term.protocols import View
from vicort.runtime.memory.long_term.recall_streams import Move, RecallStreams
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.page_tables import NONE
from vicort.runtime.policies.long_term import GroupSimilarity

if TYPE_CHECKING:
    from vicort.runtime.memory.long_term.page_recall import (
        PageRecallMemory,
        PageSelection,
        PageView,
    )


@dataclass(frozen=True)
class Speculation:
    # lowest cosine at which a head keeps its choice; None = never corrected
    tau_prefill: float | None  # of a chunk or a question's text
    tau_decode: float | None  # of an answer's tokens
    lookahead: int  # tokens of an answer from the queries that choose to the one that reads: 1, 2
    group_similarity: GroupSimilarity


class Speculative:
    """The reader of one question, or of the stream's chunks. One thread at a time may call it."""

    by_words = False

    def __init__(
        self,
        memory: PageRecallMemory,
        view: PageView,
        recalls: Sequence[Recall],
        streams: RecallStreams,
        speculation: Speculation,
        of_stream: bool,
    ) -> None:
        """recalls: two sets of N device slots. of_stream: True = reads for chunks."""
        model, cells = memory.model, memory.max_cells
        heads = model.layers, model.kv_heads
        group = model.query_heads // model.kv_heads
        self._memory = memory
        self._view = view
        self._streams = streams
        self._speculation = speculation
        self._of_stream = of_stream
        self._pool = recalls[0].pool
        self._slots = np.stack([recall.slots for recall in recalls])  # [2, N]
        self._read_set = np.zeros(heads, int)  # [L, Hkv] the set that is read
        # of both sets, [2, L, Hkv, N]: number of the page in each cell; numbers of the chosen
        # pages, ascending; device slots of the chosen pages. NONE = none, which comes last
        self._resident = np.full((2, *heads, cells), NONE, np.int64)
        self._pages = np.full((2, *heads, cells), NONE, np.int64)
        self._tables = np.full((2, *heads, cells), NONE, np.int32)
        # [2, L, Hkv, G, D] the queries that chose
        self._queries = np.zeros((2, *heads, group, model.head_dim), np.float32)
        self._has_choice = False  # whether anything was chosen for the sets that are read
        self._recall: StreamEvent | None = (
            None  # in the background, into the sets that are not read
        )
        self._corrected: np.ndarray | None = None  # [L, Hkv] bool, while a run is repeated
        self._q: np.ndarray | None = None  # [L, Hq, D] of the newest run
        self._seen = np.zeros(view.count, bool)  # pages of the view that any run read
        self.reruns = 0
        self.bytes_moved = 0

    @property
    def table(self) -> np.ndarray:
        """[L, Hkv, N] int32; waits until the cells that it names are copied."""
        if self._of_stream:
            self._swap_sets()
        return self._read(self._tables)[:, :, : self._max_pages]

    @property
    def selection(self) -> PageSelection:
        return self._view.selection(self._read(self._pages)[:, :, : self._max_pages])

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        q = q.copy()
        if not self._of_stream:
            self._note_pages_read()
        if self._corrected is None:
            wrong = self._wrong_heads(q, prefill)
            if wrong.any():
                self._choose(self._read_set, wrong, q).done()
                self._has_choice, self._corrected = True, wrong
                self.reruns += 1
                return True
        corrected, self._corrected = self._corrected, None
        self._q = q
        if not self._of_stream:
            self._swap_sets(corrected)
            self._choose_in_background(q)
        return False

    def renew(self, view: View) -> None:
        self.wait_for_recall()
        view = self._memory.own_view(view)
        if view.shifts != self._view.shifts:
            self._resident[:] = NONE  # positions on the device are from before the shift
        self._view = view
        if self._q is not None and view.count:
            self._choose_in_background(self._q)

    def pages(self) -> list[Page]:
        return self._view.units(self._view.first + np.flatnonzero(self._seen))

    def wait_for_recall(self) -> None:
        """Waits for the recall in the background."""
        if self._recall:
            self._recall.done()

    def release(self) -> None:
        self.wait_for_recall()
        self._view.release()

    # ---- the sets that are read

    def _read(self, sets: np.ndarray) -> np.ndarray:
        """Of each layer and head, the set that is read: [2, L, Hkv, …] -> [L, Hkv, …]."""
        layers, heads = np.indices(self._read_set.shape)
        return sets[self._read_set, layers, heads]

    @property
    def _max_pages(self) -> int:
        """The largest number of pages that a layer and head reads now."""
        return int((self._read(self._pages) != NONE).sum(axis=-1).max())

    def _note_pages_read(self) -> None:
        pages = self._read(self._pages)
        self._seen[pages[pages != NONE] - self._view.first] = True

    def _wrong_heads(self, q: np.ndarray, prefill: bool) -> np.ndarray:
        """The heads that must choose again with q [L, Hq, D]: [L, Hkv] bool."""
        none = np.zeros(self._read_set.shape, bool)
        tau = self._speculation.tau_prefill if prefill else self._speculation.tau_decode
        if not self._view.count:
            return none
        if not self._has_choice:
            return none if self._of_stream else ~none
        # heads that read all pages cannot choose better
        if tau is None or self._max_pages == self._view.count:
            return none
        chose = self._read(self._queries)  # [L, Hkv, G, D]
        alike = query_similarity(
            q,
            chose.reshape(q.shape),
            self._read_set.shape[1],
            self._speculation.group_similarity,
        )
        return alike < tau

    # ---- choice and recall

    def _choose_in_background(self, q: np.ndarray) -> None:
        """Starts to fill the sets that are not read with what q chooses; with a lookahead of 1, an
        answer waits for them and reads them."""
        if not self._view.count:
            return
        self._recall = self._choose(1 - self._read_set, np.ones(self._read_set.shape, bool), q)
        if self._speculation.lookahead == 1 and not self._of_stream:
            self._swap_sets()

    def _swap_sets(self, kept: np.ndarray | None = None) -> None:
        """Waits for the recall in the background and reads its sets; the `kept` heads, [L, Hkv]
        bool, do not swap."""
        if not self._recall:
            return
        self.wait_for_recall()
        self._recall = None
        self._read_set[~kept if kept is not None else ...] ^= 1
        self._has_choice = True

    def _choose(self, sets: np.ndarray, heads: np.ndarray, q: np.ndarray) -> StreamEvent:
        """Chooses with q for some heads, [L, Hkv] bool, and copies the pages to the set of each,
        `sets` [L, Hkv]."""
        return self._streams.run(self._choose_in_stream, self._view, sets.copy(), heads, q)

    def _choose_in_stream(
        self, view: PageView, sets: np.ndarray, heads: np.ndarray, q: np.ndarray
    ) -> None:
        pages, queries = view.choose(q).pages, q.reshape(self._queries.shape[1:])
        moves = []
        for layer, head in np.argwhere(heads).tolist():
            side = sets[layer, head]
            self._queries[side, layer, head] = queries[layer, head]
            moves.append(self._assign(side, layer, head, pages[layer, head]))
        self._streams.move_in_stream(self._memory.pool, self._pool, moves)
        moved = sum(len(move.target_slots) for move in moves)
        self.bytes_moved += moved * self._memory.pool.data[0, 0, 0].nbytes

    def _assign(self, side: int, layer: int, head: int, pages: np.ndarray) -> Move:
        """Assigns pages [n], ascending numbers, to cells of a set; returns the copies to make."""
        resident = self._resident[side, layer, head]
        cells, is_missing = assign_cells(resident, pages)
        resident[cells] = pages
        slots = self._slots[side, cells]
        for array, values in ((self._pages, pages), (self._tables, slots)):
            array[side, layer, head] = NONE
            array[side, layer, head, : len(pages)] = values
        return Move(layer, head, self._memory.ring.slot(pages[is_missing]), slots[is_missing])


def assign_cells(resident: np.ndarray, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assigns a cell to each page: the one where it lies already, or one whose page is not chosen.

    resident: [N] number of the page in each cell, NONE = empty; pages: [n] ascending numbers,
    n <= N. Returns the cells, [n] int64, and which pages must be copied there, [n] bool.

    Cells hold pages 7, 3 and none. Page 3 stays in cell 1; page 9 overwrites page 7 in cell 0.

    >>> cells, is_missing = assign_cells(np.array([7, 3, NONE]), pages=np.array([3, 9]))
    >>> cells.tolist(), is_missing.tolist()
    ([1, 0], [False, True])
    """
    by_page = np.argsort(resident)
    found = np.searchsorted(resident, pages, sorter=by_page)
    cells = by_page[np.minimum(found, len(resident) - 1)]
    is_missing = resident[cells] != pages
    is_free = np.ones(len(resident), bool)
    is_free[cells[~is_missing]] = False
    cells[is_missing] = np.flatnonzero(is_free)[: is_missing.sum()]
    return cells, is_missing
