"""Bottleneck migration: which stage is slowest as chunk size, retention, attention bound and
retrieval scope vary, one at a time.

ViCoStream (arXiv 2606.19849) has such a study and gives a rate from it, frames of a chunk / its
slowest stage. Here the stages are timed alone (sequential, one thread), that formula is applied to
them, and compared with the rate that the overlapped pipeline reached.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import percentiles, spread
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import (
    CHUNK_FRAMES,
    KEEP,
    bench_system,
    describe_system,
)
from vicort.benchmarks.systems.recorded import Recording, read_recording, write_recording
from vicort.benchmarks.systems.system_clock import fill
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.drop import ChunkIntra
from vicort.runtime.policies.ingest import RecentChunks
from vicort.runtime.policies.retrieval import SimilarChunks
from vicort.runtime.policies.system import System
from vicort.runtime.stream_statistics import STAGES

BASE = {"chunk": CHUNK_FRAMES, "keep": KEEP, "window": 4, "top": 32}
AXES: dict[str, tuple[float, ...]] = {
    "chunk": (2, 4, 8, 16),  # frames; engines take chunks of up to 16
    # share of a chunk's visual tokens that are kept; the first unit always is, 1/8 of a chunk
    "keep": (0.125, 0.3, 0.5, 0.75, 1.0),
    "window": (1, 4, 16, 64),  # chunks that a chunk attends to
    "top": (1, 8, 32, 128),  # chunks that a question reads
}
TITLES = {
    "chunk": "chunk size, frames",
    "keep": "retention, share of the visual tokens kept",
    "window": "attention bound, chunks that a chunk sees",
    "top": "retrieval scope, chunks that a question sees",
}


@dataclass(frozen=True)
class Setting:
    """A point of the study: the base with one value changed."""

    chunk: int
    keep: float
    window: int
    top: int

    @staticmethod
    def of(axis: str, value: float) -> Setting:
        values = BASE | {axis: value}
        return Setting(
            int(values["chunk"]), values["keep"], int(values["window"]), int(values["top"])
        )

    def system(self) -> System:
        return bench_system("vicostream").with_(
            chunk={"frames": self.chunk},
            drop=ChunkIntra(keep=self.keep),
            ingest=RecentChunks(chunks=self.window),
            retrieval=SimilarChunks(top=self.top, recent=1),
        )


def measure(engine_dir: Path, cache: Path, settings: Settings) -> dict[str, Any]:
    """A point for each value of each axis; the base is measured once and is part of all four."""
    cache.mkdir(parents=True, exist_ok=True)
    write_recording(cache / "recording.mp4")
    workload = read_recording(cache / "recording.mp4")
    points: dict[Setting, dict[str, Any]] = {}
    with EngineSet.open(engine_dir, threads=1) as engines:
        for axis, values in _axes(settings).items():
            for value in values:
                setting = Setting.of(axis, value)
                points[setting] = points.get(setting) or point(engines, setting, workload, settings)
    axes = {
        axis: [{"value": value, **points[Setting.of(axis, value)]} for value in values]
        for axis, values in _axes(settings).items()
    }
    return {
        "engine_set": engine_dir.name,
        "workload": workload.describe(),
        "system": describe_system(Setting.of("chunk", CHUNK_FRAMES).system()),
        "base": BASE,
        "fill_frames": settings.migration_fill_frames,
        "axes": axes,
        "migrations": {axis: migrations(points) for axis, points in axes.items()},
    }


def _axes(settings: Settings) -> dict[str, tuple[float, ...]]:
    return (
        {axis: (values[0], values[-1]) for axis, values in AXES.items()}
        if settings.migration_ends_only
        else AXES
    )


def point(
    engines: EngineSet, setting: Setting, workload: Recording, settings: Settings
) -> dict[str, Any]:
    """Stage times of one setting, the rate that the formula makes of them, the rate that was
    reached, and a question's first token."""
    system = setting.system()
    with VicortStream(engines, system, workload, overlap=False) as stream:
        fill(stream, settings.migration_fill_frames)
        first = len(stream.watch.chunks)
        alone = [
            stream.push_frames(settings.migration_frames) for _ in range(settings.migration_repeats)
        ]
        chunks, stage_ms = stream.watch.chunks[first:], stream.stage_ms_a_frame(first)
        ttfts = [answer.ttft_ms for answer in stream.ask_all(settings.migration_questions)]
    with VicortStream(engines, system, workload, overlap=True) as stream:
        fill(stream, settings.migration_fill_frames)
        reached = [
            stream.push_frames(settings.migration_frames) for _ in range(settings.migration_repeats)
        ]
    return {
        "stage_ms_a_frame": stage_ms,
        "slowest": slowest(stage_ms),
        "formula_frames_a_second": round(1e3 / max(stage_ms.values()), 1),
        "overlapped_frames_a_second": spread(reached, 1),
        "sequential_frames_a_second": spread(alone, 1),
        "kept_share": round(statistics.fmean(chunk.kept / chunk.tokens for chunk in chunks), 4),
        "ttft_ms": percentiles(ttfts),
    }


def slowest(stage_ms: dict[str, float]) -> str:
    return max(STAGES, key=stage_ms.__getitem__)


def migrations(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where, along an axis, the slowest stage becomes another: between which values, and from which
    to which."""
    pairs = itertools.pairwise(points)
    return [
        {"after": a["value"], "before": b["value"], "from": a["slowest"], "to": b["slowest"]}
        for a, b in pairs
        if a["slowest"] != b["slowest"]
    ]
