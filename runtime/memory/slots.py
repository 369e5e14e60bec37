"""A tier of memory: cells for pages, with a hard budget in bytes, and who holds which cell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.manifest import ModelSpec

if TYPE_CHECKING:
    from vicort.runtime.devices.device import Stream

EMPTY = -1  # position of a cell that holds no token


class Pool(Protocol):
    """Keys, values and positions of pages, as the language graph reads them.

    What changes them runs in the order of a stream, and is called from its work; positions are on
    the host too, as of the last call.
    """

    # Array [P, L, Hkv, 2, T, D], cell (slot, layer, head) = T keys, not rotated, then T values
    data: Any
    # Array [P, L|1, Hkv|1, T, 3] int32, the (t, h, w) of each cached token, -1 = empty; 1 = all
    # layers, all heads alike
    where: Any
    places: np.ndarray  # `where` on the host

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: Any,
        v: Any,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        """Place n tokens: token i goes to cell cells[i] of slot slots[i]. k, v: Array [L, R, Hkv,
        D], whose first n rows count; positions: [n, 3]."""
        ...

    def clear(self, slots: Sequence[int], stream: Stream) -> None: ...

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Stream
    ) -> None: ...

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Stream) -> None:
        """Subtract `step` [3] from the positions of all tokens in these slots; none falls below
        `floor`."""
        ...


class HostPool:
    """Pages in NumPy arrays: the device tier of the host, and the host tier behind it."""

    def __init__(
        self,
        empty: Callable[..., np.ndarray],
        model: ModelSpec,
        pages: int,
        dtype: DTypeLike,
        by_head: bool = False,
    ) -> None:
        """empty: gives an array of a shape and a type. by_head: whether each layer and head may
        hold other tokens than the next."""
        self.data = empty(
            (pages, model.layers, model.kv_heads, 2, model.page_tokens, model.head_dim), dtype
        )
        alike = (model.layers, model.kv_heads) if by_head else (1, 1)
        self.where = self.places = empty((pages, *alike, model.page_tokens, 3), np.int32)
        self.where[:] = EMPTY

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        count = len(slots)
        self.data[slots, :, :, 0, cells] = k[:, :count].swapaxes(0, 1)
        self.data[slots, :, :, 1, cells] = v[:, :count].swapaxes(0, 1)
        self.where[slots, :, :, cells] = positions[:, None, None]

    def clear(self, slots: Sequence[int], stream: Stream) -> None:
        self.where[list(slots)] = EMPTY

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Stream
    ) -> None:
        there, here = list(source_slots), list(slots)
        if len(there) != len(here):  # NumPy would copy one page to all
            raise ValueError(f"{len(there)} pages cannot be copied to {len(here)} slots")
        self.data[here] = source.data[there]
        self.where[here] = source.where[there]

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Stream) -> None:
        self.where[list(slots)] = shifted(self.where[list(slots)], step, floor)


def shifted(places: np.ndarray, step: np.ndarray, floor: int) -> np.ndarray:
    """Positions [..., 3] with `step` [3] taken off where there is a token, not below `floor`."""
    return np.where(places == EMPTY, EMPTY, np.maximum(places - step.astype(np.int32), floor))


@dataclass(frozen=True)
class Layout:
    """How runs of tokens, each of a temporal unit or a stretch of text, fall into pages: no page
    holds tokens of two runs."""

    page: np.ndarray  # [n] page of each token, 0, 1, …
    cell: np.ndarray  # [n] its cell there
    tokens: tuple[int, ...]  # of each page: how many it holds
    run: tuple[int, ...]  # of each page: whose tokens

    @staticmethod
    def of(lengths: Sequence[int], page_tokens: int) -> Layout:
        """lengths: tokens of each run; a run without tokens gets no page."""
        pages = [
            (run, min(page_tokens, length - first))
            for run, length in enumerate(lengths)
            for first in range(0, length, page_tokens)
        ]
        tokens = tuple(held for _, held in pages)
        page = np.repeat(np.arange(len(pages)), tokens)
        cell = np.concatenate([np.arange(held) for held in tokens]) if tokens else np.empty(0, int)
        return Layout(page, cell, tokens, tuple(run for run, _ in pages))


def page_bytes(model: ModelSpec, dtype: DTypeLike, by_head: bool = False) -> int:
    """Bytes of one page in a pool, positions included."""
    cells = model.layers * model.kv_heads
    values = cells * 2 * model.page_tokens * model.head_dim * np.dtype(dtype).itemsize
    return values + (cells if by_head else 1) * model.page_tokens * 3 * 4


class Slots:
    """Who holds which slot of a pool, or of a part of it.

    A slot is *live* from `take` to `free`. A running question *leases* slots: one that is freed
    under a lease is given out again only when the lease ends, and `take` waits for that. So what
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

    def take(self, count: int) -> list[int]:
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
