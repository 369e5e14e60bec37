"""The parts that measure the pipeline, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# times as fast; times as fast; at most so much slower
GOALS = {"overlap": 1.15, "transformers": 1.5, "drift": 0.05}


def text(result: dict[str, Any]) -> str:
    """The conditions, and a block a part."""
    lines = list(conditions(result))
    parts = result["parts"]
    for name, block in (
        ("machine", _machine),
        ("overlap", _overlap),
        ("long-stream", _long),
        ("first-token", _first_token),
    ):
        if name in parts:
            lines += ["", *block(parts[name])]
    for name in ("transformers-tiny", "transformers-medium"):
        if name in parts:
            lines += ["", *_transformers(parts[name]), *_limit(parts[name], parts.get("machine"))]
    return "\n".join(lines)


def limit(part: dict[str, Any], machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each sequential vicort runner: share of time a stage, GFLOP/s of vision and prefill, and
    of all as a share of the matrix rate.

    least_ms: lower bound for a chunk, its arithmetic at the matrix rate.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in part["ms_a_chunk"]["vicort"].items():
        _, precision, kind, threads = name.split()
        if kind != "sequential":
            continue
        ms = {stage: values["median"] for stage, values in measured["stage_ms"].items()}
        gflop = part["gflop_a_chunk"]
        ceiling = best_rate(machine, precision, threads)
        rows[name] = {
            "share_of_time": {stage: time / sum(ms.values()) for stage, time in ms.items()},
            "gflop_s": {stage: gflop[stage] / ms[stage] * 1e3 for stage in ("vision", "prefill")},
            "ceiling_gflop_s": ceiling,
            "least_ms": gflop["total"] / ceiling * 1e3,
            "share_of_ceiling": gflop["total"]
            / (ms["vision"] + ms["tokens"] + ms["prefill"])
            * 1e3
            / ceiling,
        }
    return rows


def best_rate(machine: dict[str, Any], precision: str, threads: str) -> float:
    """The best median matrix rate of this precision and number of threads, of any library."""
    return max(
        machine[library][f"{precision} {threads}"]["median"] for library in ("torch", "openvino")
    )


def conditions(result: dict[str, Any]) -> Iterator[str]:
    c = result["conditions"]
    yield f"vicort-bench{' --quick' * result['quick']}, {c['date']}"
    yield (
        f"{c['cpu']} (family/model {c['cpu_family_model']}), {c['cores']} cores, {c['memory_gb']} "
        f"GB; {' '.join(c['matrix_flags'])}"
    )
    yield f"Python {c['python']}; " + ", ".join(
        f"{name} {version}" for name, version in c["libraries"].items()
    )
    yield (
        "Medians; [quartiles]. Loading engines, warm-up chunks and drawing frames are not counted."
    )


def _machine(part: dict[str, Any]) -> Iterator[str]:
    yield f"MACHINE  matrix product {part['size']}x{part['size']}, GFLOP/s"
    for key in part["torch"]:
        yield (
            f"  {key:10} torch {_cell(part['torch'][key], 0)}   openvino "
            f"{_cell(part['openvino'][key], 0)}"
        )
    for key, rate in part["torch_model_shapes"].items():
        yield f"  {key:44} {_cell(rate, 0)}"
    yield f"  memory copy, read + write, GB/s              {_cell(part['copy_gb_s'], 1)}"


def _overlap(part: dict[str, Any]) -> Iterator[str]:
    w, s = part["workload"], part["system"]
    yield f"OVERLAP  {part['engine_set']}, {w['source']}, chunks of {w['chunk_frames']}"
    yield f"  {s['name']}: drop {s['drop']}, ingest {s['ingest']}, retrieval {s['retrieval']}"
    for title, key in (
        ("frames in memory", "from_memory"),
        ("encoded H.264 file, decoding included", "from_encoded_file"),
    ):
        block = part[key]
        yield f"  {title}: ms a chunk"
        for mode, ms in block["ms_a_chunk"].items():
            yield f"    {mode:14} {_cell(ms, 2)}   {block['frames_a_second'][mode]:7.0f} frames/s"
        goal = _verdict(block["gain"] >= GOALS["overlap"])
        yield (
            f"    {block['best_overlapped']} against {block['best_sequential']}: "
            f"{block['gain']:.2f}x {goal}"
        )
    for mode, stages in part["stage_ms"].items():
        yield f"  stages, {mode}: " + ", ".join(
            f"{stage} {ms['median']:.2f}" for stage, ms in stages.items()
        )


def _transformers(part: dict[str, Any]) -> Iterator[str]:
    model, same = part["model"], part["same_job"]
    yield (
        f"AGAINST TRANSFORMERS  {model['name']}, {model['parameters'] / 1e6:.1f} M parameters, "
        f"{model['frame']}, {part['system']['name']}"
    )
    difference = same["largest_logit_difference"]
    logits = "of another number" if difference is None else f"{difference:.1e} apart at most"
    yield (
        f"  same job (fp32): kept tokens equal {same['kept_tokens_equal']}, answers equal "
        f"{same['answers_equal']}, logits {logits} at a deviation of {same['logit_deviation']:.2g}"
    )
    yield f"  {'ms a chunk':38} {'with preprocessing':26} {'without':26} first token of a question"
    for side, names in part["ms_a_chunk"].items():
        for name, row in names.items():
            bare = _cell(row["without_preprocessing"], 2) if "without_preprocessing" in row else "-"
            yield (
                f"  {side + ' ' + name:38} {_cell(row['with_preprocessing'], 2):26} {bare:26} "
                f"{_cell(row['question_ms'], 1)} ms"
            )
    for kind, speedup in part["speedup"].items():
        names = part["fastest"][kind]
        goal = _verdict(speedup >= GOALS["transformers"])
        yield (
            f"  {kind.replace('_', ' ')}: {speedup:.2f}x {goal}  (vicort {names['vicort']}, "
            f"transformers {names['transformers']})"
        )
    history = part["full_history"]
    points = ", ".join(history["points"].values())
    yield (
        f"  full history, nothing dropped, {history['chunks']} chunks, without preprocessing; ms "
        f"at {points}"
    )
    for name in (name for name in history if name.startswith(("vicort", "transformers"))):
        yield f"    {name:36} " + "  ".join(_cell(ms, 1) for ms in history[name].values())
    yield "  screened, ms without preprocessing: " + ", ".join(
        f"{name} {ms:.1f}" for name, ms in part["transformers_screened_ms"].items()
    )
    yield "                                      " + ", ".join(
        f"{name} {ms:.1f}" for name, ms in part["vicort_screened_ms"].items()
    )


def _limit(part: dict[str, Any], machine: dict[str, Any] | None) -> Iterator[str]:
    if machine is None:
        return
    gflop = part["gflop_a_chunk"]
    yield (
        f"  arithmetic of a chunk: vision {gflop['vision']:.3g}, prefill {gflop['prefill']:.3g} "
        "GFLOP"
    )
    for name, row in limit(part, machine).items():
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in row["share_of_time"].items())
        rates = ", ".join(f"{stage} {rate:.0f}" for stage, rate in row["gflop_s"].items())
        yield (
            f"    {name}: {row['share_of_ceiling']:.0%} of {row['ceiling_gflop_s']:.0f} GFLOP/s "
            f"({rates}); time: {shares}"
        )
        yield f"      the arithmetic alone, at that rate: {row['least_ms']:.3g} ms"


def _long(part: dict[str, Any]) -> Iterator[str]:
    yield f"LONG STREAM  {part['engine_set']}, {part['mode']}; budgets {part['system']['memory']}"
    for point in part["points"]:
        pages = ", ".join(f"{tier} {count}" for tier, count in point["pages"].items())
        ms = _cell(point["ms_between_chunks"], 2)
        yield (
            f"  chunks {point['chunks']:10} {ms} ms between chunks; RSS {point['rss_mb']:.0f} MB; "
            f"pages {pages}"
        )
    drift = ", ".join(
        f"{chunks}: {value:+.1%} {_verdict(value <= GOALS['drift'])}"
        for chunks, value in part["drift"].items()
    )
    yield f"  against the first: {drift}; peak RSS {part['peak_rss_mb']:.0f} MB"


def _unseen(row: dict[str, Any]) -> str:
    """Earlier results do not have it."""
    unseen = row.get("unseen_frames")
    return f"; frames not seen, p50 {unseen['p50']:.0f}" if unseen else ""


def _first_token(part: dict[str, Any]) -> Iterator[str]:
    yield (
        f"FIRST TOKEN  {part['engine_set']}, {part['mode']}, {part['system']['name']}; ms from the "
        "ask, all waiting included"
    )
    for load, row in part["loads"].items():
        t = row["ttft_ms"]
        yield (
            f"  {load:45} p50 {t['p50']:.1f}  p95 {t['p95']:.1f}  p99 {t['p99']:.1f}  (n "
            f"{t['n']}); frames/s "
            f"{row['frames_a_second_without_questions']:.0f} without questions, "
            f"{row['frames_a_second_meanwhile']:.0f} with{_unseen(row)}"
        )


def _cell(s: dict[str, float], digits: int) -> str:
    return f"{s['median']:.{digits}f} [{s['p25']:.{digits}f}, {s['p75']:.{digits}f}]"


def _verdict(met: bool) -> str:
    return "(goal met)" if met else "(goal missed)"
