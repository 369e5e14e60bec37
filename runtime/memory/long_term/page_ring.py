"""A ring of slots for pages, which are numbered in the order of the stream, and their leases."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vicort.runtime.core import Page, TimeRange


class PageRing:
    """Pages `first`, …, `last - 1`, page n in slot n modulo the number of slots.

    The `count` newest are remembered. Running questions may still read evicted pages in `spare`
    more slots; when these are used up, `grow` waits. So timing never decides what is remembered.

    Six pages in a ring that remembers three and has one spare slot: page 4 came back to slot 0.

    >>> ring = PageRing(count=3, spare=1)
    >>> ring.grow(3).tolist(), ring.grow(3).tolist()
    ([0, 1, 2], [3, 4, 5])
    >>> ring.first, ring.last, ring.spans(ring.first, ring.last)
    (3, 6, [slice(3, 4, None), slice(0, 2, None)])
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
        """The slots of pages first, …, last - 1: one or two slices, in the order of the pages."""
        if first == last:
            return []
        start, stop = first % self.slots, (last - 1) % self.slots + 1
        return [slice(start, stop)] if start < stop else [slice(start, self.slots), slice(0, stop)]

    def grow(self, pages: int) -> np.ndarray:
        """Adds `pages` pages, at most `count`, and returns their numbers; waits until no lease
        covers what lies in their slots. Raises RuntimeError once closed."""
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
        """Keeps the pages from `first` on until `release`."""
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
        """Wakes whoever waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def numbers_within(
    within: TimeRange | None, units: Sequence[Page | None], first: int, last: int
) -> tuple[int, int]:
    """Of the numbers first, …, last - 1 in a ring those whose temporal unit overlaps a range: the
    first of them, and one more than the last.

    units: the unit in each slot of the ring; within: None = all of them.
    """
    if within is None:
        return first, last

    def unit(number: int) -> Page:
        page = units[number % len(units)]
        if page is None:
            raise ValueError(f"number {number} of the ring has no unit")
        return page

    inside = range(first, last)[within.slice_of(range(first, last), unit)]
    return inside.start, inside.stop
