"""What a session counts, and the summary that is made of it."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from vicort.runtime.core import Summary
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.memory.memory import Memory
from vicort.runtime.policies.system import System
from vicort.runtime.stages.pipeline import FORK

STAGES = ("preprocess", "vision", "tokens", "prefill")
MAX_TTFTS = 10_000  # the latest, over which the summary's percentiles are taken


class StreamStatistics:
    """Counts of one stream; times are perf_counter_ns."""

    def __init__(self) -> None:
        self.frames = 0  # that entered the pipeline after sampling
        self.chunks = 0  # that left it
        self.late = 0  # frames that were not later than the newest one
        self.first_ns = 0  # when the first frame entered
        self.last_ns = 0  # when the last chunk left
        self.event_failures = 0  # calls of on_event that raised
        self._ttfts: deque[float] = deque(maxlen=MAX_TTFTS)

    def frame_entered(self) -> None:
        self.first_ns = self.first_ns or time.perf_counter_ns()
        self.frames += 1

    def chunk_left(self) -> None:
        self.chunks += 1
        self.last_ns = time.perf_counter_ns()

    def answered(self, ttft_ms: float) -> None:
        self._ttfts.append(ttft_ms)

    def summary(self, system: System, dropped: int, clock: StageClock, memory: Memory) -> Summary:
        """dropped: frames that the lag policy dropped."""
        seconds = max(self.last_ns - self.first_ns, 0) / 1e9 if self.last_ns else 0.0
        stage_ms = {stage: clock.totals.get(stage, 0) / 1e6 for stage in STAGES}
        fork_ms = {stage: clock.totals.get(f"{FORK}{stage}", 0) / 1e6 for stage in STAGES}
        return Summary(
            system=system.name,
            frames=self.frames,
            dropped=dropped,
            chunks=self.chunks,
            seconds=seconds,
            fps=self.frames / seconds if seconds else 0.0,
            stage_ms=stage_ms,
            overlap=sum(stage_ms.values()) / 1e3 / seconds if seconds else 0.0,
            ttft_ms=percentiles(self._ttfts),
            pages=memory.pages_in_use(),
            budget_mb={"device": system.budget.device_mb, "host": system.budget.host_mb},
            moved_mb=memory.bytes_moved / 1e6,
            reruns=memory.reruns,
            late=self.late,
            peak_rss_mb=_peak_rss_mb(),
            event_failures=self.event_failures,
            fork_ms=fork_ms,
        )


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 of some milliseconds; None if there are none."""
    if not values:
        return None
    return {f"p{level}": float(np.percentile(values, level)) for level in (50, 95, 99)}


def _peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB of 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
