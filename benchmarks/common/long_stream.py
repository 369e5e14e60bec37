"""Speed and memory of one long stream at several points."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import Workload, bench_system, describe_system
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.engines.engine_set import EngineSet

FIRST = 10  # chunks before the first point
POINT = 100  # chunks in a point


def measure(engine_dir: Path, settings: Settings) -> dict[str, Any]:
    """Milliseconds between chunks, resident memory and pages at several points of one stream."""
    workload = Workload()
    system = bench_system(device_mb=settings.long_device_mb, host_mb=settings.long_host_mb)
    points, start_rss = [], rss_mb()
    with (
        EngineSet.open(engine_dir) as engines,
        VicortStream(engines, system, workload, overlap=True) as stream,
    ):
        for first in _starts(settings.long_chunks):
            done = len(stream.watch.chunks)
            if first > done:
                stream.push_chunks(first - done)
            stream.push_chunks(min(POINT, settings.long_chunks - first))
            points.append(_point(stream, first))
    base = points[0]["ms_between_chunks"]["median"]
    return {
        "engine_set": engine_dir.name,
        "workload": workload.describe(),
        "system": describe_system(system),
        "mode": f"overlapped {usable_cores()}t",
        "rss_mb_before_loading": start_rss,
        "points": points,
        "drift": {
            point["chunks"]: round(point["ms_between_chunks"]["median"] / base - 1, 4)
            for point in points[1:]
        },
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }


def _starts(chunks: int) -> list[int]:
    """First chunk of each point: 10, 950 and the last hundred, as far as the stream goes; of a
    short one what follows the first."""
    later = [
        start
        for start in (950, chunks - POINT)
        if start >= FIRST + POINT and start + POINT <= chunks
    ]
    return [FIRST, *dict.fromkeys(later or [FIRST + POINT])]


def _point(stream: VicortStream, first: int) -> dict[str, Any]:
    last = len(stream.watch.chunks)
    intervals = np.diff(np.asarray(stream.watch.placed_ns[first:last])) / 1e6
    summary = stream.session.summary()
    spans = {
        stage: [span.ms for span in spans if first <= span.chunk < last]
        for stage, spans in stream.watch.spans.items()
    }
    return {
        "chunks": f"{first}-{last}",
        "ms_between_chunks": spread(intervals.tolist()),
        "stage_ms": {stage: spread(values) for stage, values in spans.items() if values},
        "pages": summary.pages,
        "rss_mb": rss_mb(),
    }


def rss_mb() -> float:
    """Resident memory of this process now, in MB of 1e6 bytes."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(resident_pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
