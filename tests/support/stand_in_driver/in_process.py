"""The stand-in driver as its tests see it, in the process that it is loaded into."""

from __future__ import annotations

import ctypes

SONAME = "libcuda.so.1"  # which cuda.bindings, PyTorch and TensorRT ask for
ALIVE = (
    *("streams", "events", "graphs", "executables", "libraries"),
    *("device_blocks", "device_bytes", "pinned_blocks", "pinned_bytes"),
)


class StandInDriver:
    """The library in the process that loads it, beside the real users of it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(SONAME)
        for name in ("stand_in_refusals", "stand_in_called"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.stand_in_get.restype = ctypes.c_longlong

    def set(self, **switches: int) -> None:
        """Switches of driver.h."""
        for name, value in switches.items():
            assert self._library.stand_in_set(name.encode(), ctypes.c_longlong(value)), name

    def get(self, name: str) -> int:
        """A switch or a count of driver.h."""
        return self._library.stand_in_get(name.encode())

    def alive(self) -> dict[str, int]:
        """What was made and not closed so far."""
        return {name: self.get(name) for name in ALIVE}

    def fail(
        self, result: int, *, function: str | None = None, after: int = 0, lasting: bool = False
    ) -> None:
        """Make one call fail. function: which calls are counted, None = all; lasting: all later
        calls fail, too."""
        name = function.encode() if function else None
        self._library.stand_in_fail(name, ctypes.c_longlong(after), result, int(lasting))

    def recover(self) -> None:
        """As for a new process: a device that failed works again, and refusals are forgotten."""
        self._library.stand_in_recover()

    def refusals(self) -> list[str]:
        """Why calls were refused that a real driver would refuse."""
        return self._library.stand_in_refusals().decode().splitlines()

    def called(self) -> set[str]:
        """The driver's functions that were called so far."""
        return set(self._library.stand_in_called().decode().split())

    def run_kernels(self, callback: object) -> None:
        """callback: a `RunKernel`, which must live as long as kernels are launched."""
        self._library.stand_in_run_kernels(callback)


RunKernel = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)
