"""Numbers that were measured several times: their median and how far they lie apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Spread = dict[str, float]  # keys: median, p25, p75, min, max, n


def spread(values: Sequence[float], digits: int = 4) -> Spread:
    """Median, quartiles and range; raises ValueError of no values, so that nothing unmeasured is
    ever reported."""
    if not len(values):
        raise ValueError("no values were measured")
    p25, median, p75 = np.percentile(values, (25, 50, 75))
    numbers = {"median": median, "p25": p25, "p75": p75, "min": min(values), "max": max(values)}
    return {key: round(float(value), digits) for key, value in numbers.items()} | {"n": len(values)}


def percentiles(values: Sequence[float], digits: int = 3) -> Spread:
    """p50, p95, p99 and the range of some milliseconds."""
    if not len(values):
        raise ValueError("no values were measured")
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    numbers = {"p50": p50, "p95": p95, "p99": p99, "min": min(values), "max": max(values)}
    return {key: round(float(value), digits) for key, value in numbers.items()} | {"n": len(values)}


def seconds_of(work: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
    """Wall seconds of each of `repeats` runs of `work`, after `warmup` runs that are not
    counted."""
    for _ in range(warmup):
        work()
    return [_timed(work) for _ in range(repeats)]


def interleaved(candidates: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Runs every candidate once a round, in turn, so that what the machine does meanwhile hits all
    alike.

    A candidate returns its own measurement. The order turns round every second time, so that none
    always follows the same one.
    """
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(repeats):
        order = list(candidates) if round_number % 2 == 0 else list(reversed(candidates))
        for name in order:
            results[name].append(candidates[name]())
    return results


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
