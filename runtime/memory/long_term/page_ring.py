"""Which pages there are, and who reads them: numbers that only rise, in a ring of slots."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np


class PageRing:
    """Pages `first`, …, `last - 1`, page n in slot n modulo the number of slots.

    The `count` newest are remembered. `spare` more slots let pages that were forgotten stay for a
    while where running questions read them; when these are used up, `grow` waits. So what is
    remembered never depends on timing.
    """

    def __init__(self, count: int, spare: int) -> None:
        self.count, self.slots = count, count + spare
        self.first = self.last = 0
        self._leased: Counter[int] = Counter()  # first page of each lease
        self._closed = False
        self._changed = threading.Condition()

    def slot(self, pages: np.ndarray) -> np.ndarray:
        return pages % self.slots

    def spans(self, first: int, last: int) -> list[slice]:
        """Where pages first, …, last - 1 lie: one or two stretches of slots, in the order of the
        pages."""
        if first == last:
            return []
        start, stop = first % self.slots, (last - 1) % self.slots + 1
        return [slice(start, stop)] if start < stop else [slice(start, self.slots), slice(0, stop)]

    def grow(self, pages: int) -> np.ndarray:
        """Numbers of `pages` new pages, at most `count`; waits until no lease holds what lies in
        their slots."""
        with self._changed:
            oldest = self.last + pages - self.slots  # pages before it are overwritten
            self._changed.wait_for(
                lambda: self._closed or min(self._leased, default=oldest) >= oldest
            )
            if self._closed:
                raise RuntimeError("the memory is closed")
            numbers = np.arange(self.last, self.last + pages)
            self.last += pages
            self.first = max(self.first, self.last - self.count)
            return numbers

    def lease(self, first: int) -> None:
        """Hold on to the pages from `first` on."""
        with self._changed:
            self._leased[first] += 1

    def release(self, first: int) -> None:
        with self._changed:
            self._leased[first] -= 1
            self._leased += Counter()  # drops what is zero
            self._changed.notify_all()

    def wait_unleased(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._leased)

    def close(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
