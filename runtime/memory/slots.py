"""Which slots of a pool are live, leased or free."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Slots:
    """Who holds which slot of a pool, or of a part of it.

    A slot is *live* from `allocate` to `free`. A running question *leases* slots: one that is freed
    under a lease is given out again only when the lease ends, and `allocate` waits for that. So what
    the stream remembers never depends on timing.
    """

    def __init__(self, first: int, count: int, spare: int = 0) -> None:
        """Slots first, first + 1, …: `count` may be live at a time; `spare` more stand in for freed
        ones under a lease."""
        self.all = range(first, first + count + spare)
        self.count = count
        self.live = 0
        self._free = list(reversed(self.all))
        self._leases: dict[int, int] = {}
        self._abandoned: set[int] = set()  # freed under a lease
        self._closed = False
        self._changed = threading.Condition()

    def allocate(self, count: int) -> list[int]:
        """Slots of one's own; waits until running questions gave back enough of them."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._free) >= count)
            if self._closed:
                raise RuntimeError("the memory is closed")
            self.live += count
            return [self._free.pop() for _ in range(count)]

    def free(self, slots: Iterable[int]) -> None:
        with self._changed:
            for slot in slots:
                self.live -= 1
                if slot in self._leases:
                    self._abandoned.add(slot)
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
                    if slot in self._abandoned:
                        self._abandoned.remove(slot)
                        self._free.append(slot)
            self._changed.notify_all()

    def wait_unleased(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._leases)

    def close(self) -> None:
        """Wake whoever waits, with an error: nothing more will be given back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
