"""The pages that a running question reads."""

from __future__ import annotations

from collections.abc import Sequence

from vicort.runtime.devices.device import Stream
from vicort.runtime.memory.tiers import PageLocation, Tiers


class Lease:
    """Pages that are neither overwritten nor moved until the lease is released.

    Any thread may create and release a lease; `slots` runs in the work of the question's stream.
    """

    def __init__(self, tiers: Tiers, locations: Sequence[PageLocation]) -> None:
        self.pages = tuple(location.page for location in locations)
        self._tiers = tiers
        self._device = [location.slot for location in locations if location.on_device]
        self._host = [location.slot for location in locations if not location.on_device]
        self._layout = [(location.on_device, location.slot) for location in locations]
        tiers.stream_slots.lease(self._device)
        tiers.host_slots.lease(self._host)

    @property
    def places(self) -> tuple[tuple[bool, int], ...]:
        """Where the pages are: whether on the device, and in which slot."""
        return tuple(self._layout)

    @property
    def recalls(self) -> int:
        """Pages on the host, each of which needs a scratch slot on the device to be read."""
        return len(self._host)

    def slots(self, scratch: Sequence[int], stream: Stream) -> list[int]:
        """Device slots of the leased pages, in transcript order.

        Pages on the host are copied into `scratch`, which has `recalls` slots.
        """
        self._tiers.pool.copy_from(self._tiers.host_pool, self._host, scratch, stream)
        self._tiers.count_moved(len(self._host))
        recalled = iter(scratch)
        return [slot if on_device else next(recalled) for on_device, slot in self._layout]

    def release(self) -> None:
        """Calls after the first have no effect."""
        self._tiers.stream_slots.release(self._device)
        self._tiers.host_slots.release(self._host)
        self._device, self._host = [], []
