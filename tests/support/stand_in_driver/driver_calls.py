"""What the tests have a process on the stand-in do: calls of vicort's driver, one or a few."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver as cu
from support.stand_in_driver.engines import cubins, stand_in_driver
from support.stand_in_driver.in_process import RunKernel

from vicort.runtime.devices.cuda.cuda_core import CudaCoreDriver


@functools.cache
def opened() -> CudaCoreDriver:
    return CudaCoreDriver(0)


def numbers(pointer: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), np.uint8)


def failure(work: Callable[[], Any]) -> str | None:
    """What it raises, as a line."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 -- looked at by the test
        return f"{type(error).__name__}: {error}"
    return None


def facts() -> tuple[Any, ...]:
    driver = opened()
    return driver.capability, driver.multiprocessors, driver.version, driver.memory()[1]


def priorities() -> list[int]:
    driver = opened()
    streams = [driver.create_stream(urgent) for urgent in (False, True)]
    answers = [cu.cuStreamGetPriority(stream.handle)[1] for stream in streams]
    for stream in streams:
        driver.close_stream(stream)
    return answers


def allocations() -> tuple[bool, int, int, int, int]:
    """Whether addresses are aligned; bytes that are free before, with, and after two blocks; pinned
    bytes that are left."""
    driver, stand_in = opened(), stand_in_driver()
    before, pinned_before = driver.memory()[0], stand_in.get("pinned_bytes")
    pointers = [driver.allocate(1 << 20) for _ in range(2)]
    pinned = driver.allocate_pinned(1000)
    held = driver.memory()[0]
    for pointer in pointers:
        driver.free(pointer)
    driver.free_pinned(pinned)
    aligned = not any(pointer % 256 for pointer in pointers)
    left = stand_in.get("pinned_bytes") - pinned_before
    return aligned, before, held, driver.memory()[0], left


def full_memory() -> list[str | None]:
    """Both kinds of memory are full, or fail for another reason."""
    driver, stand_in = opened(), stand_in_driver()
    errors = [failure(lambda: driver.allocate(1 << 40))]
    errors.append(failure(lambda: driver.allocate_pinned(1 << 40)))
    for function in ("cuMemAllocAsync", "cuMemAllocHost_v2"):
        stand_in.fail(int(cu.CUresult.CUDA_ERROR_INVALID_CONTEXT), function=function)
        take = driver.allocate if "Async" in function else driver.allocate_pinned
        try:
            take(10)
        except Exception as error:  # noqa: BLE001
            errors.append(f"{type(error).__name__}: {error}")
    stand_in.recover()
    return errors


def copies() -> list[int]:
    """Bytes that go from pinned memory to the device and back."""
    driver = opened()
    stream = driver.create_stream(False)
    pinned, device = driver.allocate_pinned(512), driver.allocate(512)
    numbers(pinned, 512)[:] = 1
    driver.fill(device, 7, 512, stream)
    driver.copy(device, pinned, 256, stream)
    driver.copy(pinned, device, 512, stream)
    driver.synchronize(driver.record(stream, blocking=True))
    found = numbers(pinned, 512)[[0, 255, 256, 511]].tolist()
    driver.free(device)
    driver.free_pinned(pinned)
    driver.close_stream(stream)
    return found


def events() -> tuple[bool, bool, str | None]:
    """Whether time passes between two events; whether they are done; and events without a time."""
    driver = opened()
    stream, other = driver.create_stream(False), driver.create_stream(True)
    start, end = driver.record(stream, timing=True), driver.record(other, timing=True)
    driver.wait(stream, end)
    plain = driver.record(stream)
    answer = (
        driver.elapsed_ms(start, end) >= 0,
        driver.is_done(start) and driver.is_done(end),
        failure(lambda: driver.elapsed_ms(start, plain)),
    )
    driver.close_stream(stream)
    driver.close_stream(other)
    return answer


def other_threads() -> list[str | None]:
    """On each thread the GPU is made current."""
    driver = opened()
    errors: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: errors.append(failure(driver.memory))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    return errors


