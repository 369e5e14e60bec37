"""The protocols of long-term memory, which keeps what leaves the recent window, and of its readers.

`Memory` keeps the prompt and the recent chunks, in pages that all layers and heads share. Long-term
memory absorbs what leaves them and keeps it, as the system's policy says, in *cells*: a cell is
(slot, layer, head) of a pool in the host's memory, T un-rotated keys, then T values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.devices.pages import HostPool
from vicort.runtime.memory.long_term.selection import Recall, Selection


@dataclass(frozen=True)
class Departing:
    """A chunk that leaves the recent window. The arrays are copies, which the receiver may keep."""

    # one for each temporal unit with tokens, in order: its chunk, unit, start and end
    pages: tuple[Page, ...]
    unit: np.ndarray  # [n] index in `pages` of each token's unit, ascending
    k: np.ndarray  # [L, n, Hkv, D], not rotated
    v: np.ndarray  # [L, n, Hkv, D]
    positions: np.ndarray  # [n, 3] int32 (t, h, w)
    # [L, R, Hq, D] float32, not rotated, of the chunk's last R rows, oldest first; a chunk of fewer
    # rows has zeros before them
    queries: np.ndarray


class View(Protocol):
    """Long-term memory as it was at one moment. What the stream does later does not change it."""

    def choose(self, q: np.ndarray) -> Selection:
        """Chooses the cells to read. q: [L, Hq, D] float32, mean query of a run, not rotated."""
        ...

    def pages(self, selection: Selection) -> list[Page]:
        """The temporal units of which any layer or head reads a token, in the order of the
        stream."""
        ...

    def release(self) -> None: ...


class Reader(Protocol):
    """Reads long-term memory for one question, or for the stream's chunks. Call it only on the
    stream whose runs it serves."""

    @property
    def table(self) -> np.ndarray:
        """[L, Hkv, N] int32: device slots that the next run attends to, besides those that all
        layers and heads share."""
        ...

    @property
    def selection(self) -> Selection:
        """The cells in these slots."""
        ...

    reruns: int  # how often the same rows had to be run again

    @property
    def by_words(self) -> bool:
        """Whether the next pass of a question runs its words alone, without template and visual
        rows: then `must_rerun` is asked with their queries, and the question's rows run after."""
        ...

    @property
    def bytes_moved(self) -> int:
        """Bytes copied from this memory to the device."""
        ...

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        """Reports the mean queries q [L, Hq, D] of a run that has ended. Returns True if the same
        rows must run again, over the table as it is now.

        prefill: True if the run's rows were a question's text or a chunk, False for a token of an
        answer.
        """
        ...

    def pages(self) -> list[Page]:
        """The temporal units of which any run of a question could read a token here."""
        ...

    def release(self) -> None: ...


class StreamReader(Reader, Protocol):
    """Reads long-term memory for the stream's chunks."""

    def renew(self, view: View) -> None:
        """Lets the next chunk read memory as it is now, after a change or a shift in time."""
        ...


@dataclass(frozen=True)
class LongTermSize:
    """What a long-term memory takes within a budget, known before it is opened."""

    slots: int  # of its pool, on the host
    max_cells: int  # of a layer and head in one selection; the device slots of a set
    recall_sets: int
    reads_in_prefill: bool


class LongTerm(Protocol):
    """Call it only from the stream's own work; its views and readers may be used elsewhere."""

    pool: HostPool  # by_head
    max_cells: int  # of a layer and head in one selection; the device slots of a set
    # sets of device slots that a reader needs: 2 where one is filled while the other is read
    recall_sets: int
    reads_in_prefill: bool  # whether chunks attend to it, and not questions only
    # Whether chunks are absorbed as they are written, not when they leave the window: then
    # questions read the window from here alone.
    holds_window: bool

    @property
    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest temporal unit of which any layer or head keeps a
        token."""
        ...

    def absorb(self, departing: Departing) -> None:
        """Keeps what leaves the window, or with `holds_window` what enters it; compresses or evicts
        to stay within the pool."""
        ...

    def view(self, leased: bool = True, within: TimeRange | None = None) -> View:
        """Takes a view. leased=False: for the stream's reader, which is renewed before anything
        changes. within: the view chooses among tokens of units that overlap this range, and reads
        no other."""
        ...

    def shift(self, steps: int, floor: int) -> None:
        """Subtracts `steps` from the time position of every token, not below `floor`; waits until
        no view is leased."""
        ...

    def cells_in_use(self) -> float:
        """The mean number of cells of a layer and head."""
        ...

    def reader(self, view: View, recalls: Sequence[Recall]) -> Reader:
        """Opens a reader for one question. recalls: `recall_sets` of `max_cells` slots each."""
        ...

    def stream_reader(self, view: View, recalls: Sequence[Recall]) -> StreamReader:
        """Opens a reader for chunks, if `reads_in_prefill`; its view is not leased."""
        ...

    def close(self) -> None: ...
