"""Which slots of a pool are live, leased or free."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable


class Slots:
    """Allocator of the slots of a pool, or of a part of it.

    A slot is *live* from `allocate` to `free`. A running question *leases* slots: a slot that is
    freed under a lease is allocated again only after the lease ends, and `allocate` waits for that.
    So what the stream remembers never depends on timing. Spare slots, which are not live, may be
    borrowed. Thread-safe.
    """

    def __init__(self, first: int, count: int, spare: int = 0) -> None:
        """Slots first, first + 1, …

        At most `count` are live at a time; `spare` more replace freed slots under a lease.
        """
        self.all = range(first, first + count + spare)
        self.count = count
        self.live = 0
        self._free = list(reversed(self.all))
        self._leases: dict[int, int] = {}
        self._freed_under_lease: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def allocate(self, count: int) -> list[int]:
        """Returns free slots; waits until running questions have released enough of them."""
        with self._changed:
            slots = self.borrow(count)
            self.live += count
            return slots

    def free(self, slots: Collection[int]) -> None:
        with self._changed:
            self.live -= len(slots)
            self.give_back(slots)

    def borrow(self, count: int) -> list[int]:
        """As `allocate`, but the slots are not live: what may be live besides stays the same."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._free) >= count)
            if self._closed:
                raise RuntimeError("the memory is closed")
            return [self._free.pop() for _ in range(count)]

    def give_back(self, slots: Iterable[int]) -> None:
        """Free slots that were borrowed; those under a lease once it ends."""
        with self._changed:
            for slot in slots:
                if slot in self._leases:
                    self._freed_under_lease.add(slot)
                else:
                    self._free.append(slot)
            self._changed.notify_all()

    def lease(self, slots: Iterable[int]) -> None:
        with self._changed:
            for slot in slots:
                self._leases[slot] = self._leases.get(slot, 0) + 1

    def release(self, slots: Iterable[int]) -> None:
        with self._changed:
            for slot in slots:
                self._leases[slot] -= 1
                if not self._leases[slot]:
                    del self._leases[slot]
                    if slot in self._freed_under_lease:
                        self._freed_under_lease.remove(slot)
                        self._free.append(slot)
            self._changed.notify_all()

    def wait_unleased(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._leases)

    def close(self) -> None:
        """Wake every waiting thread with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
