"""What a running question holds on to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vicort.runtime.core import Page
from vicort.runtime.devices.device import Stream

if TYPE_CHECKING:
    from vicort.runtime.memory.memory import Memory


@dataclass
class PageLocation:
    """Where a page of the stream lies now."""

    page: Page
    on_device: bool
    slot: int


class Lease:
    """Pages that a question reads: neither overwritten nor moved under it, whatever the stream does
    meanwhile."""

    def __init__(self, memory: Memory, held: Sequence[PageLocation]) -> None:
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
        """Device slots of the leased pages, in transcript order, host pages recalled into `scratch`
        (`recalls` of them)."""
        self.memory.pool.copy_from(self.memory.host_pool, self._host, scratch, stream)
        self.memory.count_recalled(len(self._host))
        recalled = iter(scratch)
        return [slot if on_device else next(recalled) for on_device, slot in self._layout]

    def release(self) -> None:
        """The first call counts."""
        self.memory.stream_slots.release(self._device)
        self.memory.host_slots.release(self._host)
        self._device, self._host = [], []
