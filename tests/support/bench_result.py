"""A result of vicort-bench made by hand: numbers that nobody measured, for tables and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from vicort.benchmarks.evaluation.ages import wilson
from vicort.benchmarks.systems import cap, migration, systems
from vicort.benchmarks.systems.twins import TWIN

AGES, OLD, STREAMS = [0, 8, 64, 512, 1000], [512, 1000], 12
CONDITIONS = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Abacus",
    "cpu_family_model": "1/2",
    "cores": 2,
    "matrix_flags": ["avx2"],
    "memory_gb": 1.0,
    "python": "3.11",
    "libraries": {"vicort": "0.1.0"},
}


def result() -> dict[str, Any]:
    """Three baselines; `good`, which beats its twin, `bad`, which does not, and `broken`, which
    failed."""
    old = {
        "full-history": 1.0,
        "simplestream": 0.0,
        "uniform": 0.5,
        "good": 0.95,
        TWIN + "good": 0.4,
        "bad": 0.1,
        TWIN + "bad": 0.6,
    }
    rows: dict[str, Any] = {
        name: row(number, share) for number, (name, share) in enumerate(old.items())
    }
    rows["broken"] = {"error": "ConfigError: no such thing"}
    part = {
        "engine_set": "toy-fp32",
        "speaking_engine_set": "toy-live-fp32",
        "streams": STREAMS,
        "ages": AGES,
        "old_ages": OLD,
        "chunk_units": 8,
        "unit_seconds": 1.0,
        "unit_tokens": 16,
        "store_mb": 20.0,
        "store_units": 600,
        "fill_frames": 2048,
        "unbounded_fill_frames": 256,
        "rows": rows,
        "verdicts": systems.verdicts(rows, AGES, OLD),
    }
    parts: dict[str, Any] = {"systems": part, "migration": study()}
    parts["cap"] = cap.place(parts)
    return {"schema": 1, "quick": False, "conditions": CONDITIONS, "settings": {}, "parts": parts}


def row(seed: int, old_share: float, rate: float = 900.0, ttft: float = 20.0) -> dict[str, Any]:
    """Everything right but about old events, of which `old_share` is."""
    random = np.random.default_rng(seed)
    right = {
        str(age): {
            str(stream): "".join(
                "01"[random.random() < (old_share if age in OLD else 1)]
                for _ in range(1 if age < 0 else 7)
            )
            for stream in range(STREAMS)
        }
        for age in [-1, *AGES]
    }
    return {
        "system": {},
        "accuracy": {
            "now" if age == "-1" else f"{age} units": cell("".join(marks.values()))
            for age, marks in right.items()
        },
        "right": right,
        "tokens_read": 750.0,
        "mb_read": 1.5,
        "counted_at": "engine",
        "ingest": {"frames_a_second": spread(rate), "stage_ms_a_frame": {}},
        "sequential": {"frames_a_second": spread(rate / 2), "threads": 2},
        "tokens_read_when_timed": 760,
        "ttft_ms": {"idle": percentiles(ttft), "while ingesting": percentiles(5 * ttft)},
        "replay": {"frames": 300, "dropped": 3, "lag_ms": percentiles(40.0)},
        "kept_share": 0.5,
        "pages": {"device": 200, "host": 2000},
        "stored_mb": 18.0,
        "moved_mb": 12.5,
        "reruns": 30,
        "asked": 100,
        "rss_mb": 600.0,
    }


def cell(marks: str) -> dict[str, Any]:
    low, high = wilson(marks.count("1"), len(marks))
    return {
        "accuracy": marks.count("1") / len(marks),
        "asked": len(marks),
        "low": low,
        "high": high,
    }


def study() -> dict[str, Any]:
    """Prefill grows along each axis, and becomes the slowest at its end."""
    axes: dict[str, Any] = {
        axis: [_point(value, number) for number, value in enumerate(values)]
        for axis, values in migration.AXES.items()
    }
    return {
        "engine_set": "toy-fp32",
        "workload": {"source": "a recording"},
        "base": migration.BASE,
        "fill_frames": 2080,
        "axes": axes,
        "migrations": {axis: migration.migrations(points) for axis, points in axes.items()},
    }


def _point(value: float, number: int) -> dict[str, Any]:
    stages = {"preprocess": 0.4, "vision": 0.8, "tokens": 0.1, "prefill": 0.15 + 0.25 * number}
    return {
        "value": value,
        "stage_ms_a_frame": stages,
        "slowest": migration.slowest(stages),
        "formula_frames_a_second": 1e3 / max(stages.values()),
        "overlapped_frames_a_second": spread(900.0),
        "sequential_frames_a_second": spread(500.0),
        "kept_share": 0.3,
        "ttft_ms": percentiles(15.0),
    }


def spread(value: float) -> dict[str, float]:
    return {
        "median": value,
        "p25": value * 0.9,
        "p75": value * 1.1,
        "min": value * 0.8,
        "max": value * 1.2,
        "n": 5,
    }


def percentiles(value: float) -> dict[str, float]:
    return {
        "p50": value,
        "p95": value * 1.5,
        "p99": value * 2,
        "min": value / 2,
        "max": value * 3,
        "n": 60,
    }
