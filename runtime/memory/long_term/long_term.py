"""Long-term memory by layer and head: what becomes of chunks that leave the recent window, and how
they are read again.

Short-term memory, the prompt and the recent chunks, is `Memory`'s, in pages that all layers and
heads share. What leaves it is taken here, and kept as a system sees fit, in *cells*: (slot, layer,
head) of a pool in the host's memory, T un-rotated keys, then T values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.devices.pages import HostPool
from vicort.runtime.memory.long_term.selection import Recall, Selection


@dataclass(frozen=True)
class Departing:
    """A chunk that leaves the recent window: copies, the taker's to keep."""

    # one a temporal unit with tokens, in order: its chunk, unit, start and end
    pages: tuple[Page, ...]
    unit: np.ndarray  # [n] index into pages, of each token, ascending
    k: np.ndarray  # [L, n, Hkv, D], not rotated
    v: np.ndarray  # [L, n, Hkv, D]
    positions: np.ndarray  # [n, 3] int32 (t, h, w)
    # [L, R, Hq, D] float32, not rotated: of the chunk's last R rows, oldest first; zeros in front
    # of fewer
    queries: np.ndarray


class View(Protocol):
    """Long-term memory as it was when the view was taken: whatever the stream does afterwards
    changes nothing in it."""

    def choose(self, q: np.ndarray) -> Selection:
        """The cells to read. q: [L, Hq, D] float32, the mean query of a run, not rotated."""
        ...

    def pages(self, selection: Selection) -> list[Page]:
        """The temporal units of which any layer or head sees something, in the order of the
        stream."""
        ...

    def release(self) -> None: ...


class Reader(Protocol):
    """How one question, or the stream's own chunks, read long-term memory; called from the work of
    whose runs it serves."""

    @property
    def table(self) -> np.ndarray:
        """[L, Hkv, N] int32: device slots that the next run attends to, besides what all layers and
        heads share."""
        ...

    @property
    def selection(self) -> Selection:
        """What lies there."""
        ...

    reruns: int  # how often the same rows had to be run again

    @property
    def bytes_moved(self) -> int:
        """From this memory to the device."""
        ...

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        """A run has ended whose mean queries were q [L, Hq, D]. True: run the same rows again, over
        the table as it is now.

        prefill: whether the run brought a question's text, or a chunk; False for a token of an
        answer.
        """
        ...

    def pages(self) -> list[Page]:
        """The temporal units that any run of a question could see here."""
        ...

    def release(self) -> None: ...


class StreamReader(Reader, Protocol):
    """How chunks read it."""

    def renew(self, view: View) -> None:
        """Memory has changed, or moved: the next chunk reads from what it is now."""
        ...


class LongTerm(Protocol):
    """All but `View`s and `Reader`s are used in the order of the stream, from its own work."""

    pool: HostPool  # by_head
    # the most that one selection names for a layer and head: so many device slots a set
    max_cells: int
    # sets of device slots that a reader needs: 2 where one is filled while the other is read
    recall_sets: int
    reads_in_prefill: bool  # whether chunks attend to it, and not questions only

    @property
    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest temporal unit of which any layer or head still holds
        something."""
        ...

    def absorb(self, departing: Departing) -> None:
        """Keep what leaves the window; compresses, or forgets, to stay within the pool."""
        ...

    def view(self, leased: bool = True) -> View:
        """leased=False: for the stream's own reader, which is renewed before anything changes."""
        ...

    def shift(self, steps: int, floor: int) -> None:
        """Take `steps` off the time of all that is kept, not below `floor`; waits until no view is
        leased."""
        ...

    def cells_in_use(self) -> float:
        """In pages: cells over all layers and heads, divided by their number."""
        ...

    def reader(self, view: View, recalls: Sequence[Recall]) -> Reader:
        """For one question. recalls: `recall_sets` of them, of `max_cells` device slots each."""
        ...

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> StreamReader:
        """For chunks, if they read this memory; its view is not leased."""
        ...

    def close(self) -> None: ...
