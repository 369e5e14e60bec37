"""Devices: ordered streams of work, events in them, and the memory that they work on.

The scheduler knows these verbs and nothing else. `HostDevice` keeps them with worker threads and
NumPy arrays, `CudaDevice` (cuda.py) with CUDA streams and device memory. On the host a stream's
work is done when it returns; on CUDA it has then only been *enqueued*, so whoever needs the result
on another stream waits there with `Stream.wait`, and whoever needs it on the host calls
`Device.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.manifest import ModelSpec


class Array(Protocol):
    """Memory of a device, contiguous: a NumPy array, or a `DeviceArray` of the same look."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Self:
        """A part along the first axis."""
        ...

    def reshape(self, shape: tuple[int, ...], /) -> Self: ...


class StreamEvent(Protocol):
    """A point in a stream."""

    def done(self) -> Any:
        """Wait, on the host, until the stream has come there; gives what the work returned, raises
        what it raised."""
        ...

    def enqueued(self) -> Any:
        """The same as soon as the host has it: the device may still be at what the work
        enqueued."""
        ...


class Mark(Protocol):
    """A moment in a stream, for stage times and traces."""

    def ns(self) -> int | None:
        """When the stream came there, on the clock of `time.perf_counter_ns`; None while it has
        not."""
        ...


class Stream(Protocol):
    """Work in order. All verbs but `run`, `synchronize` and `close` are for the stream's own
    work to call."""

    name: str

    def run(self, work: Callable[..., Any], *args: Any) -> StreamEvent:
        """Run `work` behind all that was submitted before; from inside the stream's own work, at
        once."""
        ...

    def wait(self, event: StreamEvent) -> None:
        """What follows comes after `event`, of whatever stream. Raises what the work behind the
        event raised."""
        ...

    def record(self) -> StreamEvent:
        """An event behind all work so far."""
        ...

    def mark(self) -> Mark: ...

    def notify(
        self,
        work: Callable[..., Any],
        *args: Any,
        failed: Callable[[BaseException], Any] | None = None,
    ) -> None:
        """Call `work` on the host once all work so far is done; calls keep their order. `failed` is
        called instead if the device broke."""
        ...

    def synchronize(self) -> None:
        """Wait, on the host, for all work submitted so far."""
        ...

    def close(self) -> None: ...


class Pool(Protocol):
    """Keys, values and positions of pages, as the language graph reads them.

    What changes them runs in the order of a stream, and is called from its work; positions are on
    the host too, as of the last call.
    """

    # Array [P, L, Hkv, 2, T, D], cell (slot, layer, head) = T keys, not rotated, then T values
    data: Any
    # Array [P, L|1, Hkv|1, T, 3] int32, the (t, h, w) of each cached token, -1 = empty; 1 = all
    # layers, all heads alike
    cell_positions: Any
    host_positions: np.ndarray  # `cell_positions` on the host

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


class Device(Protocol):
    urgency: Urgency

    def stream(self, name: str, urgent: bool = False) -> Stream: ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An `Array` whose content is undefined."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any: ...

    def pool(self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False) -> Pool:
        """Pages that engines can read. by_head: whether each layer and head may hold other tokens
        than the next."""
        ...

    def host_pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> Pool:
        """Pages in the host's memory, which move from and to the device's."""
        ...

    def preprocessor(self, height: int, width: int, threads: int) -> Any:
        """Of frames to [F, height, width, 3] uint8 in this device's memory: called with (frames,
        out, stream)."""
        ...

    def upload(self, target: Any, source: np.ndarray, stream: Stream) -> None:
        """Host to device; `source` may change as soon as this returns."""
        ...

    def copy(self, target: Any, source: Any, stream: Stream) -> None:
        """Within the device."""
        ...

    def read(self, stream: Stream, *arrays: Any) -> tuple[np.ndarray, ...]:
        """Wait for the stream, and see arrays on the host. What is seen stays valid until the same
        arrays are written or read again."""
        ...

    def close(self) -> None: ...
