"""What a stream remembers: the prompt, appended text, and temporal units over two tiers.

A system with long-term memory by layer and head has that instead of the host tier: chunks go there
when they leave the recent window. Positions of cached tokens and of the tokens to come are moved
here together, and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import UNIT_FRAMES, Chunk, Page, PageTable, TimeRange
from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.engines.buckets import padded_slots
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.chunk_fork import ChunkFork
from vicort.runtime.memory.lease import Lease
from vicort.runtime.memory.long_term.factory import long_term_size, open_long_term
from vicort.runtime.memory.long_term.protocols import LongTerm, Reader, StreamReader, View
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.memory_plan import MemoryPlan
from vicort.runtime.memory.page_tables import concat_tables, pad_table
from vicort.runtime.memory.tiers import PageLocation, Tiers
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.memory.window import RecentWindow
from vicort.runtime.policies.chunk_index import (
    ChunkEntry,
    ChunkIndex,
    ChunksWithin,
    IndexedChunks,
    WithOpenChunk,
)
from vicort.runtime.policies.retrieval import Retrieval
from vicort.runtime.policies.system import System


class Memory:
    """All methods run in the order of the stream, from its own work, but those of the section for
    questions, which run in the work of the question's stream where they take one."""

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        system: System,
        timeline: Timeline,
        dtype: DTypeLike,
        clock: StageClock,
    ) -> None:
        """Allocates both tiers.

        timeline: the positions of tokens to come, which only this memory moves from now on.
        clock: records the spans of long-term memory's work in the background. Raises
        MemoryBudgetError, with the smallest budget that works, if one chunk does not fit.
        """
        self.model = model
        self.system = system
        self.timeline = timeline
        self.long_term = (
            open_long_term(system.long_term, device, model, system.budget.host_mb, dtype, clock)
            if system.long_term
            else None
        )
        by_head = self.long_term is not None
        size = (
            long_term_size(system.long_term, model, system.budget.host_mb, dtype)
            if system.long_term
            else None
        )
        plan = MemoryPlan.of(model, system, size, timeline.first, page_bytes(model, dtype, by_head))
        unit_pages = math.ceil(model.unit_tokens / model.page_tokens)
        self.chunks = ChunkIndex(
            model.width,
            unit_pages,
            compares=system.retrieval.compares,
            finds_alike=system.overflow.compares,
        )
        self.tiers = Tiers(device, model, plan, dtype, by_head, system.overflow, self.chunks)
        self.pool = self.tiers.pool
        self.reruns = 0  # runs of the language graph that were repeated over another choice
        self._window = RecentWindow(model, system, self.tiers, self.chunks)
        self._prompt: list[PageLocation] = []
        self._texts: deque[list[PageLocation]] = deque()  # appended runs of text, oldest first
        self._reader_bytes = 0  # that readers of questions moved, and chunks that left the window
        self._stream_reader = self._new_stream_reader()
        # the chunk that is being filled, if a question has asked for it
        self.fork: ChunkFork | None = None
        self._newest_chunk = 0  # index of the chunk that has come
        self.chunks_kept = 0  # chunks so far of which any token was kept
        self.newest_kept = -1  # index of the newest of them
        self.chunks_absorbed = 0  # that long-term memory has taken so far
        # seconds, end of the newest unit that it has taken
        self.absorbed_until: Fraction | None = None

    # ---- what the stream writes ----

    def write_prompt(self, k: Array, v: Array, positions: np.ndarray, stream: Stream) -> None:
        """The prompt comes first, and stays.

        k, v: [L, R, Hkv, D], R at least n; positions: [n, 3].
        """
        template = Page(-1, "prompt", 0)
        self._prompt = self.tiers.write([template], [len(positions)], k, v, positions, stream)

    def write_chunk(
        self,
        chunk: Chunk,
        tokens_of_unit: Sequence[int],
        k: Array,
        v: Array,
        positions: np.ndarray,
        digest: np.ndarray,
        stream: Stream,
        queries: np.ndarray | None = None,
    ) -> None:
        """Cache a chunk's kept tokens, unit by unit.

        tokens_of_unit: kept tokens of each unit; k, v: [L, R, Hkv, D], R at least C; positions:
        [C, 3], C their sum; digest: [width]; queries: [L, R, Hq, D] float32 of its last rows, for
        long-term memory. Older units move to the host tier or to long-term memory, or are evicted.
        """
        last = chunk.first_unit + chunk.units - 1
        self.tiers.write_units(unit_pages(chunk), tokens_of_unit, k, v, positions, stream)
        units = [chunk.first_unit + u for u, tokens in enumerate(tokens_of_unit) if tokens]
        if units:
            pages = sum(len(self.tiers.locations(unit)) for unit in units)
            entry = ChunkEntry(chunk.index, units, pages, last, queries)
            self.chunks.add(entry, digest)
            self.chunks_kept, self.newest_kept = self.chunks_kept + 1, chunk.index
            if self.long_term and self.long_term.holds_window:
                self._absorb(entry, self.long_term)
        self._leave_window(last)

    def write_fork(
        self,
        chunk: Chunk,
        tokens_of_unit: Sequence[int],
        written: tuple[Array, Array] | None,
        positions: np.ndarray,
        table: np.ndarray,
        digest: np.ndarray,
        next_text: int,
        stream: Stream,
    ) -> None:
        """Keep a chunk that is still being filled, for the questions that come before the next one
        is written; what the stream remembers does not change.

        As `write_chunk`; written: k and v, None = no token is kept; table: what it was run over;
        next_text: position of the first text token after it.
        """
        locations = (
            self.tiers.write_fork(unit_pages(chunk), tokens_of_unit, *written, positions, stream)
            if written
            else []
        )
        last = chunk.first_unit + chunk.units - 1
        self.fork = ChunkFork(
            chunk.index, chunk.start, last, tuple(locations), digest, next_text, positions, table
        )

    def keep_fork(
        self,
        chunk: Chunk,
        tokens_of_unit: Sequence[int],
        positions: np.ndarray,
        table: np.ndarray,
        next_text: int,
    ) -> bool:
        """As `write_fork`, where the fork before is one of the same chunk, and nothing of what came
        since is kept: then its pages are what a run would write again. Returns whether it is."""
        fork = self.fork
        if fork is None or fork.index != chunk.index or self.long_term or self.system.text.joins:
            return False
        kept = [
            (page.unit, page.end, tokens)
            for page, tokens in zip(unit_pages(chunk), tokens_of_unit, strict=True)
            if tokens
        ]
        is_same = np.array_equal(fork.positions, positions) and np.array_equal(fork.table, table)
        if not is_same or fork.kept() != kept:
            return False
        self.fork = replace(fork, last=chunk.first_unit + chunk.units - 1, next_text=next_text)
        return True

    def begin_chunk(self, chunk: Chunk) -> None:
        """The next chunk comes, or a fork of it: the fork before is over."""
        self.tiers.drop_fork()
        self.fork = None
        if not chunk.forked:
            self._newest_chunk = chunk.index

    def append_text(
        self, pages: Sequence[Page], slots: Sequence[int], end: int, stream: Stream
    ) -> None:
        """Text becomes part of the stream: what follows sees it, until newer text takes its place.

        pages, slots: of its tokens, which are copied from these scratch slots; end: position of its
        last token.
        """
        budget = self.system.text.tokens
        self._texts.append(self.tiers.copy(pages, slots, stream))
        while len(self._texts) > 1 and sum(map(_tokens, self._texts)) > budget:
            self.tiers.free(self._texts.popleft())
        self.timeline.append_text(end)

    def slide(self, chunk: Chunk) -> bool:
        """Evict what leaves the window when this chunk comes. Returns whether anything did."""
        gone = self._window.leaving(chunk.first_unit + chunk.units - 1)
        for index in gone:
            self.tiers.evict(list(self.chunks[index].units))
        return bool(gone)

    def rewrite(self, unit: int, k: Array, v: Array, stream: Stream) -> None:
        """Replace keys and values of a unit's cached tokens, at the same positions.

        k, v: [L, R, Hkv, D], R at least n. Waits until no question reads them.
        """
        self.tiers.stream_slots.wait_unleased()
        self.pool.write(*self.tiers.cells(unit), k, v, self.positions(unit), stream)
        self.reruns += 1

    # ---- what a run of the language graph reads ----

    def ingest_table(self, besides: Sequence[int] = ()) -> PageTable:
        """What the chunk that has come attends to: the prompt, appended text, and the chunks that
        the system's ingest policy shows it.

        besides: further slots that are read, those of what is being said.
        """
        return self._ingest_table(self._newest_chunk, besides, ())

    def _ingest_table(
        self, index: int, besides: Sequence[int], without: Collection[int]
    ) -> PageTable:
        """index: of the chunk that reads it. without: chunks that are not read."""
        window = None if self._window.holds_all_pages else self.system.ingest.window
        latest = list(itertools.islice(reversed(self.chunks), window))
        latest = [chunk for chunk in latest if chunk.chunk not in without]
        held = [
            location
            for chunk in reversed(latest)
            for unit in chunk.units
            for location in self.tiers.locations(unit)
            if location.on_device
        ]
        prompt = self._prompt if self.system.ingest.shows_prompt(index) else []
        shared = [*prompt, *itertools.chain(*self._texts), *held]
        slots = [*(location.slot for location in shared), *besides]
        table = self.table(slots, self._stream_reader.table if self._stream_reader else None)
        return PageTable(table, tuple(location.page for location in shared))

    def fork_table(self, chunk: Chunk) -> np.ndarray:
        """The table of a chunk that is still being filled, as a question sees it: `ingest_table`,
        without the chunks that this one would displace."""
        gone = self._displaced(chunk.first_unit + chunk.units - 1)
        return self._ingest_table(chunk.index, (), gone).slots

    def table_before(self, unit: int) -> np.ndarray:
        """The table of what came before a unit of the window: the prompt, appended text, and
        earlier units."""
        start = self.tiers.first_position(unit)[0]
        texts = [run for run in self._texts if self._first_position(run) < start]
        held = [*self._prompt, *itertools.chain(*texts), *self.tiers.before(unit)]
        return self.table([location.slot for location in held])

    def table(self, shared: Sequence[int], own: np.ndarray | None = None) -> np.ndarray:
        """The table [L|1, Hkv|1, N] int32 of a run.

        shared: slots that all layers and heads read; own: [L, Hkv, m] slots that each reads too.
        """
        if self.long_term is None:
            return pad_table(shared)
        if own is None:
            own = np.empty((self.model.layers, self.model.kv_heads, 0), np.int32)
        return concat_tables(shared, own, padded_slots(len(shared) + own.shape[2]))

    @property
    def chooses(self) -> bool:
        """Whether chunks read what queries choose: then `must_rerun` needs theirs."""
        return self._stream_reader is not None

    def must_rerun(self, q: np.ndarray) -> bool:
        """Whether a chunk's run has to be repeated over `ingest_table` as it is now.

        q: [L, Hq, D], the mean queries of the run that has ended.
        """
        if not self._stream_reader or not self._stream_reader.must_rerun(q, prefill=True):
            return False
        self.reruns += 1
        return True

    @property
    def texts(self) -> tuple[tuple[PageLocation, ...], ...]:
        """Runs of text that were appended to the stream, oldest first."""
        return tuple(map(tuple, self._texts))

    # ---- positions: what is cached, and what is to come ----

    def positions(self, unit: int) -> np.ndarray:
        """[n, 3] of a unit's cached tokens."""
        slots, cells = self.tiers.cells(unit)
        return self.pool.host_positions[slots, 0, 0, cells]

    def keep_in_range(self, newest: Fraction, stream: Stream) -> None:
        """Re-base time when a unit starting at `newest` seconds would leave the trained range.

        Waits until no question reads cached pages. Raises MemoryBudgetError for a system that
        evicts nothing.
        """
        timeline = self.timeline
        excess = timeline.excess(newest)
        if not excess:
            return
        if self.system.overflow.refuses:
            raise MemoryBudgetError(
                f"at {float(newest):.0f} s the stream leaves the {self.model.max_position} "
                "positions that the model was trained with, and this system evicts nothing: "
                "take a bounded one with --system distinct"
            )
        oldest = self.tiers.oldest_unit()
        # Long-term memory is older than the window: all of it would fall to the floor.
        age = 0
        if oldest is not None and not self.long_term:
            age = int(self.tiers.first_position(oldest)[0]) - timeline.first
        self.rebase(max(excess, age, timeline.range // 2), stream)

    def keep_text_in_range(self, needed: int, forked: bool, stream: Stream) -> None:
        """Re-base time when text that becomes part of the stream would leave the trained range.

        needed: positions of that text; forked: whether it comes after the fork. Waits until no
        question reads cached pages.
        """
        first = self.fork.next_text if forked and self.fork else self.timeline.next_text
        excess = first + needed - self.model.max_position
        if excess > 0:
            self.rebase(max(excess, self.timeline.range // 4), stream)

    def rebase(self, steps: int, stream: Stream) -> None:
        """Subtract `steps` from the time of everything cached and of everything to come."""
        floor = self.timeline.first
        time_only, text = np.array([steps, 0, 0]), np.array([steps] * 3)
        self.tiers.wait_unleased()
        self.tiers.shift_units(time_only, floor, stream)
        self.pool.shift(self.tiers.conversation_slots.all, text, floor, stream)
        for run in self._texts:  # a run moves as a whole: at the floor its words keep their order
            back = min(steps, self._first_position(run) - floor)
            self.pool.shift(_slots(run), np.array([back] * 3), floor, stream)
        if self.long_term:
            self.long_term.shift(steps, floor)
            self._renew()
        self.timeline.rebase(steps)
        if self._texts:
            self.timeline.stay_behind(self._last_position(self._texts[-1]))
        if self.fork:
            self._rebase_fork(self.fork, time_only, floor, stream)

    def _rebase_fork(self, fork: ChunkFork, step: np.ndarray, floor: int, stream: Stream) -> None:
        slots = _slots(fork.locations)
        self.pool.shift(slots, step, floor, stream)
        positions = self.pool.host_positions[slots]
        last = int(positions.max()) if positions.size else floor
        self.fork = replace(fork, next_text=max(last + 1, self.timeline.next_text))

    def close_gaps(self, stream: Stream) -> None:
        """Renumber positions so that the window starts right after the prompt: first text that is
        older than its oldest unit, then that unit. Waits until no question reads them."""
        oldest = self.tiers.oldest_unit()
        if oldest is None:
            return
        first, begin = self.timeline.first, int(self.tiers.first_position(oldest)[0])
        moves: list[tuple[list[int], int]] = []  # slots of a run of text, and how far it moves
        for run in self._texts:
            start = self._first_position(run)
            if start >= begin:
                break
            moves.append((_slots(run), start - first))
            first += _tokens(run)
        steps = begin - first
        if not steps and not any(gap for _, gap in moves):
            return
        self.tiers.wait_unleased()
        for slots, gap in moves:
            self.pool.shift(slots, np.array([gap] * 3), 0, stream)
        later = [slot for run in list(self._texts)[len(moves) :] for slot in _slots(run)]
        self.pool.shift(later, np.array([steps] * 3), 0, stream)
        self.tiers.shift_units(np.array([steps, 0, 0]), 0, stream)
        if steps:
            self.timeline.rebase(steps)

    def _first_position(self, run: Sequence[PageLocation]) -> int:
        """Position of the first token of a run of text."""
        return int(self.pool.host_positions[run[0].slot, 0, 0, 0, 0])

    def _last_position(self, run: Sequence[PageLocation]) -> int:
        """Position of the last token of a run of text."""
        last = run[-1]
        return int(self.pool.host_positions[last.slot, 0, 0, last.page.tokens - 1, 0])

    # ---- for questions ----

    def choose(
        self,
        policy: Retrieval,
        question: np.ndarray,
        fork: ChunkFork | None,
        within: TimeRange | None = None,
    ) -> list[int]:
        """The units that a retrieval policy reads, ascending.

        question: [width] float32, the mean embedding of its tokens; fork: a chunk that it sees
        besides those that are remembered; within: where the units lie that the policy chooses
        among.
        """
        units = policy.choose(question, self.seen_chunks(fork, within))
        gone = self.displaced_by(fork)
        return [unit for unit in units if unit not in gone]

    def seen_chunks(self, fork: ChunkFork | None, within: TimeRange | None = None) -> IndexedChunks:
        """The chunks that a policy chooses among, see `choose`."""
        chunks: IndexedChunks = self.chunks
        if fork and fork.locations:
            chunks = WithOpenChunk(self.chunks, fork.entry(), fork.digest)
        return ChunksWithin(chunks, self._pages_within(within, fork)) if within else chunks

    def displaced_by(self, fork: ChunkFork | None) -> set[int]:
        """The units that leave once this chunk is full: its questions do not read them."""
        if fork is None or not fork.locations:
            return set()
        return {unit for index in self._displaced(fork.last) for unit in self.chunks[index].units}

    def _pages_within(self, within: TimeRange, fork: ChunkFork | None) -> dict[int, int]:
        """How many pages each unit has that lies in the range."""
        tiers, units = self.tiers, self.tiers.units
        inside = units[within.slice_of(units, lambda unit: tiers.locations(unit)[0].page)]
        pages = {unit: len(tiers.locations(unit)) for unit in inside}
        for location in fork.locations if fork else ():
            page = location.page
            if within.overlaps(page.start, page.end):
                pages[page.unit] = pages.get(page.unit, 0) + 1
        return pages

    def lease(self, units: Sequence[int], fork: ChunkFork | None = None) -> Lease:
        """Keep the prompt, appended text and these units, some of which may be of the fork, in
        place until the lease is released.

        Where long-term memory holds the window too, questions read its units from there alone.
        """
        forked = fork.locations_of(units) if fork else []
        own = {location.page.unit for location in forked}
        held = [
            location for unit in units if unit not in own for location in self.tiers.locations(unit)
        ]
        if self.long_term and self.long_term.holds_window:
            held = []
        texts = itertools.chain(*self._texts)
        return Lease(self.tiers, [*self._prompt, *texts, *held, *forked])

    def view(self, within: TimeRange | None = None) -> View | None:
        """Long-term memory as it is now, leased; None where the system has none. within: the part
        of the stream whose tokens are read."""
        return self.long_term.view(within=within) if self.long_term else None

    def reader(self, view: View, slots: Sequence[int]) -> Reader:
        """What reads long-term memory for a question. slots: `recall_slots` scratch slots."""
        if self.long_term is None:
            raise ValueError("this system has no long-term memory")
        return self.long_term.reader(view, self._recalls(self.long_term, slots))

    @property
    def recall_slots(self) -> int:
        """Scratch slots that a reader of long-term memory needs."""
        return self.long_term.max_cells * self.long_term.recall_sets if self.long_term else 0

    def count_reader(self, reader: Reader) -> None:
        """Add what a question's reader did, at its end."""
        self._reader_bytes += reader.bytes_moved
        self.reruns += reader.reruns

    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest temporal unit of which anything is held."""
        if self.long_term and self.long_term.oldest is not None:
            return self.long_term.oldest
        unit = self.tiers.oldest_unit()
        return None if unit is None else self.tiers.locations(unit)[0].page.start

    def _displaced(self, newest: int) -> list[int]:
        """Chunks that a sliding window evicts once unit `newest` is there."""
        return self._window.leaving(newest) if self.system.ingest.slides else []

    # ---- accounting ----

    @property
    def bytes_moved(self) -> int:
        """Between the device and the host, both ways, so far."""
        stream = self._stream_reader.bytes_moved if self._stream_reader else 0
        return self.tiers.bytes_moved + self._reader_bytes + stream

    def pages_in_use(self) -> dict[str, int]:
        if self.long_term:
            host = math.ceil(self.long_term.cells_in_use())
        else:
            host = self.tiers.host_slots.live
        return {"device": self.tiers.device_pages(), "host": host}

    def close(self) -> None:
        self.tiers.close()
        if self.long_term:
            self.long_term.close()

    # ---- long-term memory ----

    def _leave_window(self, newest: int) -> None:
        """Chunks that the next one does not see go to long-term memory."""
        if self.long_term is None:
            return
        for index in self._window.leaving(newest):
            if not self.long_term.holds_window:
                self._absorb(self.chunks[index], self.long_term)
            self.tiers.evict(list(self.chunks[index].units))
        self._renew()

    def _absorb(self, chunk: ChunkEntry, long_term: LongTerm) -> None:
        departing = self._window.copy_of(chunk)
        self._reader_bytes += departing.k.nbytes + departing.v.nbytes
        self.chunks_absorbed, self.absorbed_until = (
            self.chunks_absorbed + 1,
            departing.pages[-1].end,
        )
        long_term.absorb(departing)

    def _new_stream_reader(self) -> StreamReader | None:
        if not self.long_term or not self.long_term.reads_in_prefill:
            return None
        recalls = self._recalls(
            self.long_term, self.tiers.scratch_slots.allocate(self.recall_slots)
        )
        return self.long_term.stream_reader(self.long_term.view(leased=False), recalls)

    def _recalls(self, long_term: LongTerm, slots: Sequence[int]) -> list[Recall]:
        cells = long_term.max_cells
        return [
            Recall(self.pool, slots[first : first + cells]) for first in range(0, len(slots), cells)
        ]

    def _renew(self) -> None:
        """The next chunk reads long-term memory as it is now."""
        if self.long_term and self._stream_reader:
            self._stream_reader.renew(self.long_term.view(leased=False))


def unit_pages(chunk: Chunk) -> list[Page]:
    """A page for each unit of a chunk, without id and token count."""
    return [
        Page(
            id=-1,
            kind="vision",
            tokens=0,
            chunk=chunk.index,
            unit=chunk.first_unit + unit,
            start=chunk.frames[UNIT_FRAMES * unit].time,
            end=chunk.frames[UNIT_FRAMES * unit + UNIT_FRAMES - 1].time,
        )
        for unit in range(chunk.units)
    ]


def _slots(run: Sequence[PageLocation]) -> list[int]:
    return [location.slot for location in run]


def _tokens(run: Sequence[PageLocation]) -> int:
    return sum(location.page.tokens for location in run)
