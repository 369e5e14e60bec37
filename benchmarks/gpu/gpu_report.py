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
            for mode in ("overlapped", "sequential"):
                share = (
                    shown(step.get("share_of_matrix_ceiling"), 1, 100)
                    if step["frames_a_second"][mode] == best(step)
                    else NONE
                )
                rows.append(
                    rate_row(
                        f"{mode}, frames in memory",
                        step,
                        step["ms_a_chunk"][mode],
                        step["frames_a_second"][mode],
                        share,
                    )
                )
        elif name.startswith("decode"):
            rows.append(
                rate_row(step["source"], step, step["ms_a_chunk"], step["frames_a_second"], NONE)
            )
        elif name.startswith("transformers"):
            rows.append(
                rate_row(
                    f"transformers {step['variant']}",
                    step,
                    step["ms_a_chunk"],
                    step["frames_a_second"],
                    NONE,
                )
            )
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
            (
                f"published, not comparable: {PUBLISHED['frames_a_second']} frames/s on "
                f"{PUBLISHED['gpu']}: {PUBLISHED['what']}"
            ),
        ),
    )


def best(step: Mapping[str, Any]) -> float:
    return max(step["frames_a_second"].values())


def rate_row(
    what: str, step: Mapping[str, Any], ms: Mapping[str, float], rate: float, share: str
) -> tuple[str, ...]:
    chunks = step.get("chunks_of_each") or step["chunks"]
    side = step["side"]
    return (
        what,
        f"{side}x{side}",
        shown(ms["median"], 2),
        f"{shown(ms['p25'], 2)}-{shown(ms['p75'], 2)}",
        str(chunks),
        shown(rate, 1),
        share,
    )


def stage_table(size: str, done: Outcomes) -> Table | None:
    rows = []
    for name, step in done.items():
        if name.startswith("stages"):
            for stage, ms in step["stage_ms"].items():
                rate = step["rates"].get(stage, {})
                share = shown(rate.get("share_of_matrix_ceiling"), 1, 100)
                rows.append(
                    (
                        f"{stage}, {step['side']}x{step['side']}",
                        shown(ms["median"], 3),
                        shown(rate.get("tflop_s"), 1),
                        share,
                    )
                )
    if not rows:
        return None
    conditions = (f"{gpu_of(done)}; the device's clock, one stage after another",)
    return Table(
        f"{size.upper()}: each stage alone",
        conditions,
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
    pipeline = step["pipeline"]
    notes = [
        f"{stage} at work {share:.0%} of the time"
        for stage, share in pipeline["busy_share"].items()
    ]
    rows = tuple(
        (f"{cost['run']}: {cost['kind']}"[:80], str(cost["layers"]), shown(cost["ms"], 3))
        for cost in step["top"]
    )
    if not rows:
        rows = (
            (f"engines of {step['backend']} do not tell the times of their layers", NONE, NONE),
        )
    notes.append(
        f"no stage at work {pipeline['idle_share']:.0%} of the time: the device waits for the host"
    )
    conditions = (f"{gpu_of(done)}; kinds of layers, by TensorRT's profiler, which slows them",)
    return Table(
        f"{size.upper()}: where the time goes",
        conditions,
        ("layers", "count", "ms"),
        rows,
        tuple(notes),
    )


def gpu_of(done: Outcomes) -> str:
    return next(str(step["gpu"]) for step in done.values() if "gpu" in step)


def shown(value: float | None, digits: int, times: float = 1) -> str:
    return NONE if value is None else f"{value * times:,.{digits}f}"
