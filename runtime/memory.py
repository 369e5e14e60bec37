"""What a stream remembers: the prompt, the pages of its units over two tiers, and what running questions hold on to.

The device tier is what the language graph reads; the host tier keeps older pages, which a question recalls. Both have hard
budgets. All methods but `Lease`'s run in the order of the stream, from its own work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.buckets import padded_slots
from vicort.runtime.core import Chunk, Page, PageTable
from vicort.runtime.device import Device, Stream
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.retrieval import Remembered
from vicort.runtime.pool import Layout, Slots, page_bytes
from vicort.runtime.system import System

SPARE_CHUNKS = 4  # chunks that the stream can place while a question reads what it would have overwritten
QUESTIONS_AT_ONCE = 4  # questions whose text has room in the scratch pages at the same time
ANSWER_TOKENS = 512  # longest answer
CONVERSATION_TOKENS = 1024  # text of earlier turns that is kept for the next one


@dataclass
class _Held:
    """Where a page of the stream lies now."""

    page: Page
    on_device: bool
    slot: int


@dataclass
class _Unit:
    held: list[_Held]
    chunk: int


@dataclass
class _ChunkEntry:
    units: list[int]
    digest: np.ndarray  # [width] float32


class Memory:
    def __init__(self, device: Device, model: ModelSpec, system: System, prompt_tokens: int, dtype: DTypeLike) -> None:
        """Allocates both tiers. Raises MemoryBudgetError, with the smallest budget that works, if one chunk does not fit."""
        self.model, self.system = model, system
        plan = _Plan.of(model, system, prompt_tokens, page_bytes(model, dtype))
        self.scratch_slots = Slots(0, plan.scratch)
        self.conversation_slots = Slots(plan.scratch, plan.conversation)
        self.stream_slots = Slots(plan.scratch + plan.conversation, plan.stream, plan.spare)
        self.pool = device.pool(model, self.stream_slots.all.stop, dtype)
        self.host_pool = device.host_pool(model, plan.host, dtype)
        self.host_slots = Slots(0, plan.host)
        self.ids = itertools.count()
        self._prompt: list[_Held] = []
        self._units: dict[int, _Unit] = {}  # in the order of the stream
        self._chunks: dict[int, _ChunkEntry] = {}
        self._on_device: dict[int, None] = {}  # units whose pages lie on the device, oldest first (a set that keeps its order)
        self._on_host: dict[int, None] = {}

    # ---- what the stream does -------------------------------------------------------------------------------------------

    def place_prompt(self, k: Any, v: Any, positions: np.ndarray, stream: Stream) -> None:
        """k, v: Array [L, R, Hkv, D], R at least n; positions: [n, 3]. The prompt comes first and stays."""
        self._prompt = self._write([Page(-1, "prompt", 0)], [len(positions)], k, v, positions, stream)

    def place_chunk(
        self, chunk: Chunk, tokens_of_unit: Sequence[int], k: Any, v: Any, positions: np.ndarray, digest: np.ndarray, stream: Stream
    ) -> None:
        """Cache a chunk's kept tokens, unit by unit; older units move to the host tier, or are forgotten, to make room.

        tokens_of_unit: kept tokens of each unit; k, v: Array [L, R, Hkv, D], R at least C; positions: [C, 3], C their sum; digest:
        [width].
        """
        templates = [
            Page(-1, "vision", 0, chunk.index, chunk.first_unit + u, chunk.frames[2 * u].time, chunk.frames[2 * u + 1].time)
            for u in range(chunk.units)
        ]
        for held in self._write(templates, tokens_of_unit, k, v, positions, stream):
            unit = held.page.unit
            self._units.setdefault(unit, _Unit([], chunk.index)).held.append(held)
            self._on_device[unit] = None
        units = [chunk.first_unit + u for u, tokens in enumerate(tokens_of_unit) if tokens]
        if units:
            self._chunks[chunk.index] = _ChunkEntry(units, digest)

    def ingest_table(self) -> PageTable:
        """What the next chunk attends to: the prompt, and the chunks that the system's ingest policy shows it."""
        latest = list(itertools.islice(reversed(self._chunks.values()), self.system.ingest.window))
        held = [page for chunk in reversed(latest) for unit in chunk.units for page in self._units[unit].held if page.on_device]
        return table_of([*self._prompt, *held])

    def remembered(self) -> list[Remembered]:
        return [Remembered(index, tuple(entry.units), entry.digest) for index, entry in self._chunks.items()]

    def lease(self, units: Iterable[int]) -> Lease:
        """Hold on to the prompt and these units, wherever they lie, until the lease is released."""
        return Lease(self, [*self._prompt, *(page for unit in units for page in self._units[unit].held)])

    def oldest_unit(self) -> int | None:
        return next(iter(self._units), None)

    def first_cell(self, unit: int) -> np.ndarray:
        """[3] position of a unit's first cached token."""
        held = self._units[unit].held[0]
        return (self.pool if held.on_device else self.host_pool).places[held.slot, 0, 0, 0]

    def rebase(self, steps: int, floor: int, stream: Stream) -> None:
        """Take `steps` off the time of all cached units and turns, not below `floor`; waits until no question reads them."""
        self.stream_slots.wait_unleased()
        self.host_slots.wait_unleased()
        pages = [page for unit in self._units.values() for page in unit.held]
        time_only, text = np.array([steps, 0, 0]), np.array([steps, steps, steps])
        self.pool.shift([page.slot for page in pages if page.on_device], time_only, floor, stream)
        self.host_pool.shift([page.slot for page in pages if not page.on_device], time_only, floor, stream)
        self.pool.shift(self.conversation_slots.all, text, floor, stream)

    def pages_in_use(self) -> dict[str, int]:
        device = self.stream_slots.live + self.scratch_slots.live + self.conversation_slots.live
        return {"device": device, "host": self.host_slots.live}

    def close(self) -> None:
        for slots in (self.stream_slots, self.scratch_slots, self.conversation_slots, self.host_slots):
            slots.close()

    # ---- making room ----------------------------------------------------------------------------------------------------

    def _write(
        self, templates: Sequence[Page], lengths: Sequence[int], k: Any, v: Any, positions: np.ndarray, stream: Stream
    ) -> list[_Held]:
        """Write runs of tokens to pages in the stream's part of the device; templates: one a run."""
        layout = Layout.of(lengths, self.model.page_tokens)
        self._make_device_room(len(layout.tokens), stream)
        slots = self.stream_slots.take(len(layout.tokens))
        self.pool.clear(slots, stream)
        self.pool.write(np.asarray(slots)[layout.page], layout.cell, k, v, positions, stream)
        return [_Held(page, True, slot) for page, slot in zip(pages_of(layout, templates, self.ids), slots, strict=True)]

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
        slots = self.host_slots.take(len(held))
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
            entry = self._chunks[unit.chunk]
            entry.units.remove(number)
            if not entry.units:
                del self._chunks[unit.chunk]


