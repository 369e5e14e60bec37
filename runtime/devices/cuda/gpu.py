"""The GPU: opened once, and shared by all devices of a process."""

from __future__ import annotations

import threading

from numpy.typing import DTypeLike

from vicort.runtime.devices.cuda.allocator import DeviceAllocator, PinnedAllocator
from vicort.runtime.devices.cuda.arrays import DeviceArray
from vicort.runtime.devices.cuda.driver import Driver
from vicort.runtime.devices.cuda.launcher import GpuLauncher
from vicort.runtime.devices.cuda.streams import GpuClock
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.errors import ConfigError, DeviceError
from vicort.runtime.packages import check_version

MIN_CUDA = 13000  # the libraries that vicort installs are built for it
MIN_DRIVER = "580"  # the first driver that supports it
ELSEWHERE = "run on a CPU with an engine set of `vicort-build MODEL --backend openvino`"


class Gpu:
    def __init__(self, driver: Driver, limit: int | None = None) -> None:
        """limit: maximum bytes of device memory to reserve; None = all that is free."""
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

    def machine_memory(self) -> MachineMemory:
        """In total, within the limit that was given."""
        total = self.driver.memory()[1]
        limit = self.memory.limit
        return MachineMemory(host_memory(), total if limit is None else min(total, limit))

    def empty(
        self, shape: tuple[int, ...], dtype: DTypeLike, purpose: str = "buffers"
    ) -> DeviceArray:
        """An array with undefined content, aligned to 256 bytes. purpose: named in errors."""
        array = DeviceArray(None, 0, tuple(int(size) for size in shape), dtype)
        allocation = self.memory.allocate(array.nbytes, purpose)
        return DeviceArray(allocation, allocation.block.pointer, array.shape, array.dtype)


_lock = threading.Lock()
_found: dict[int, Gpu | DeviceError] = {}


def open_gpu(ordinal: int = 0) -> Gpu:
    """The GPU of that number. Raises DeviceError if there is none that this version can use.

    The outcome, success or failure, is cached for the process: after one call without a driver,
    later calls may hang.
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

        check_version("cuda-core")
    except ConfigError as error:
        raise DeviceError(str(error)) from error
    except ImportError as error:  # PackageNotFoundError is one
        raise DeviceError(
            f"cuda-python cannot be loaded ({error}): install it with `pip install cuda-core "
            "cuda-bindings`"
        ) from error
    try:
        (status,) = cu.cuInit(0)
        version = cu.cuDriverGetVersion()[1]
        count = cu.cuDeviceGetCount()[1] if status == cu.CUresult.CUDA_SUCCESS else 0
    except RuntimeError as error:  # the driver's library is missing
        raise DeviceError(
            f"no NVIDIA driver is installed: install version {MIN_DRIVER} or newer, or {ELSEWHERE}"
        ) from error
    check_driver(status.name, version, count, ordinal)
    try:
        from vicort.runtime.devices.cuda.cuda_core import CudaCoreDriver

        return CudaCoreDriver(ordinal)
    except Exception as error:  # the errors of `cuda.core` have no common class
        raise DeviceError(_not_opened(ordinal, " ".join(str(error).split()))) from error


def _not_opened(ordinal: int, reason: str) -> str:
    """What to tell the user of a GPU that is there, and cannot be opened."""
    if "CUDA_ERROR_DEVICE_UNAVAILABLE" in reason:
        return (
            f"GPU {ordinal} is held by another process, and its compute mode lets in no second "
            f"one: end that process (`nvidia-smi` names it), or {ELSEWHERE}"
        )
    if "CUDA_ERROR_OUT_OF_MEMORY" in reason:
        return (
            f"GPU {ordinal} has no memory left for this process: end a process that holds some "
            f"(`nvidia-smi` names them), or {ELSEWHERE}"
        )
    return f"GPU {ordinal} cannot be opened ({reason}): see `nvidia-smi`, or {ELSEWHERE}"


def check_driver(status: str, version: int, count: int, ordinal: int) -> None:
    """status: of cuInit; version: of CUDA, 13000 = 13.0; count: number of GPUs. Raises DeviceError
    if GPU `ordinal` cannot be used."""
    if version and version < MIN_CUDA:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {version // 1000}.{version % 1000 // 10}, version "
            "13.0 is required: "
            f"install driver {MIN_DRIVER} or newer, or {ELSEWHERE}"
        )
    if status not in ("CUDA_SUCCESS", "CUDA_ERROR_NO_DEVICE"):
        raise DeviceError(
            f"the NVIDIA driver does not start ({status}): see `nvidia-smi`, or {ELSEWHERE}"
        )
    if ordinal >= count:
        there = f"GPUs 0 to {count - 1} are there" if count else "there is none"
        raise DeviceError(f"no GPU {ordinal}: {there}: see `nvidia-smi`, or {ELSEWHERE}")
