"""What the tests have a process on the stand-in do: streams of toy engines."""

from __future__ import annotations

import functools
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.fake_engines import FakeEngineSet
from support.reported_streams import ANY_SIZE, small, told, told_of_sizes, watch
from support.stand_in_driver.engines import StandInEngineSet, stand_in_driver
from support.streams import frames

from vicort.runtime.stages.shared_vision import SharedVision


@functools.cache
def engines() -> StandInEngineSet:
    return StandInEngineSet()


@functools.cache
def sized_engines() -> StandInEngineSet:
    return StandInEngineSet(**ANY_SIZE)


@functools.cache
def told_by_host(name: str) -> Any:
    return told(FakeEngineSet(), name)


@functools.cache
def sizes_told_by_host() -> Any:
    return told_of_sizes(FakeEngineSet(**ANY_SIZE))


def compare(name: str, overlap: bool) -> tuple[bool, int, list[str]]:
    """Whether a system says what it says on the host; graphs that were replayed meanwhile; calls
    that the driver refused."""
    driver = stand_in_driver()
    opened = engines()
    before = driver.get("replays")
    is_equal = told(opened, name, overlap=overlap) == told_by_host(name)
    return is_equal, driver.get("replays") - before, driver.refusals()


def compare_sizes(overlap: bool) -> tuple[bool, int, list[str]]:
    driver = stand_in_driver()
    opened = sized_engines()
    before = driver.get("replays")
    is_equal = told_of_sizes(opened, overlap=overlap) == sizes_told_by_host()
    return is_equal, driver.get("replays") - before, driver.refusals()


def compare_shared_vision(streams: int) -> tuple[bool, int, list[str]]:
    """Of streams at the same time, whose units are encoded together."""
    driver, opened = stand_in_driver(), engines()
    before = driver.get("replays")
    with SharedVision(opened) as vision, ThreadPoolExecutor(streams) as pool:
        said = list(
            pool.map(lambda _: told(opened, "vicostream", shared_vision=vision), range(streams))
        )
    is_equal = said == [told_by_host("vicostream")] * streams
    return is_equal, driver.get("replays") - before, driver.refusals()


def alive_after_sessions(count: int) -> list[dict[str, int]]:
    """What the driver holds before and after each of `count` sessions, which capture graphs."""
    opened, driver = engines(), stand_in_driver()
    alive = [_alive(opened)]
    for _ in range(count):
        captures = driver.get("captures")
        watch(opened, small("vicostream"), frames(17), (None,))
        assert driver.get("captures") > captures
        alive.append(_alive(opened))
    return alive


def _alive(opened: StandInEngineSet) -> dict[str, int]:
    gc.collect()
    opened.gpu.memory.trim()
    opened.gpu.pinned.collect()
    return stand_in_driver().alive()
