"""The pages of a stream's temporal units over two tiers, each within its own budget.

The device tier is what the language graph reads. Where it is full, the oldest units move to the
host tier, or are evicted as the overflow policy says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.core import Page
from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.memory_plan import MemoryPlan
from vicort.runtime.memory.slots import Slots
from vicort.runtime.policies.chunk_index import ChunkIndex
from vicort.runtime.policies.overflow import Overflow


@dataclass
class PageLocation:
    """A page of the stream, and where it is now."""

    page: Page
    on_device: bool
    slot: int


@dataclass
class _Unit:
    locations: list[PageLocation]
    chunk: int


class Tiers:
    """All methods run in the order of the stream, from its own work."""

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        plan: MemoryPlan,
        dtype: DTypeLike,
        by_head: bool,
        overflow: Overflow,
        chunks: ChunkIndex,
    ) -> None:
        """Allocates both tiers.

        by_head: whether each layer and head may hold other tokens than the next. chunks: the index
        that is kept up to date when units are evicted.
        """
        self.scratch_slots = Slots(0, plan.scratch)
        self.conversation_slots = Slots(plan.scratch, plan.conversation)
        self.stream_slots = Slots(plan.scratch + plan.conversation, plan.stream, plan.spare)
        self.host_slots = Slots(0, plan.host)
        self.pool = device.pool(model, self.stream_slots.all.stop, dtype, by_head)
        self.host_pool = device.host_pool(model, plan.host, dtype)
        self.bytes_moved = 0  # between the device and the host, both ways
        self._page_tokens = model.page_tokens
        self._page_bytes = page_bytes(model, dtype)
        self._overflow = overflow
        self._chunks = chunks
        self._ids = itertools.count()
        self._fork_slots: list[int] = []  # of the newest fork
        self._units: dict[int, _Unit] = {}  # in the order of the stream
        # Units by tier, oldest first: the keys are used as a set that keeps its order.
        self._on_device: dict[int, None] = {}
        self._on_host: dict[int, None] = {}

    # ---- writing ----

    def write(
        self,
        templates: Sequence[Page],
        lengths: Sequence[int],
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> list[PageLocation]:
        """Write runs of tokens to new pages on the device.

        templates: one page for each run, without id and token count; lengths: tokens of each run;
        k, v: [L, R, Hkv, D], R at least n; positions: [n, 3].
        """
        layout = Layout.of(lengths, self._page_tokens)
        self._make_room(len(layout.tokens), stream)
        slots = self.stream_slots.allocate(len(layout.tokens))
        self._fill(slots, layout, k, v, positions, stream)
        return _located(pages_of(layout, templates, self._ids), slots)

    def write_fork(
        self,
        templates: Sequence[Page],
        lengths: Sequence[int],
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> list[PageLocation]:
        """As `write`, to pages that only questions read, in spare slots: what the stream holds does
        not change. They stay until the next chunk or fork is written, or their leases end."""
        self.drop_fork()
        layout = Layout.of(lengths, self._page_tokens)
        self._fork_slots = self.stream_slots.borrow(len(layout.tokens))
        self._fill(self._fork_slots, layout, k, v, positions, stream)
        return _located(pages_of(layout, templates, itertools.repeat(-1)), self._fork_slots)

    def drop_fork(self) -> None:
        """Questions that lease its pages go on reading them."""
        self.stream_slots.give_back(self._fork_slots)
        self._fork_slots = []

    def _fill(
        self,
        slots: Sequence[int],
        layout: Layout,
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        self.pool.clear(slots, stream)
        self.pool.write(np.asarray(slots)[layout.page], layout.cell, k, v, positions, stream)

    def write_units(
        self,
        templates: Sequence[Page],
        lengths: Sequence[int],
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        """As `write`, for temporal units; a unit without tokens is not held."""
        for location in self.write(templates, lengths, k, v, positions, stream):
            page = location.page
            self._units.setdefault(page.unit, _Unit([], page.chunk)).locations.append(location)
            self._on_device[page.unit] = None

    def copy(
        self, pages: Sequence[Page], slots: Sequence[int], stream: Stream
    ) -> list[PageLocation]:
        """Copy pages from scratch slots to new slots of the stream."""
        self._make_room(len(slots), stream)
        copies = self.stream_slots.allocate(len(slots))
        self.pool.copy_from(self.pool, slots, copies, stream)
        return [
            PageLocation(replace(page, id=next(self._ids)), True, slot)
            for page, slot in zip(pages, copies, strict=True)
        ]

    def free(self, locations: Sequence[PageLocation]) -> None:
        """Give device pages back that belong to no unit."""
        self.stream_slots.free([location.slot for location in locations])

    # ---- what is held ----

    @property
    def units(self) -> tuple[int, ...]:
        """Numbers of all units that are held, in the order of the stream."""
        return tuple(self._units)

    def holds(self, unit: int) -> bool:
        return unit in self._units

    def oldest_unit(self) -> int | None:
        return next(iter(self._units), None)

    def locations(self, unit: int) -> list[PageLocation]:
        return self._units[unit].locations

    def before(self, unit: int) -> Iterator[PageLocation]:
        """Pages of all units before this one, in the order of the stream."""
        for number in itertools.takewhile(lambda number: number != unit, self._units):
            yield from self._units[number].locations

    def cells(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Device slot and cell of each token of a unit, [n] each."""
        locations = self._units[unit].locations
        counts = [location.page.tokens for location in locations]
        slots = np.repeat([location.slot for location in locations], counts)
        return slots, np.concatenate([np.arange(count) for count in counts])

    def first_position(self, unit: int) -> np.ndarray:
        """[3] position (t, h, w) of a unit's first cached token."""
        location = self._units[unit].locations[0]
        pool = self.pool if location.on_device else self.host_pool
        return pool.host_positions[location.slot, 0, 0, 0]

    # ---- positions ----

    def wait_unleased(self) -> None:
        """Wait until no question reads any page of the stream."""
        self.stream_slots.wait_unleased()
        self.host_slots.wait_unleased()

    def shift_units(self, step: np.ndarray, floor: int, stream: Stream) -> None:
        """Subtract `step` [3] from the positions of all units, not below `floor`."""
        pages = [page for unit in self._units.values() for page in unit.locations]
        on_device = [page.slot for page in pages if page.on_device]
        on_host = [page.slot for page in pages if not page.on_device]
        self.pool.shift(on_device, step, floor, stream)
        self.host_pool.shift(on_host, step, floor, stream)

    # ---- eviction ----

    def evict(self, units: Iterable[int]) -> None:
        for number in units:
            unit = self._units.pop(number)
            slots = self.stream_slots if number in self._on_device else self.host_slots
            slots.free([location.slot for location in unit.locations])
            self._on_device.pop(number, None)
            self._on_host.pop(number, None)
            self._chunks.remove_unit(unit.chunk, number, len(unit.locations))

    def _make_room(self, pages: int, stream: Stream) -> None:
        while self.stream_slots.live + pages > self.stream_slots.count:
            if self.host_slots.count:
                self._move_to_host(next(iter(self._on_device)), stream)
            else:
                self.evict(self._overflow.victims(self._on_device.keys(), self._chunks))

    def _move_to_host(self, unit: int, stream: Stream) -> None:
        locations = self._units[unit].locations
        while self.host_slots.live + len(locations) > self.host_slots.count:
            self.evict(self._overflow.victims(self._on_host.keys(), self._chunks))
        device_slots = [location.slot for location in locations]
        host_slots = self.host_slots.allocate(len(locations))
        self.count_moved(len(locations))
        self.host_pool.copy_from(self.pool, device_slots, host_slots, stream)
        self.stream_slots.free(device_slots)
        for location, slot in zip(locations, host_slots, strict=True):
            location.on_device = False
            location.slot = slot
        del self._on_device[unit]
        self._on_host[unit] = None

    # ---- accounting ----

    def count_moved(self, pages: int) -> None:
        """Pages that were copied between the tiers."""
        self.bytes_moved += pages * self._page_bytes

    def device_pages(self) -> int:
        return self.stream_slots.live + self.scratch_slots.live + self.conversation_slots.live

    def close(self) -> None:
        """Wake every thread that waits for slots, with an error."""
        slots = (self.stream_slots, self.scratch_slots, self.conversation_slots, self.host_slots)
        for each in slots:
            each.close()


def _located(pages: Sequence[Page], slots: Sequence[int]) -> list[PageLocation]:
    return [PageLocation(page, True, slot) for page, slot in zip(pages, slots, strict=True)]


def pages_of(layout: Layout, templates: Sequence[Page], ids: Iterator[int]) -> list[Page]:
    """The pages of a layout: the template of their run, with an id and a number of tokens."""
    return [
        replace(templates[run], id=next(ids), tokens=tokens)
        for run, tokens in zip(layout.run, layout.tokens, strict=True)
    ]
