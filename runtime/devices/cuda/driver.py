"""The CUDA calls that the runtime uses. A simulated driver with the same methods runs everything
above without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

ArgumentKind = Literal["pointer", "i32", "i64", "f32"]
Arguments = Sequence[tuple[ArgumentKind, int | float]]


class Driver(Protocol):
    """One GPU. Memory is an address; streams, events and graphs are opaque objects of the driver.

    Thread-safe. Every method may raise DeviceError; both kinds of allocation also raise
    MemoryError. Of a device that is lost all methods raise the same DeviceError, but those that
    give something back, which do nothing.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    version: int  # of CUDA that the driver supports: 13000 = 13.0

    def check_lost(self) -> None:
        """Raises DeviceError once a call has found that the device is lost. Asks the device
        nothing."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, total."""
        ...

    def allocate(self, size: int) -> int:
        """Address of device memory that every stream may use immediately, a multiple of 256. Raises
        MemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """No stream may use the memory any more."""
        ...

    def allocate_pinned(self, size: int) -> int:
        """Address of page-locked host memory, for asynchronous copies. Raises MemoryError."""
        ...

    def free_pinned(self, pointer: int) -> None: ...

    def create_stream(self, urgent: bool) -> Any:
        """urgent: of the highest priority."""
        ...

    def close_stream(self, stream: Any) -> None: ...

    def handle(self, stream: Any) -> int:
        """The raw CUstream."""
        ...

    def record(self, stream: Any, *, timing: bool = False, blocking: bool = False) -> Any:
        """An event after all work of the stream. timing: for `elapsed_ms`; blocking: a waiting
        thread sleeps rather than spins."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Order the stream's further work after the event, without blocking the host."""
        ...

    def is_done(self, event: Any) -> bool: ...

    def synchronize(self, event: Any) -> None:
        """Block the host until the event is done."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Both events must be recorded with timing, and done."""
        ...

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copy bytes between any two of device and pinned memory, in the order of the stream."""
        ...

    def fill(self, pointer: int, byte: int, size: int, stream: Any) -> None: ...

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> Any:
        """A kernel. shared_bytes: maximum dynamic shared memory of its launches."""
        ...

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream_handle: int,
        args: Arguments,
    ) -> None:
        """grid: blocks; threads: of a block; shared_bytes: dynamic shared memory of a block;
        stream_handle: a raw CUstream."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """From now on, record what this thread puts on the stream instead of running it."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """The graph of the recorded work."""
        ...

    def abandon_capture(self, stream: Any) -> None:
        """End the capture in any state, and discard the recorded work."""
        ...

    def launch_graph(self, graph: Any, stream: Any) -> None: ...

    def close_graph(self, graph: Any) -> None:
        """Launches in progress are completed."""
        ...
