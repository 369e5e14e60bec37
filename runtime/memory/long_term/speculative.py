"""FreeKV's way to read (arXiv 2505.13109): with pages chosen for an earlier run, whose successors
are chosen and recalled behind.

The engine gives the queries of all layers at the end of a run, so which queries chose what a run
reads is this:

- A token of an answer reads what the queries of the token *two* before it chose: that choice was
  made, and its cells moved, while the
  token before it ran. (In FreeKV, which learns each layer's queries in the middle of a step, it is
  one.) The first token of an answer,
  and the second, read what the question's text chose for itself in a second pass: no queries are
  there before them.
- A chunk reads what the queries of the chunk *before* it chose: cells move between the two runs,
  while later chunks are seen.
- A KV head whose queries in a run point elsewhere than those that chose (cosine below tau) is
  corrected: it chooses anew with the
  run's own queries, and the run is made again, once. It goes on with that choice in the next run
  too.

Each layer and head has two sets of device cells, one that is read and one that is filled, and turns
from one to the other by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.devices.device import StreamEvent
from vicort.runtime.memory.long_term.long_term import View
from vicort.runtime.memory.long_term.page_digest import query_similarity
from vicort.runtime.memory.long_term.recall_streams import Move, RecallStreams
from vicort.runtime.memory.long_term.selection import NONE, Recall

if TYPE_CHECKING:
    from vicort.runtime.memory.long_term.page_recall import (
        PageRecallMemory,
        PageSelection,
        PageView,
    )


@dataclass(frozen=True)
class Speculation:
    # least cosine with which a chunk's head keeps its choice; None = chunks are never corrected
    tau_prefill: float | None
    tau_decode: float | None  # of an answer's tokens
    # False: each recall is waited for at once, and a token reads what the token before it chose
    ahead: bool


class Speculative:
    """One question's reader, or that of the stream's chunks. Its verbs are called from one thread
    at a time."""

    def __init__(
        self,
        memory: PageRecallMemory,
        view: PageView,
        recalls: Sequence[Recall],
        streams: RecallStreams,
        speculation: Speculation,
        of_stream: bool,
    ) -> None:
        """recalls: two sets of device slots."""
        model, cells = memory.model, memory.most_cells
        self._memory = memory
        self._view = view
        self._streams = streams
        self._speculation = speculation
        self._of_stream = of_stream
        # [2, N]
        self._pool = recalls[0].pool
        self._slots = np.stack([recall.slots for recall in recalls])
        heads = model.layers, model.kv_heads
        self._front = np.zeros(heads, int)  # the set that is read
        # number of the page that lies in each place
        self._held = np.full((2, *heads, cells), NONE, np.int64)
        # numbers of the chosen pages, ascending, NONE behind them
        self._pages = np.full((2, *heads, cells), NONE, np.int64)
        # device slots of the chosen pages
        self._tables = np.full((2, *heads, cells), NONE, np.int32)
        self._queries = np.zeros(
            (2, model.layers, model.kv_heads, model.query_heads // model.kv_heads, model.head_dim),
            np.float32,
        )
        self._chosen = False  # whether anything is in use
        self._behind: StreamEvent | None = None  # a recall into the sets that are not read
        self._corrected: np.ndarray | None = None  # [L, Hkv] bool, of the run that is made again
        self._q: np.ndarray | None = None  # [L, Hq, D] of the newest run
        self._seen = np.zeros(view.count, bool)  # pages of the view that any run read
        self.reruns = 0
        self.bytes_moved = 0

    @property
    def table(self) -> np.ndarray:
        """[L, Hkv, N] int32; waits until what is to be read has come."""
        if self._of_stream:
            self._turn()
        return self._of_front(self._tables)[:, :, : self._most]

    @property
    def selection(self) -> PageSelection:
        return self._view.selection(self._of_front(self._pages)[:, :, : self._most])

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        q = q.copy()
        if not self._of_stream:
            self._note()
        if self._corrected is None and (wrong := self._wrong(q, prefill)).any():
            self._fill(self._front, wrong, q).done()
            self._chosen, self._corrected = True, wrong
            self.reruns += 1
            return True
        corrected, self._corrected = self._corrected, None
        self._q = q
        if not self._of_stream:
            self._turn(corrected)
            self._choose_behind(q)
        return False

    def renew(self, view: View) -> None:
        self.settle()
        view = self._memory.own_view(view)
        if view.shifts != self._view.shifts:
            self._held[:] = NONE  # the positions on the device are of another time
        self._view = view
        if self._q is not None and view.count:
            self._choose_behind(self._q)

    def pages(self) -> list[Page]:
        return self._view.units(self._view.first + np.flatnonzero(self._seen))

    def settle(self) -> None:
        """Wait for the recall that runs behind."""
        if self._behind:
            self._behind.done()

    def release(self) -> None:
        self.settle()
        self._view.release()

    # ---- what is in use
    # -------------------------------------------------------------------------------------------------

    def _of_front(self, sets: np.ndarray) -> np.ndarray:
        """Of each layer and head, the set that is read: [2, L, Hkv, …] -> [L, Hkv, …]."""
        layers, heads = np.indices(self._front.shape)
        return sets[self._front, layers, heads]

    @property
    def _most(self) -> int:
        """The most pages that a layer and head reads now."""
        return int((self._of_front(self._pages) != NONE).sum(axis=-1).max())

    def _note(self) -> None:
        pages = self._of_front(self._pages)
        self._seen[pages[pages != NONE] - self._view.first] = True

    def _wrong(self, q: np.ndarray, prefill: bool) -> np.ndarray:
        """Which heads must choose anew, [L, Hkv] bool."""
        none, tau = (
            np.zeros(self._front.shape, bool),
            self._speculation.tau_prefill if prefill else self._speculation.tau_decode,
        )
        if not self._view.count:
            return none
        if not self._chosen:
            return none if self._of_stream else ~none
        # who reads everything cannot choose better
        if tau is None or self._most == self._view.count:
            return none
        in_use = self._of_front(self._queries)  # [L, Hkv, G, D]
        return query_similarity(q, in_use.reshape(q.shape), self._front.shape[1]) < tau

    # ---- choice and recall
    # ----------------------------------------------------------------------------------------------

    def _choose_behind(self, q: np.ndarray) -> None:
        if not self._view.count:
            return
        self._behind = self._fill(1 - self._front, np.ones(self._front.shape, bool), q)
        if not self._speculation.ahead:
            self._turn()

    def _turn(self, but: np.ndarray | None = None) -> None:
        """Read what was recalled behind; all but these heads, [L, Hkv] bool."""
        if not self._behind:
            return
        self.settle()
        self._behind = None
        self._front[~but if but is not None else ...] ^= 1
        self._chosen = True

    def _fill(self, sets: np.ndarray, which: np.ndarray, q: np.ndarray) -> StreamEvent:
        """Choose with q for `which` heads, [L, Hkv] bool, and bring the pages to the set, [L, Hkv],
        of each."""
        return self._streams.run(self._fill_now, self._view, sets.copy(), which, q)

    def _fill_now(self, view: PageView, sets: np.ndarray, which: np.ndarray, q: np.ndarray) -> None:
        pages, queries = view.choose(q).pages, q.reshape(self._queries.shape[1:])
        moves = []
        for layer, head in np.argwhere(which).tolist():
            side = sets[layer, head]
            self._queries[side, layer, head] = queries[layer, head]
            moves.append(self._place(side, layer, head, pages[layer, head]))
        self._streams.move(self._memory.pool, self._pool, moves)
        self.bytes_moved += (
            sum(len(move.here) for move in moves) * self._memory.pool.data[0, 0, 0].nbytes
        )

    def _place(self, side: int, layer: int, head: int, pages: np.ndarray) -> Move:
        """Give each page [n], ascending numbers, a place in a set; those that lie there already
        stay, the others have to move."""
        held = self._held[side, layer, head]
        order = np.argsort(held)
        places = order[np.minimum(np.searchsorted(held, pages, sorter=order), len(held) - 1)]
        moves = held[places] != pages
        free = np.ones(len(held), bool)
        free[places[~moves]] = False
        places[moves] = np.flatnonzero(free)[: moves.sum()]
        held[places] = pages
        for array, values in ((self._pages, pages), (self._tables, self._slots[side, places])):
            array[side, layer, head] = NONE
            array[side, layer, head, : len(pages)] = values
        return Move(
            layer, head, self._memory.ring.slot(pages[moves]), self._slots[side, places[moves]]
        )
