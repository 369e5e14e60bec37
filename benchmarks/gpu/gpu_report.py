"""The results of gpu.check at real size, in short tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vicort.benchmarks.common.first_token import FULL_RATE
from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.gpu.pipeline_steps import GOALS, PUBLISHED

Outcomes = Mapping[str, Mapping[str, Any]]
NONE = "–"


def tables(outcomes: Outcomes) -> Iterator[Table]:
    """outcomes: of steps, by their names. A table whose steps did not pass is left out."""
    for size in ("3b", "7b"):
        done = {
            name.removeprefix(f"{size}-"): step
            for name, step in outcomes.items()
            if name.startswith(f"{size}-") and passed(step)
        }
        for make in (pipeline_table, stage_table, question_table, cost_table):
            if table := make(size, done):
                yield table


def passed(step: Mapping[str, Any]) -> bool:
    return step.get("outcome") == "passed"


def pipeline_table(size: str, done: Outcomes) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for name, step in done.items():
        if name.startswith("pipeline"):
            rates = step["frames_a_second"]
            for mode in ("overlapped", "sequential"):
                best = rates[mode] == max(rates.values())
                share = step.get("share_of_matrix_ceiling") if best else None
                ms = step["ms_a_chunk"][mode]
                rows.append(rate_row(f"{mode}, frames in memory", step, ms, rates[mode], share))
        elif name.startswith(("decode", "transformers")):
            what = step["source"] if "source" in step else f"transformers {step['variant']}"
            rows.append(rate_row(what, step, step["ms_a_chunk"], step["frames_a_second"]))
    if not rows:
        return None
    return Table(
        f"Qwen2.5-VL-{size.upper()}, random weights: the whole pipeline by the wall clock",
        (f"{gpu_of(done)}; 16-frame chunks, preprocessing included",),
        ("what", "frame", "ms a chunk", "p25-p75", "chunks", "frames/s", "% of ceiling"),
        tuple(rows),
        (
            "ceiling: what the rate of a large bf16 matrix product allows; goal "
            f"{GOALS['share_of_matrix_ceiling']:.0%} (3B, 308x308)",
            f"published, not comparable: {PUBLISHED['frames_a_second']} frames/s on "
            f"{PUBLISHED['gpu']}: {PUBLISHED['what']}",
        ),
    )


def rate_row(
    what: str,
    step: Mapping[str, Any],
    ms: Mapping[str, float],
    rate: float,
    share: float | None = None,
) -> tuple[str, ...]:
    """share: of the matrix ceiling, 1 = all of it; None = not measured."""
    return (
        what,
        f"{step['side']}x{step['side']}",
        shown(ms["median"], 2),
        f"{shown(ms['p25'], 2)}-{shown(ms['p75'], 2)}",
        str(step.get("chunks_of_each") or step["chunks"]),
        shown(rate, 1),
        shown(share, 1, 100),
    )


def stage_table(size: str, done: Outcomes) -> Table | None:
    rows = []
    for name, step in done.items():
        if name.startswith("stages"):
            for stage, ms in step["stage_ms"].items():
                rate = step["rates"].get(stage, {})
                what, median = f"{stage}, {step['side']}x{step['side']}", shown(ms["median"], 3)
                share = shown(rate.get("share_of_matrix_ceiling"), 1, 100)
                rows.append((what, median, shown(rate.get("tflop_s"), 1), share))
    if not rows:
        return None
    return Table(
        f"{size.upper()}: each stage alone",
        (f"{gpu_of(done)}; the device's clock, one stage after another",),
        ("stage", "ms a chunk", "TFLOP/s", "% of ceiling"),
        tuple(rows),
    )


def question_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("questions")
    if step is None:
        return None
    rows = []
    for load, found in step["loads"].items():
        ttft, between = found["ttft_ms"], step["between_tokens_ms"].get(load)
        token = shown(between["median"], 2) if isinstance(between, Mapping) else NONE
        rate = shown(found["frames_a_second_meanwhile"], 0)
        rows.append(
            (load, *(shown(ttft[level], 2) for level in ("p50", "p95", "p99")), token, rate)
        )
    notes = (f"goal: p99 of {step['goal_p99_ms']:g} ms {FULL_RATE} (3B)",)
    header = ("first token, ms", "p50", "p95", "p99", "next token", "frames/s meanwhile")
    return Table(f"{size.upper()}: questions", (gpu_of(done),), header, tuple(rows), notes)


def cost_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("profile")
    if step is None:
        return None
    rows = [
        (f"{cost['run']}: {cost['kind']}"[:80], str(cost["layers"]), shown(cost["ms"], 3))
        for cost in step["top"]
    ]
    unknown = (f"engines of {step['backend']} do not report the times of their layers", NONE, NONE)
    pipeline = step["pipeline"]
    notes = [
        f"{stage} ran {share:.0%} of the time" for stage, share in pipeline["busy_share"].items()
    ]
    notes.append(
        f"no stage ran {pipeline['idle_share']:.0%} of the time: the device waits for the host"
    )
    return Table(
        f"{size.upper()}: where the time goes",
        (f"{gpu_of(done)}; kinds of layers, by TensorRT's profiler, which slows them",),
        ("layers", "count", "ms"),
        tuple(rows or [unknown]),
        tuple(notes),
    )


def gpu_of(done: Outcomes) -> str:
    return next(str(step["gpu"]) for step in done.values() if "gpu" in step)


def shown(value: float | None, digits: int, times: float = 1) -> str:
    return NONE if value is None else f"{value * times:,.{digits}f}"
