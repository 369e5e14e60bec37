"""Protocols of a device: ordered streams of work, events, and the memory that they use.

`HostDevice` implements them with worker threads and NumPy arrays, `CudaDevice` with CUDA streams
and device memory. On the host the work of a stream is done when it returns. On CUDA it is only
*enqueued* then: to use the result on another stream, wait there with `Stream.wait`; to use it on
the host, call `Device.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.manifest import ModelSpec

ON_CPU_ONLY = (
    "memory that differs by layer and head (systems livevlm, resv, freekv, rekv) runs on CPU "
    "engines only so far: take --system distinct, or an engine set of --backend openvino"
)


class Array(Protocol):
    """A contiguous array on a device: a NumPy array, or a `DeviceArray` with the same interface."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def ndim(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def flags(self) -> Any:
        """`flags.c_contiguous`, as NumPy has it."""
        ...

    def __getitem__(self, rows: slice, /) -> Self:
        """A slice along the first axis, without a copy."""
        ...

    def reshape(self, shape: tuple[int, ...], /) -> Self: ...


class StreamEvent(Protocol):
    """A point in a stream."""

    def done(self) -> Any:
        """Block the host until the device reaches the event. Returns the result of the work, or
        raises its exception."""
        ...

    def enqueued(self) -> Any:
        """Block the host until the work's function has returned: the device may not have executed
        it yet. Returns and raises as `done` does."""
        ...


class Mark(Protocol):
    """A timestamp in a stream, for stage times and traces."""

    def ns(self) -> int | None:
        """When the stream reached it, on the clock of `time.perf_counter_ns`; None if it has not
        yet."""
        ...


class Stream(Protocol):
    """Work in order. Only the stream's own work may call these methods, except `run`,
    `synchronize` and `close`."""

    name: str

    def run(self, work: Callable[..., Any], *args: Any) -> StreamEvent:
        """Run `work` after all work submitted so far. Called from the stream's own work, run it at
        once."""
        ...

    def run_first(self, work: Callable[..., Any], *args: Any) -> StreamEvent:
        """Run `work` before all work that waits: as soon as the work in progress ends, or waits
        with `first`. Not to be called from the stream's own work."""
        ...

    def wait(self, event: StreamEvent, *, first: bool = False) -> None:
        """Run all later work after `event`, which may be of another stream. Raises the exception of
        the event's work.

        first: what comes by `run_first` meanwhile is run before this returns.
        """
        ...

    def record(self) -> StreamEvent:
        """An event after all work so far."""
        ...

    def mark(self) -> Mark: ...

    def notify(
        self,
        work: Callable[..., Any],
        *args: Any,
        failed: Callable[[BaseException], Any] | None = None,
    ) -> None:
        """Call `work` on the host once the device has done all work so far; callbacks run in order.
        If the device fails, `failed` is called instead."""
        ...

    def synchronize(self) -> None:
        """Block the host until all work submitted so far is done."""
        ...

    def close(self) -> None: ...


class Pool(Protocol):
    """Keys, values and positions of pages, as the language graph reads them.

    Methods that change pages are called from the work of a stream, in its order. `host_positions`
    is the state after the last call.

    P = pages, L = layers, T = tokens in a page, D = size of a head.
    """

    host_positions: np.ndarray  # a copy of `cell_positions` on the host

    @property
    def data(self) -> Array:
        """[P,L,Hkv,2,T,D]: cell (slot, layer, head) holds T keys, not rotated, then T values."""
        ...

    @property
    def scales(self) -> Array | None:
        """[P,L,Hkv,2,T] float32 of int8 pages, by which keys and values are multiplied; None where
        the pages hold floats."""
        ...

    @property
    def cell_positions(self) -> Array:
        """[P,L|1,Hkv|1,T,3] int32: (t, h, w) of each cached token, -1 = empty. A dimension of 1
        serves all layers or all heads."""
        ...

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Stream,
    ) -> None:
        """Write n tokens: token i goes to cell cells[i] of slot slots[i].

        k, v: [L,R,Hkv,D] float, of which the first n rows are written, quantised where the pages
        are int8; positions: [n,3] int32.
        """
        ...

    def clear(self, slots: Sequence[int], stream: Stream) -> None: ...

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Stream
    ) -> None: ...

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Stream) -> None:
        """Subtract `step` [3] from the positions of all tokens in these slots, and clamp them to
        `floor` from below."""
        ...


class Preprocessing(Protocol):
    def __call__(self, frames: Sequence[Any], out: Array, stream: Any) -> None:
        """Resize F frames into out [F,height,width,3] uint8, in the order of `stream`."""
        ...


class Device(Protocol):
    urgency: Urgency

    def memory(self) -> MachineMemory:
        """How much there is in total, of the device and of its host."""
        ...

    def check(self) -> None:
        """Raises DeviceError once a call has found that the device is lost."""
        ...

    def stream(self, name: str, urgent: bool = False) -> Stream:
        """A new stream. urgent: of higher priority than the others."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array with undefined content."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array: ...

    def pool(self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False) -> Pool:
        """Pages that engines can read. dtype: of keys and values in pages, int8 with scales.
        by_head: each layer and head may hold other tokens."""
        ...

    def host_pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> Pool:
        """Pages in host memory, which are copied to and from those of `pool`."""
        ...

    def preprocessor(self, size: tuple[int, int] | None, threads: int) -> Preprocessing:
        """size: height and width in pixels of all frames that it returns, letterboxed; None: as
        each call says, stretched. threads: of the CPU."""
        ...

    def upload(self, target: Array, source: np.ndarray, stream: Stream) -> None:
        """Copy from host to device. The caller may change `source` when this returns."""
        ...

    def copy(self, target: Array, source: Array, stream: Stream) -> None:
        """Copy within the device."""
        ...

    def read(self, stream: Stream, *arrays: Array) -> tuple[np.ndarray, ...]:
        """Wait for the stream, and return the arrays on the host. They are valid until the same
        arrays are written or read again."""
        ...

    def close(self) -> None: ...
