"""Statistics of repeated measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Spread = dict[str, float]  # median, p25, p75 (or p50, p95, p99), min, max, n


def spread(values: Sequence[float], digits: int = 4) -> Spread:
    """Median, quartiles, range and number of values. Raises ValueError without values, so that
    nothing unmeasured is reported."""
    return _described(values, {"median": 50, "p25": 25, "p75": 75}, digits)


def percentiles(values: Sequence[float], digits: int = 3) -> Spread:
    """p50, p95, p99, range and number of values. Raises ValueError without values."""
    return _described(values, {"p50": 50, "p95": 95, "p99": 99}, digits)


def _described(values: Sequence[float], levels: dict[str, int], digits: int) -> Spread:
    if not len(values):
        raise ValueError("no values were measured")
    found = dict(zip(levels, np.percentile(values, list(levels.values())), strict=True))
    found |= {"min": min(values), "max": max(values)}
    return {key: round(float(value), digits) for key, value in found.items()} | {"n": len(values)}


def seconds_of(work: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
    """Wall seconds of each of `repeats` runs of `work`, after `warmup` runs that are not
    counted."""
    for _ in range(warmup):
        work()
    return [_timed(work) for _ in range(repeats)]


def interleaved(candidates: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Runs every candidate once a round, in turn, so that other load on the machine affects all
    equally.

    A candidate returns its own measurement. The order is reversed every second round.
    """
    results: dict[str, list[T]] = {name: [] for name in candidates}
    for round_number in range(repeats):
        order = list(candidates) if round_number % 2 == 0 else list(reversed(candidates))
        for name in order:
            results[name].append(candidates[name]())
    return results


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