class Lease:
    """Pages that a question reads: neither overwritten nor moved under it, whatever the stream does meanwhile."""

    def __init__(self, memory: Memory, held: Sequence[_Held]) -> None:
        self.memory = memory
        self.pages = tuple(page.page for page in held)
        self._device = [page.slot for page in held if page.on_device]
        self._host = [page.slot for page in held if not page.on_device]
        self._layout = [(page.on_device, page.slot) for page in held]
        memory.stream_slots.lease(self._device)
        memory.host_slots.lease(self._host)

    @property
    def recalls(self) -> int:
        """Pages that lie on the host, and need scratch slots on the device to be read."""
        return len(self._host)

    def slots(self, scratch: Sequence[int], stream: Stream) -> list[int]:
        """Device slots of the leased pages, in transcript order, host pages recalled into `scratch` (`recalls` of them)."""
        self.memory.pool.copy_from(self.memory.host_pool, self._host, scratch, stream)
        recalled = iter(scratch)
        return [slot if on_device else next(recalled) for on_device, slot in self._layout]

    def release(self) -> None:
        self.memory.stream_slots.release(self._device)
        self.memory.host_slots.release(self._host)


def pages_of(layout: Layout, templates: Sequence[Page], ids: Iterator[int]) -> list[Page]:
    """The pages of a layout: the template of their run, with an id and a number of tokens."""
    return [replace(templates[run], id=next(ids), tokens=tokens) for run, tokens in zip(layout.run, layout.tokens, strict=True)]


def table_of(held: Sequence[_Held]) -> PageTable:
    return PageTable(pad_table([page.slot for page in held]), tuple(page.page for page in held))


def pad_table(slots: Sequence[int]) -> np.ndarray:
    """[1, 1, N] int32, filled up with -1."""
    table = np.full((1, 1, padded_slots(len(slots))), -1, np.int32)
    table[0, 0, : len(slots)] = slots
    return table


@dataclass(frozen=True)
class _Plan:
    """How many pages each part of the two tiers has."""

    stream: int
    spare: int  # stand in for pages that were forgotten under a question's lease, so that the stream goes on
    scratch: int
    conversation: int
    host: int

    @staticmethod
    def of(model: ModelSpec, system: System, prompt_tokens: int, bytes_of_page: int) -> _Plan:
        def pages(tokens: int) -> int:
            return math.ceil(tokens / model.page_tokens)

        chunk_units = model.chunk_frames // 2
        unit_pages = pages(model.unit_tokens)
        host = int(system.budget.host_mb * 1e6) // bytes_of_page
        deferred = 0 if system.ingest.prefills else chunk_units * unit_pages
        recalled = min((system.retrieval.most_units(chunk_units) or 0) * unit_pages, host)
        scratch = QUESTIONS_AT_ONCE * (pages(model.max_rows) + pages(ANSWER_TOKENS) + deferred) + recalled
        conversation = pages(CONVERSATION_TOKENS)
        spare = SPARE_CHUNKS * chunk_units * unit_pages if system.ingest.prefills else 0
        window = 1 + (system.ingest.window or 0)
        needed = pages(prompt_tokens) + window * chunk_units * unit_pages
        others = spare + scratch + conversation
        stream = int(system.budget.device_mb * 1e6) // bytes_of_page - others
        if stream < needed:
            smallest = math.ceil((needed + others) * bytes_of_page / 1e6)
            raise MemoryBudgetError(
                f"a device budget of {system.budget.device_mb:g} MB is too small for one chunk of {model.chunk_frames} frames with "
                f"system {system.name}: set memory.device_mb to at least {smallest}"
            )
        return _Plan(stream, spare, scratch, conversation, host)
