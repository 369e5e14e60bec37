"""What the runtime asks of CUDA, and nothing else: a stand-in with these verbs runs everything
above it without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

ArgumentKind = Literal["pointer", "i32", "i64", "f32"]
Arguments = Sequence[tuple[ArgumentKind, int | float]]


class Driver(Protocol):
    """One GPU. Memory is addresses; streams, events and graphs are the driver's own things, handed
    back to it.

    Thread-safe. What a caller cannot go on from is raised as DeviceError; only `allocate` also
    raises MemoryError.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    version: int  # of CUDA that the driver speaks: 13000 = 13.0

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, in all."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory that every stream may use at once; its address is a multiple of 256. Raises
        MemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """No stream may be using it any more."""
        ...

    def allocate_pinned(self, size: int) -> int:
        """Address of host memory that copies can be made from and to without waiting."""
        ...

    def free_pinned(self, pointer: int) -> None: ...

    def create_stream(self, urgent: bool) -> Any:
        """urgent: its kernels go before those of other streams."""
        ...

    def close_stream(self, stream: Any) -> None: ...

    def handle(self, stream: Any) -> int:
        """The raw CUstream."""
        ...

    def record(self, stream: Any, *, timing: bool = False, blocking: bool = False) -> Any:
        """An event behind all work of the stream. timing: for `elapsed_ms`; blocking: who waits for
        it sleeps rather than spins."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """The stream's further work comes after the event. Does not wait."""
        ...

    def is_done(self, event: Any) -> bool: ...

    def synchronize(self, event: Any) -> None:
        """The host waits."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Both events recorded with timing, and done."""
        ...

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Bytes between device and pinned memory, any way round, in the order of the stream."""
        ...

    def fill(self, pointer: int, byte: int, size: int, stream: Any) -> None: ...

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> Any:
        """A kernel. shared_bytes: most dynamic shared memory that a launch of it will ask for."""
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
        """What this thread puts on the stream from now on is recorded, not run."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """The graph of what was recorded."""
        ...

    def abandon_capture(self, stream: Any) -> None:
        """Leave capture, whatever state it is in; what was recorded is lost."""
        ...

    def launch_graph(self, graph: Any, stream: Any) -> None: ...

    def close_graph(self, graph: Any) -> None:
        """Runs of it that are under way come to their end."""
        ...
