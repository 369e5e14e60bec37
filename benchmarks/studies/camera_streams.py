"""How many cameras one process can follow at 1x: `vicort-run` on several encoded files, each played
by its timestamps."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.machine import now
from vicort.benchmarks.common.workload import CHUNK_FRAMES
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import make_stream
from vicort.runtime.errors import VicortError

SIZE, RATE = (320, 180), 25  # of the encoded file: pixels, frames a second
CHUNK_SECONDS = 8.0  # 16 frames at the model's 2 a second
# allowed growth of the lag, in seconds for each second of stream
MAX_GROWTH = 0.05


def write_clip(path: Path, seconds: float) -> None:
    """An H.264 file of the embedded model's world, with things in its first half."""
    drawn = make_stream(seed=7, objects=5, aspect=SIZE[0] / SIZE[1], lead=1.0)
    longer = make_stream(
        seed=7,
        objects=5,
        aspect=SIZE[0] / SIZE[1],
        lead=1.0,
        tail=max(0.0, seconds - drawn.duration),
    )
    write_video(path, longer, SIZE, RATE, options={"preset": "veryfast", "crf": "23"})


def measure(engine_dir: Path, clip: Path, seconds: float, counts: Sequence[int]) -> dict[str, Any]:
    """Rising numbers of streams until one is not held, then one halfway between; all points, and
    the most that was held."""
    points: dict[int, dict[str, Any]] = {}
    for count in counts:
        points[count] = _point(engine_dir, clip, seconds, count)
        if not points[count]["held"]:
            break
    held = max((count for count, point in points.items() if point["held"]), default=0)
    lost = min((count for count, point in points.items() if not point["held"]), default=0)
    if (between := (held + lost) // 2) not in (held, lost, 0) and lost:
        points[between] = _point(engine_dir, clip, seconds, between)
        held = max(
            count for count, point in (points | {0: {"held": True}}).items() if point["held"]
        )
    return {
        "source": (
            f"one H.264 file, {SIZE[0]}x{SIZE[1]}, {RATE} frames/s, {seconds:g} s, decoded once a "
            "stream; all start together"
        ),
        "command": "vicort-run FILE FILE … --realtime --on-lag drop-oldest, one question a stream",
        "held_means": (
            "nothing dropped, every answer given, every stream's lag p95 under one chunk "
            f"({CHUNK_SECONDS:g} s), "
            "and the median stream's lag grows from its first to its last whole chunk by less than "
            f"{MAX_GROWTH:.0%} of the time"
        ),
        "held": held,
        "points": [points[count] for count in sorted(points)],
    }


def _point(engine_dir: Path, clip: Path, seconds: float, count: int) -> dict[str, Any]:
    before = os.times()
    load, events = now()["load_average"], _watch(engine_dir, clip, seconds, count)
    after = os.times()
    summaries = [event for _, event in events if event["event"] == "summary"]
    answers = sum(event["event"] == "answer" for _, event in events)
    if len(summaries) != count:
        raise VicortError(
            f"{len(summaries)} of {count} streams came to their summary: try `vicort-run {clip} "
            "--realtime`"
        )
    lags = {
        level: max(s["realtime"]["lag_ms"][level] for s in summaries)
        for level in ("p50", "p95", "p99")
    }
    frames, dropped = (sum(s[key] for s in summaries) for key in ("frames", "dropped"))
    growth = statistics.median(
        _growth([row for row in events if row[1].get("source", "") == s.get("source", "")])
        for s in summaries
    )
    busy = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {
        "streams": count,
        "held": dropped == 0
        and answers == count
        and lags["p95"] < 1e3 * CHUNK_SECONDS
        and growth < MAX_GROWTH,
        "lag_ms_of_the_worst_stream": {level: round(value, 1) for level, value in lags.items()},
        "lag_growth": round(growth, 4),
        "frames": frames,
        "dropped": dropped,
        "late": sum(s["realtime"]["late"] for s in summaries),
        "answers": answers,
        "ttft_ms_median": round(statistics.median(s["ttft_ms"]["p50"] for s in summaries), 1)
        if answers == count
        else None,
        "camera_frames_a_second": round(
            frames / max(s["seconds"] for s in summaries) / 2 * RATE, 1
        ),
        "frames_a_second": round(frames / max(s["seconds"] for s in summaries), 1),
        "cpu_seconds": round(busy, 1),
        "peak_rss_mb": round(max(s["peak_rss_mb"] for s in summaries), 1),
        "load_average_before": load,
    }


def _watch(
    engine_dir: Path, clip: Path, seconds: float, count: int
) -> list[tuple[float, dict[str, Any]]]:
    """The events of one run of vicort-run, and when each was read (monotonic seconds)."""
    question = f"@{seconds / 2:g} what is there now?"
    command = [
        *(sys.executable, "-m", "vicort.runtime.cli.run", *[clip] * count),
        *("--engine-dir", engine_dir, "--ask", question),
        *("--realtime", "--on-lag", "drop-oldest", "--format", "jsonl", "--stats"),
    ]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True
    ) as running:
        events = [(time.monotonic(), json.loads(line)) for line in running.stdout or ()]
    if running.returncode:
        raise VicortError(
            f"vicort-run of {count} streams failed with exit code {running.returncode}: see its "
            "error above"
        )
    return events


def _growth(events: Sequence[tuple[float, dict[str, Any]]]) -> float:
    """Seconds that a stream's lag grew in a second, from its first whole chunk to its last."""
    chunks = [
        (when, event["end"])
        for when, event in events
        if event["event"] == "chunk" and event["frames"] == CHUNK_FRAMES
    ]
    if len(chunks) < 2 or chunks[-1][1] == chunks[0][1]:
        return math.inf
    (first, start), (last, end) = chunks[0], chunks[-1]
    return (last - first) / (end - start) - 1
