"""The GPU: found once, opened once, shared by all devices of a process."""

from __future__ import annotations

import threading

from numpy.typing import DTypeLike

from vicort.runtime.devices.cuda.allocator import DeviceAllocator, PinnedAllocator
from vicort.runtime.devices.cuda.arrays import DeviceArray
from vicort.runtime.devices.cuda.driver import Driver
from vicort.runtime.devices.cuda.launcher import GpuLauncher
from vicort.runtime.devices.cuda.streams import GpuClock
from vicort.runtime.errors import DeviceError

MIN_CUDA = 13000  # what the libraries that vicort installs are built for
MIN_DRIVER = "580"  # the first driver that speaks it
ELSEWHERE = "run on a CPU with an engine set of `vicort-build MODEL --backend openvino`"


class Gpu:
    def __init__(self, driver: Driver, limit: int | None = None) -> None:
        """limit: most bytes of device memory to take; None = what is free."""
        self.driver = driver
        self.memory = DeviceAllocator(driver, limit)
        self.pinned = PinnedAllocator(driver)
        self.clock = GpuClock(driver)
        self.launcher = GpuLauncher(driver, self.memory, self.pinned)

    @property
    def name(self) -> str:
        return self.driver.name

    @property
    def capability(self) -> tuple[int, int]:
        return self.driver.capability

    @property
    def multiprocessors(self) -> int:
        return self.driver.multiprocessors

    def empty(
        self, shape: tuple[int, ...], dtype: DTypeLike, purpose: str = "buffers"
    ) -> DeviceArray:
        """An array whose content is undefined, at a multiple of 256 bytes. purpose: what an error
        names it."""
        array = DeviceArray(None, 0, tuple(int(size) for size in shape), dtype)
        allocation = self.memory.allocate(array.nbytes, purpose)
        return DeviceArray(allocation, allocation.block.pointer, array.shape, array.dtype)


_lock = threading.Lock()
_found: dict[int, Gpu | DeviceError] = {}


def open_gpu(ordinal: int = 0) -> Gpu:
    """The GPU of that number. Raises DeviceError, with what to do, if there is none that this
    version can use.

    Looked for once in a process, and the outcome kept: after a first call without a driver, later
    ones may hang.
    """
    with _lock:
        if ordinal not in _found:
            try:
                _found[ordinal] = Gpu(_open_driver(ordinal))
            except DeviceError as error:
                _found[ordinal] = error
        found = _found[ordinal]
    if isinstance(found, DeviceError):
        raise found
    return found


def _open_driver(ordinal: int) -> Driver:
    try:
        from cuda.bindings import driver as cu
    except ImportError as error:
        raise DeviceError(
            f"cuda-python cannot be loaded ({error}): install it with `pip install cuda-core "
            "cuda-bindings`"
        ) from error
    try:
        (status,) = cu.cuInit(0)
        version = cu.cuDriverGetVersion()[1]
        count = cu.cuDeviceGetCount()[1] if status == cu.CUresult.CUDA_SUCCESS else 0
    except RuntimeError as error:  # the driver's library is not there
        raise DeviceError(
            f"no NVIDIA driver is installed: install version {MIN_DRIVER} or newer, or {ELSEWHERE}"
        ) from error
    check_driver(status.name, version, count, ordinal)
    try:
        from vicort.runtime.devices.cuda.cuda_core import CudaCoreDriver

        return CudaCoreDriver(ordinal)
    except Exception as error:  # of `cuda.core`, whose errors have no common class
        raise DeviceError(
            f"GPU {ordinal} cannot be opened ({' '.join(str(error).split())}): see `nvidia-smi`, "
            f"or {ELSEWHERE}"
        ) from error


def check_driver(status: str, version: int, count: int, ordinal: int) -> None:
    """status: of cuInit; version: of CUDA, 13000 = 13.0; count: GPUs there are. Raises DeviceError
    if they will not do."""
    if version and version < MIN_CUDA:
        raise DeviceError(
            f"the NVIDIA driver speaks CUDA {version // 1000}.{version % 1000 // 10}, version "
            "13.0 is needed: "
            f"install driver {MIN_DRIVER} or newer, or {ELSEWHERE}"
        )
    if status not in ("CUDA_SUCCESS", "CUDA_ERROR_NO_DEVICE"):
        raise DeviceError(
            f"the NVIDIA driver does not start ({status}): see `nvidia-smi`, or {ELSEWHERE}"
        )
    if ordinal >= count:
        there = f"GPUs 0 to {count - 1} are there" if count else "there is none"
        raise DeviceError(f"no GPU {ordinal}: {there}: see `nvidia-smi`, or {ELSEWHERE}")
