"""What a stream remembers: the prompt, joined text, the pages of its units over two tiers, and what
running questions hold on to.

The device tier is what the language graph reads; the host tier keeps older pages, which a question
recalls. Both have hard budgets. A system with long-term memory by layer and head has that instead
of the host tier: chunks go there when they leave the recent window. All methods but `Lease`'s run
in the order of the stream, from its own work.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import UNIT_FRAMES, Chunk, Page, PageTable
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.engines.buckets import padded_slots
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.lease import PageLocation, Lease
from vicort.runtime.memory.long_term.long_term import (
    Departing,
    LongTerm,
    Reader,
    StreamReader,
    View,
)
from vicort.runtime.memory.long_term.opening import open_long_term
from vicort.runtime.memory.long_term.selection import Recall
from vicort.runtime.memory.memory_plan import MemoryPlan
from vicort.runtime.memory.page_tables import concat_tables, pad_table
from vicort.runtime.memory.slots import Slots
from vicort.runtime.policies.chunk_index import ChunkIndex, ChunkEntry
from vicort.runtime.policies.system import System


@dataclass
class _Unit:
    held: list[PageLocation]
    chunk: int


class Memory:
    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        system: System,
        prompt_tokens: int,
        dtype: DTypeLike,
        clock: StageClock,
    ) -> None:
        """Allocates both tiers. clock: for what long-term memory does behind the runs.

        Raises MemoryBudgetError, with the smallest budget that works, if one chunk does not fit.
        """
        self.model, self.system = model, system
        self.long_term = (
            open_long_term(system.long_term, device, model, system.budget.host_mb, dtype, clock)
            if system.long_term
            else None
        )
        self._by_head = self.long_term is not None
        plan = MemoryPlan.of(
            model, system, self.long_term, prompt_tokens, page_bytes(model, dtype, self._by_head)
        )
        self.scratch_slots = Slots(0, plan.scratch)
        self.conversation_slots = Slots(plan.scratch, plan.conversation)
        self.stream_slots = Slots(plan.scratch + plan.conversation, plan.stream, plan.spare)
        self.pool = device.pool(model, self.stream_slots.all.stop, dtype, self._by_head)
        self.host_pool = device.host_pool(model, plan.host, dtype)
        self.host_slots = Slots(0, plan.host)
        self._bytes_moved = 0
        # runs of the language graph that were made again over another choice of pages
        self.reruns = 0
        self._page_bytes = page_bytes(model, dtype)
        self._stream_reader = self._new_stream_reader()
        self.ids = itertools.count()
        self._texts: deque[list[PageLocation]] = deque()  # that joined the stream, oldest first
        self._prompt: list[PageLocation] = []
        self._units: dict[int, _Unit] = {}  # in the order of the stream
        self.chunks = ChunkIndex(
            model.width, math.ceil(model.unit_tokens / model.page_tokens), system.retrieval.compares
        )
        # units whose pages lie on the device, oldest first (a set that keeps its order)
        self._on_device: dict[int, None] = {}
        self._on_host: dict[int, None] = {}

    # ---- what the stream does
    # -------------------------------------------------------------------------------------------

    def write_prompt(self, k: Any, v: Any, positions: np.ndarray, stream: Stream) -> None:
        """k, v: Array [L, R, Hkv, D], R at least n; positions: [n, 3]. The prompt comes first and
        stays."""
        self._prompt = self._write(
            [Page(-1, "prompt", 0)], [len(positions)], k, v, positions, stream
        )

    def write_chunk(
        self,
        chunk: Chunk,
        tokens_of_unit: Sequence[int],
        k: Any,
        v: Any,
        positions: np.ndarray,
        digest: np.ndarray,
        stream: Stream,
        queries: np.ndarray | None = None,
    ) -> None:
        """Cache a chunk's kept tokens, unit by unit; older units move to the host tier or to
        long-term memory, or are forgotten.

        tokens_of_unit: kept tokens of each unit; k, v: Array [L, R, Hkv, D], R at least C;
        positions: [C, 3], C their sum; digest: [width]; queries: [L, R, Hq, D] float32 of its last
        rows, for long-term memory.
        """
        templates = [
            Page(
                -1,
                "vision",
                0,
                chunk.index,
                chunk.first_unit + u,
                chunk.frames[2 * u].time,
                chunk.frames[2 * u + 1].time,
            )
            for u in range(chunk.units)
        ]
        for held in self._write(templates, tokens_of_unit, k, v, positions, stream):
            unit = held.page.unit
            self._units.setdefault(unit, _Unit([], chunk.index)).held.append(held)
            self._on_device[unit] = None
        units = [chunk.first_unit + u for u, tokens in enumerate(tokens_of_unit) if tokens]
        if units:
            pages = sum(len(self._units[unit].held) for unit in units)
            self.chunks.add(
                ChunkEntry(chunk.index, units, pages, chunk.first_unit + chunk.units - 1, queries),
                digest,
            )
        self._leave_window(templates[-1].unit)

    def slide(self, chunk: Chunk) -> bool:
        """Forget what leaves the window when this chunk comes. Returns whether there was
        anything."""
        gone = self._beyond_window(chunk.first_unit + chunk.units - 1)
        for index in gone:
            self._forget_all(list(self.chunks[index].units))
        return bool(gone)

    def before(self, unit: int) -> np.ndarray:
        """The table of what came before a unit of the window: the prompt, joined text, and earlier
        units."""
        start = self.first_cell(unit)[0]
        texts = [
            held
            for run in self._texts
            for held in run
            if self.pool.host_positions[held.slot, 0, 0, 0, 0] < start
        ]
        units = itertools.takewhile(lambda number: number != unit, self._units)
        held = [
            *self._prompt,
            *texts,
            *(page for number in units for page in self._units[number].held),
        ]
        return self.table([page.slot for page in held])

    def positions(self, unit: int) -> np.ndarray:
        """[n, 3] of a unit's cached tokens."""
        slots, cells = self._cells(unit)
        return self.pool.host_positions[slots, 0, 0, cells]

    def rewrite(self, unit: int, k: Any, v: Any, stream: Stream) -> None:
        """Other keys and values for a unit's cached tokens, at the same positions; waits until no
        question reads them.

        k, v: Array [L, R, Hkv, D], R at least n.
        """
        self.stream_slots.wait_unleased()
        self.pool.write(*self._cells(unit), k, v, self.positions(unit), stream)
        self.reruns += 1

    def join_text(self, pages: Sequence[Page], slots: Sequence[int], stream: Stream) -> None:
        """Text that joins the stream: what comes sees it, until newer text takes its room. Copied
        from these scratch slots."""
        budget = self.system.text.tokens
        self._make_device_room(len(slots), stream)
        kept = self.stream_slots.allocate(len(slots))
        self.pool.copy_from(self.pool, slots, kept, stream)
        self._texts.append(
            [
                PageLocation(replace(page, id=next(self.ids)), True, slot)
                for page, slot in zip(pages, kept, strict=True)
            ]
        )
        while (
            len(self._texts) > 1
            and sum(held.page.tokens for run in self._texts for held in run) > budget
        ):
            self.stream_slots.free([held.slot for held in self._texts.popleft()])

    def ingest_table(self, besides: Sequence[int] = ()) -> PageTable:
        """What the next chunk attends to: the prompt, joined text, and the chunks that the system's
        ingest policy shows it.

        besides: slots that are read too, of what is being said.
        """
        window = None if self._keeps_window else self.system.ingest.window
        latest = list(itertools.islice(reversed(self.chunks), window))
        held = [
            page
            for chunk in reversed(latest)
            for unit in chunk.units
            for page in self._units[unit].held
            if page.on_device
        ]
        shared = [*self._prompt, *itertools.chain(*self._texts), *held]
        slots = [*(page.slot for page in shared), *besides]
        table = self.table(slots, self._stream_reader.table if self._stream_reader else None)
        return PageTable(table, tuple(page.page for page in shared))

    @property
    def chooses(self) -> bool:
        """Whether chunks read what queries choose: then `must_rerun` wants theirs."""
        return self._stream_reader is not None

    def must_rerun(self, q: np.ndarray) -> bool:
        """A chunk's run has ended, with mean queries q [L, Hq, D]. True: run it again over
        `ingest_table` as it is now."""
        if not self._stream_reader or not self._stream_reader.must_rerun(q, prefill=True):
            return False
        self.reruns += 1
        return True

    def table(self, shared: Sequence[int], own: np.ndarray | None = None) -> np.ndarray:
        """What the language graph takes: slots that all layers and heads read, and those [L, Hkv,
        m] that each reads besides."""
        if not self._by_head:
            return pad_table(shared)
        if own is None:
            own = np.empty((self.model.layers, self.model.kv_heads, 0), np.int32)
        return concat_tables(shared, own, padded_slots(len(shared) + own.shape[2]))

    def lease(self, units: Iterable[int]) -> Lease:
        """Hold on to the prompt and these units, wherever they lie, until the lease is released."""
        return Lease(
            self,
            [
                *self._prompt,
                *itertools.chain(*self._texts),
                *(page for unit in units for page in self._units[unit].held),
            ],
        )

    def view(self) -> View | None:
        """Long-term memory as it is now, held fast; None where the system has none."""
        return self.long_term.view() if self.long_term else None

    def reader(self, view: View, slots: Sequence[int]) -> Reader:
        """A question's way to read long-term memory. slots: `recall_slots` scratch slots."""
        if self.long_term is None:
            raise ValueError("this system has no long-term memory")
        return self.long_term.reader(view, self._recalls(self.long_term, slots))

    @property
    def recall_slots(self) -> int:
        """Scratch slots that a reader of long-term memory needs."""
        return self.long_term.most_cells * self.long_term.recall_sets if self.long_term else 0

    def oldest(self) -> Fraction | None:
        """Start, in seconds, of the oldest temporal unit of which something is held, wherever it
        lies."""
        if self.long_term and self.long_term.oldest is not None:
            return self.long_term.oldest
        unit = self.oldest_unit()
        return None if unit is None else self._units[unit].held[0].page.start

    def holds(self, unit: int) -> bool:
        return unit in self._units

    def oldest_unit(self) -> int | None:
        return next(iter(self._units), None)

    def first_cell(self, unit: int) -> np.ndarray:
        """[3] position of a unit's first cached token."""
        held = self._units[unit].held[0]
        return (self.pool if held.on_device else self.host_pool).host_positions[held.slot, 0, 0, 0]

    def rebase(self, steps: int, floor: int, stream: Stream) -> None:
        """Take `steps` off the time of all cached units and turns, not below `floor`; waits until
        no question reads them."""
        self.stream_slots.wait_unleased()
        self.host_slots.wait_unleased()
        pages = [page for unit in self._units.values() for page in unit.held]
        time_only, text = np.array([steps, 0, 0]), np.array([steps, steps, steps])
        self.pool.shift([page.slot for page in pages if page.on_device], time_only, floor, stream)
        self.host_pool.shift(
            [page.slot for page in pages if not page.on_device], time_only, floor, stream
        )
        self.pool.shift(self.conversation_slots.all, text, floor, stream)
        for run in self._texts:  # each as a whole: at the floor its words keep their order
            slots = [held.slot for held in run]
            back = min(steps, int(self.pool.host_positions[slots[0], 0, 0, 0, 0]) - floor)
            self.pool.shift(slots, np.array([back] * 3), floor, stream)
        if self.long_term:
            self.long_term.shift(steps, floor)
            self._renew()

    def close_gaps(self, first: int, stream: Stream) -> int:
        """Let what the window still holds follow the prompt without a gap: joined text that is
        older than its oldest unit, a run behind the other, then that unit. Returns the temporal
        steps that units went back by. first: the position behind the prompt."""
        oldest = self.oldest_unit()
        if oldest is None:
            return 0
        begin, moves = int(self.first_cell(oldest)[0]), []
        for run in self._texts:
            slots = [held.slot for held in run]
            start = int(self.pool.host_positions[slots[0], 0, 0, 0, 0])
            if start >= begin:
                break
            moves.append((slots, start - first))
            first += sum(held.page.tokens for held in run)
        steps = begin - first
        if not steps and not any(gap for _, gap in moves):
            return 0
        self.stream_slots.wait_unleased()
        self.host_slots.wait_unleased()
        for slots, gap in moves:
            self.pool.shift(slots, np.array([gap] * 3), 0, stream)
        later = [held.slot for run in list(self._texts)[len(moves) :] for held in run]
        self.pool.shift(later, np.array([steps] * 3), 0, stream)
        self.pool.shift(
            [held.slot for unit in self._units.values() for held in unit.held],
            np.array([steps, 0, 0]),
            0,
            stream,
        )
        return steps

    @property
    def bytes_moved(self) -> int:
        """Between the device and what lies behind it, both ways, so far."""
        return self._bytes_moved + (self._stream_reader.bytes_moved if self._stream_reader else 0)

    def count_recalled(self, pages: int) -> None:
        """Pages that a question fetched from the host tier."""
        self._bytes_moved += pages * self._page_bytes

    def count_reader(self, reader: Reader) -> None:
        """What a question's reader did, at its end."""
        self._bytes_moved += reader.bytes_moved
        self.reruns += reader.reruns

    def pages_in_use(self) -> dict[str, int]:
        device = self.stream_slots.live + self.scratch_slots.live + self.conversation_slots.live
        return {
            "device": device,
            "host": math.ceil(self.long_term.cells_in_use())
            if self.long_term
            else self.host_slots.live,
        }

    def close(self) -> None:
        for slots in (
            self.stream_slots,
            self.scratch_slots,
            self.conversation_slots,
            self.host_slots,
        ):
            slots.close()
        if self.long_term:
            self.long_term.close()

    # ---- the recent window
    # ----------------------------------------------------------------------------------------------

    @property
    def _keeps_window(self) -> bool:
        """Whether the pages of units are those of the recent window, and no others."""
        return self.long_term is not None or self.system.ingest.slides

    def _beyond_window(self, newest: int) -> list[int]:
        """Numbers of the chunks that leave the window once unit `newest` is there: behind each of
        them come as many units as the window's chunks hold when they are full. So a chunk that a
        question cut short makes it no shorter."""
        window = self.system.ingest.window
        if window is None or not self._keeps_window:
            return []
        units = window * (self.system.chunk_frames or self.model.chunk_frames) // UNIT_FRAMES
        return [chunk.chunk for chunk in self.chunks if newest - chunk.last >= units]

    def _leave_window(self, newest: int) -> None:
        """Chunks that the next one does not see go to long-term memory, or are forgotten, if the
        system keeps no others."""
        if not self._keeps_window:
            return
        for index in self._beyond_window(newest):
            if self.long_term:
                departing = self._departing(self.chunks[index])
                self._bytes_moved += departing.k.nbytes + departing.v.nbytes
                self.long_term.absorb(departing)
            self._forget_all(list(self.chunks[index].units))
        self._renew()

    def _departing(self, chunk: ChunkEntry) -> Departing:
        units = [self._units[unit].held for unit in chunk.units]
        held = [page for unit in units for page in unit]
        slots, counts = [page.slot for page in held], [page.page.tokens for page in held]
        there = np.arange(self.model.page_tokens) < np.asarray(counts)[:, None]  # [pages, T]
        data = self.pool.data[slots].transpose(3, 1, 0, 4, 2, 5)[:, :, there]  # [2, L, n, Hkv, D]
        tokens = [sum(page.page.tokens for page in unit) for unit in units]
        if chunk.queries is None:
            raise ValueError("long-term memory wants the queries of a chunk's last rows")
        return Departing(
            pages=tuple(
                replace(unit[0].page, tokens=count)
                for unit, count in zip(units, tokens, strict=True)
            ),
            unit=np.repeat(np.arange(len(units)), tokens),
            k=data[0],
            v=data[1],
            positions=self.pool.host_positions[slots][:, 0, 0][there],
            queries=chunk.queries,
        )

    def _new_stream_reader(self) -> StreamReader | None:
        if not self.long_term or not self.long_term.reads_in_prefill:
            return None
        slots = self.scratch_slots.allocate(self.recall_slots)
        return self.long_term.stream_reader(
            self.long_term.view(leased=False), self._recalls(self.long_term, slots)
        )

    def _recalls(self, long_term: LongTerm, slots: Sequence[int]) -> list[Recall]:
        most = long_term.most_cells
        return [
            Recall(self.pool, slots[first : first + most]) for first in range(0, len(slots), most)
        ]

    def _renew(self) -> None:
        if self.long_term and self._stream_reader:
            self._stream_reader.renew(self.long_term.view(leased=False))

    def _cells(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Device slot and cell of each of a unit's tokens."""
        held = self._units[unit].held
        counts = [page.page.tokens for page in held]
        return np.repeat([page.slot for page in held], counts), np.concatenate(
            [np.arange(count) for count in counts]
        )

    # ---- making room
    # ----------------------------------------------------------------------------------------------------

    def _write(
        self,
        templates: Sequence[Page],
        lengths: Sequence[int],
        k: Any,
        v: Any,
        positions: np.ndarray,
        stream: Stream,
    ) -> list[PageLocation]:
        """Write runs of tokens to pages in the stream's part of the device; templates: one a
        run."""
        layout = Layout.of(lengths, self.model.page_tokens)
        self._make_device_room(len(layout.tokens), stream)
        slots = self.stream_slots.allocate(len(layout.tokens))
        self.pool.clear(slots, stream)
        self.pool.write(np.asarray(slots)[layout.page], layout.cell, k, v, positions, stream)
        return [
            PageLocation(page, True, slot)
            for page, slot in zip(pages_of(layout, templates, self.ids), slots, strict=True)
        ]

    def _make_device_room(self, pages: int, stream: Stream) -> None:
        while self.stream_slots.live + pages > self.stream_slots.count:
            if self.host_slots.count:
                self._move_to_host(next(iter(self._on_device)), stream)
            else:
                self._forget_all(self.system.overflow.victims(self._on_device.keys()))

    def _move_to_host(self, unit: int, stream: Stream) -> None:
        held = self._units[unit].held
        while self.host_slots.live + len(held) > self.host_slots.count:
            self._forget_all(self.system.overflow.victims(self._on_host.keys()))
        slots = self.host_slots.allocate(len(held))
        self._bytes_moved += len(held) * self._page_bytes
        self.host_pool.copy_from(self.pool, [page.slot for page in held], slots, stream)
        self.stream_slots.free([page.slot for page in held])
        for page, slot in zip(held, slots, strict=True):
            page.on_device, page.slot = False, slot
        del self._on_device[unit]
        self._on_host[unit] = None

    def _forget_all(self, units: Iterable[int]) -> None:
        for number in units:
            unit = self._units.pop(number)
            tier = self.stream_slots if number in self._on_device else self.host_slots
            tier.free([page.slot for page in unit.held])
            self._on_device.pop(number, None)
            self._on_host.pop(number, None)
            chunk = self.chunks[unit.chunk]
            chunk.units.remove(number)
            chunk.pages -= len(unit.held)
            if not chunk.units:
                self.chunks.forget(unit.chunk)


def pages_of(layout: Layout, templates: Sequence[Page], ids: Iterator[int]) -> list[Page]:
    """The pages of a layout: the template of their run, with an id and a number of tokens."""
    return [
        replace(templates[run], id=next(ids), tokens=tokens)
        for run, tokens in zip(layout.run, layout.tokens, strict=True)
    ]