def launches() -> tuple[list[Any], str | None, str | None]:
    """What a kernel is launched with; shared memory that was not asked for, and no grid."""
    driver, stand_in, seen = opened(), stand_in_driver(), []

    def run(name, grid, block, shared_bytes, values, sizes, count):
        words = [
            int.from_bytes(ctypes.string_at(values[i], sizes[i]), "little", signed=True)
            for i in range(count)
        ]
        seen.extend([name.decode(), grid[:3], block[:3], shared_bytes, words])
        return 0

    callback = RunKernel(run)
    stand_in.run_kernels(callback)
    kernels = cubins()
    scatter = kernels.find(90, "scatter_tokens", "")
    cubin = kernels.cubins[scatter.file]
    stream = driver.create_stream(False)
    large = driver.load(cubin, scatter.function, 100 << 10)
    values = tuple(
        (kind, -3 if kind == "i32" else 512 + i) for i, kind in enumerate(scatter.arguments)
    )
    driver.launch(large, (3, 2, 1), 128, 100 << 10, driver.handle(stream), values)
    usual = driver.load(cubin, scatter.function, 48 << 10)
    handle = driver.handle(stream)
    errors = [
        failure(lambda: driver.launch(usual, (1, 1, 1), 128, 49 << 10, handle, values)),
        failure(lambda: driver.launch(usual, (0, 1, 1), 128, 0, handle, values)),
    ]
    stand_in.run_kernels(None)
    driver.close_stream(stream)
    return seen, *errors


def captures() -> tuple[list[int], list[str | None], bool]:
    """What memory holds after a capture, and after each of two launches of its graph; what of other
    threads failed meanwhile; and whether nothing is left in the driver."""
    driver, stand_in = opened(), stand_in_driver()
    before = stand_in.alive()
    stream, elsewhere = driver.create_stream(False), []
    device = driver.allocate(256)
    driver.fill(device, 1, 256, stream)
    found = []

    def meanwhile() -> None:
        driver.free(driver.allocate(256))
        driver.free_pinned(driver.allocate_pinned(256))
        other = driver.create_stream(False)
        driver.synchronize(driver.record(other))
        driver.close_stream(other)

    driver.begin_capture(stream)
    driver.fill(device, 5, 256, stream)
    thread = threading.Thread(target=lambda: elsewhere.append(failure(meanwhile)))
    thread.start()
    thread.join()
    graph = driver.end_capture(stream)
    found.append(int(numbers(device, 256)[0]))
    for _ in range(2):
        driver.launch_graph(graph, stream)
        found.append(int(numbers(device, 256)[0]))
        driver.fill(device, 1, 256, stream)
    driver.close_graph(graph)
    driver.close_stream(stream)
    driver.free(device)
    return found, elsewhere, stand_in.alive() == before


def illegal_in_a_capture() -> dict[str, tuple[str | None, str | None]]:
    """For each call: what it fails with in a capture, and the use of the stream after it."""
    driver = opened()
    stream, pointer = driver.create_stream(False), driver.allocate(256)
    event = driver.record(stream)
    calls = {
        "allocate": lambda: driver.allocate(256),
        "allocate_pinned": lambda: driver.allocate_pinned(256),
        "create_stream": lambda: driver.create_stream(False),
        "synchronize": lambda: driver.synchronize(event),
        "is_done": lambda: driver.is_done(event),
        "wait": lambda: driver.wait(stream, event),
        "capture": lambda: driver.begin_capture(stream),
    }
    found = {}
    for name, call in calls.items():
        driver.begin_capture(stream)
        error = failure(call)
        driver.abandon_capture(stream)
        found[name] = (error, failure(lambda: driver.fill(pointer, 1, 256, stream)))
    driver.free(pointer)
    driver.close_stream(stream)
    stand_in_driver().recover()
    return found


def called_by_all() -> set[str]:
    """The driver's functions that all of the above call, without their versions."""
    for work in (
        *(facts, priorities, allocations, full_memory, copies, events, other_threads, launches),
        *(captures, illegal_in_a_capture),
    ):
        work()
    return {name.partition("_")[0] for name in stand_in_driver().called()}
