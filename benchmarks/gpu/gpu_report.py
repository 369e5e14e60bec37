"""The report of gpu.check for a person: what each step came to, and the results in short
tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.gpu.goals import GOALS, PUBLISHED

Outcomes = Mapping[str, Mapping[str, Any]]
NONE = "–"


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The whole report as text."""
    where, gpu = report["conditions"], report["conditions"]["nvidia_smi"]
    name = f"{gpu['name']}, driver {gpu['driver_version']}" if isinstance(gpu, Mapping) else gpu
    yield f"gpu-check: {name}; {where['cores']} cores of {where['cpu']}"
    yield f"Python {where['python']}, " + ", ".join(
        f"{library} {version}" for library, version in where["libraries"].items()
    )
    yield ""
    if begun := report.get("under_way"):
        yield f"{begun['step']} was begun at {begun['date']} and has not ended"
        yield ""
    for table in (steps_table(report["steps"]), *tables(report["steps"])):
        yield from (*table.text(), "")


def steps_table(outcomes: Outcomes) -> Table:
    rows = [
        (name, step["outcome"], shown(step.get("seconds"), 1), step["measured"]["date"])
        for name, step in outcomes.items()
    ]
    reasons = [f"{name}: {step['reason']}" for name, step in outcomes.items() if "reason" in step]
    return Table("Steps", (), ("step", "outcome", "seconds", "date"), tuple(rows), tuple(reasons))


def tables(outcomes: Outcomes) -> Iterator[Table]:
    """outcomes: of steps, by their names. A table whose steps did not pass is left out; of one that
    cannot be made only the reason is there: it must not take the report with it."""
    for size in ("", "3b", "7b"):
        done = {
            name.removeprefix(f"{size}-"): step
            for name, step in outcomes.items()
            if passed(step) and (name.startswith(f"{size}-") or not size)
        }
        for make in SIZE_TABLES if size else TABLES:
            try:
                table = make(size, done)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                name = make.__name__.replace("_", " ")
                table = Table(f"No {name}: {error!r}", (), ("",), ())
            if table:
                yield table


def passed(step: Mapping[str, Any]) -> bool:
    return step.get("outcome") == "passed"


def ceilings_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("ceilings")
    if step is None:
        return None
    rows = [("copy, GB/s read and written", shown(step["copy_gb_s"], 0))]
    if "matrix_tflop_s" in step:
        side = step["matrix_side"]
        rows.append((f"bf16 product of {side}x{side}, TFLOP/s", shown(step["matrix_tflop_s"], 0)))
    return Table("Ceilings", (str(step["gpu"]),), ("what", "rate"), tuple(rows))


def products_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("products")
    if step is None:
        return None
    rows = [
        (
            f"{stage}, {product['name']}",
            "x".join(map(str, product["shape"])),
            str(product["times"]),
            shown(product["ms"]["median"], 4),
            shown(product["tflop_s"], 0),
        )
        for stage, found in step["stages"].items()
        for product in found["products"]
    ]
    notes = [
        f"all products of {stage}, {found['side']}x{found['side']}: {found['sum_ms']:.2f} ms a "
        f"chunk, {found['tflop_s']:.0f} TFLOP/s"
        for stage, found in step["stages"].items()
    ]
    header = ("cuBLAS at the model's own shapes", "m x k x n", "a chunk", "ms", "TFLOP/s")
    return Table("Matrix products by shape", (str(step["gpu"]),), header, tuple(rows), tuple(notes))


def kernel_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("kernel-speed")
    if step is None:
        return None
    rows = []
    for model, calls in step["calls"].items():
        for call in calls:
            found, sdpa = call["computed"], call["torch_sdpa_ms"]
            rows.append(
                (
                    f"{model}, {call['rows']} rows over {call['context']} tokens",
                    shown(found["ms"]["median"], 4),
                    shown(found["tflop_s"], 0),
                    shown(found.get("share_of_matrix_product"), 1, 100),
                    shown(found["share_of_copy"], 1, 100),
                    shown(sdpa["median"], 4) if isinstance(sdpa, Mapping) else NONE,
                )
            )
    header = ("call", "ms", "TFLOP/s", "% of product", "% of copy", "PyTorch's SDPA, ms")
    notes = ("SDPA reads contiguous keys that are rotated already, which is less work",)
    return Table("Attention kernel", (str(step["gpu"]),), header, tuple(rows), notes)


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
        (
            f"{gpu_of(done)}; 16-frame chunks, preprocessing included",
            *(f"resized by {name}" for name in resizers(done)),
        ),
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
        (
            "preprocess: from the host's call to the last frame resized on the device; most of it "
            "is the host's time, in which the device does other work",
        ),
    )


def question_table(size: str, done: Outcomes) -> Table | None:
    step = done.get("questions")
    if step is None:
        return None
    rows = []
    for freshness, measured in step["freshness"].items():
        for load, found in measured["loads"].items():
            ttft, between = found["ttft_ms"], measured["between_tokens_ms"].get(load)
            token = shown(between["median"], 2) if isinstance(between, Mapping) else NONE
            rate = shown(found["frames_a_second_meanwhile"], 0)
            levels = (shown(ttft[level], 2) for level in ("p50", "p95", "p99"))
            rows.append((f"{freshness}, {load}", *levels, token, rate))
    notes = [
        f"goal: p99 of {goal['p99_ms']:g} ms, {goal['freshness']}, {goal['load']}: "
        + ("reached" if goal["reached"] else "missed")
        for goal in step["goals"]
    ]
    header = ("first token, ms", "p50", "p95", "p99", "next token", "frames/s meanwhile")
    conditions = (gpu_of(done), f"resized by {step['resized_by']}")
    return Table(f"{size.upper()}: questions", conditions, header, tuple(rows), tuple(notes))


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


def resizers(done: Outcomes) -> list[str]:
    return sorted({str(step["resized_by"]) for step in done.values() if "resized_by" in step})


def gpu_of(done: Outcomes) -> str:
    return next(str(step["gpu"]) for step in done.values() if "gpu" in step)


def shown(value: float | None, digits: int, times: float = 1) -> str:
    return NONE if value is None else f"{value * times:,.{digits}f}"


TABLES = (ceilings_table, products_table, kernel_table)
SIZE_TABLES = (pipeline_table, stage_table, question_table, cost_table)
