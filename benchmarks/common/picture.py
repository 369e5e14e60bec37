"""What was measured, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.cpu.report import GOALS, limit

STAGE_COLORS = {
    "preprocess": "#7a8ca5",
    "vision": "#2f6db5",
    "tokens": "#e0a126",
    "prefill": "#4a9a62",
}
OURS, THEIRS, PALE = "#2f6db5", "#c4573a", "#b9c7da"


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """One panel a part; returns None, and draws nothing, if no part has a panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(result["parts"])
    if not panels:
        return None
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with pyplot.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titleweight": "bold",
            "axes.titlesize": 11,
        }
    ):
        figure, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(7.6 * columns, 3.6 * rows + 0.7),
            squeeze=False,
            layout="constrained",
        )
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        c = result["conditions"]
        figure.suptitle(
            f"vicort on {c['cores']} cores of {c['cpu']} ({', '.join(c['matrix_flags'])}), "
            f"{c['date'][:10]}",
            fontsize=12,
        )
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)
    return path


def _panels(parts: dict[str, Any]) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    for name in ("transformers-tiny", "transformers-medium"):
        if name in parts:
            panels.append(partial(_transformers, part=parts[name], machine=parts.get("machine")))
    if "overlap" in parts:
        panels.append(lambda axis: _overlap(axis, parts["overlap"]))
        panels.append(lambda axis: _stages(axis, parts["overlap"]))
    if "long-stream" in parts:
        panels.append(lambda axis: _long(axis, parts["long-stream"]))
    if "first-token" in parts:
        panels.append(lambda axis: _first_token(axis, parts["first-token"]))
    compared = {
        part["model"]["name"]: part
        for name, part in parts.items()
        if name.startswith("transformers-")
    }
    if "machine" in parts and compared:
        panels.append(lambda axis: _limit(axis, compared, parts["machine"]))
    return panels


def _transformers(axis: Any, part: dict[str, Any], machine: dict[str, Any] | None) -> None:
    rows = [
        (side, name, row["with_preprocessing"])
        for side, names in part["ms_a_chunk"].items()
        for name, row in names.items()
    ]
    rows.sort(key=lambda row: -row[2]["median"])
    _bars(
        axis,
        [f"{side} {name}" for side, name, _ in rows],
        [ms for _, _, ms in rows],
        [OURS if s == "vicort" else THEIRS for s, _, _ in rows],
    )
    least = 0.0
    if machine:
        least = min(row["least_ms"] for row in limit(part, machine).values())
        axis.axvline(least, color="#333333", linestyle=":")
    dotted = f"; dotted: its arithmetic at the best matrix rate, {least:.3g} ms" if machine else ""
    axis.set_xlabel(f"ms a chunk of 16 frames, preprocessing included{dotted}")
    size = f"{part['model']['parameters'] / 1e6:.2g} M parameters"
    axis.set_title(
        f"{size}: {part['speedup']['with_preprocessing']:.2f}x transformers' best (goal "
        f"{GOALS['transformers']})",
        loc="left",
    )


def _overlap(axis: Any, part: dict[str, Any]) -> None:
    block = part["from_memory"]
    modes = list(reversed(block["ms_a_chunk"]))
    _bars(
        axis,
        modes,
        [block["ms_a_chunk"][mode] for mode in modes],
        [OURS if mode == block["best_overlapped"] else PALE for mode in modes],
    )
    axis.set_xlabel("wall ms a chunk, frames in memory, preprocessing included")
    axis.set_title(
        f"overlap, tiny: {block['gain']:.2f}x the best sequential split (goal {GOALS['overlap']})",
        loc="left",
    )


def _stages(axis: Any, part: dict[str, Any]) -> None:
    """Where the time goes: stages side by side, each mode a row."""
    modes = list(reversed(part["stage_ms"]))
    left = [0.0] * len(modes)
    for stage, color in STAGE_COLORS.items():
        widths = [part["stage_ms"][mode][stage]["median"] for mode in modes]
        axis.barh(modes, widths, left=left, color=color, label=stage, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    wall = part["from_memory"]["ms_a_chunk"]
    axis.plot(
        [wall[mode]["median"] for mode in modes],
        modes,
        "k|",
        markersize=22,
        markeredgewidth=2,
        label="wall",
    )
    axis.set_xlabel("ms a chunk inside each stage")
    axis.set_title("where the time goes, tiny", loc="left")
    axis.legend(ncols=5, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.2), fontsize=9)


def _long(axis: Any, part: dict[str, Any]) -> None:
    labels = [point["chunks"] for point in part["points"]]
    medians = [point["ms_between_chunks"]["median"] for point in part["points"]]
    low = [
        point["ms_between_chunks"]["median"] - point["ms_between_chunks"]["p25"]
        for point in part["points"]
    ]
    high = [
        point["ms_between_chunks"]["p75"] - point["ms_between_chunks"]["median"]
        for point in part["points"]
    ]
    axis.bar(labels, medians, yerr=[low, high], color=OURS, width=0.7, capsize=4, ecolor="#333333")
    for label, median, point in zip(labels, medians, part["points"], strict=True):
        axis.text(
            label,
            median / 2,
            f"{median:.2f} ms\nRSS {point['rss_mb']:.0f} MB",
            ha="center",
            va="center",
            color="white",
            fontsize=9,
        )
    axis.margins(x=0.25)
    axis.set_ylabel("ms between chunks")
    axis.set_xlabel("chunks of one stream")
    axis.set_title(f"long stream: peak RSS {part['peak_rss_mb']:.0f} MB", loc="left")


def _first_token(axis: Any, part: dict[str, Any]) -> None:
    loads = list(reversed(part["loads"]))
    for level, color, height in (("p99", PALE, 0.7), ("p95", "#7fa3cf", 0.55), ("p50", OURS, 0.4)):
        axis.barh(
            loads,
            [part["loads"][load]["ttft_ms"][level] for load in loads],
            color=color,
            height=height,
            label=level,
        )
    for load in loads:
        t = part["loads"][load]["ttft_ms"]
        axis.annotate(
            f" {t['p50']:.1f} / {t['p95']:.1f} / {t['p99']:.1f}",
            (t["p99"], load),
            va="center",
            fontsize=9,
        )
    axis.margins(x=0.25)
    axis.set_xlabel("ms from the ask to the first token: p50 / p95 / p99")
    axis.set_title("a question's first token, tiny", loc="left")
    axis.legend(frameon=False, fontsize=9)


def _limit(axis: Any, compared: dict[str, Any], machine: dict[str, Any]) -> None:
    rows = [
        (f"{model} {name}", row)
        for model, part in compared.items()
        for name, row in limit(part, machine).items()
    ]
    rows.reverse()
    axis.barh(
        [name for name, _ in rows],
        [row["share_of_ceiling"] * 100 for _, row in rows],
        color=OURS,
        height=0.6,
    )
    for name, row in rows:
        axis.annotate(
            f" {row['share_of_ceiling']:.0%} of {row['ceiling_gflop_s']:.0f} GFLOP/s",
            (row["share_of_ceiling"] * 100, name),
            va="center",
            fontsize=9,
        )
    axis.set_xlim(0, 130)
    axis.set_xlabel("% of the measured matrix rate, vision + tokens + prefill")
    axis.set_title("how near the limit", loc="left")


def _bars(axis: Any, labels: list[str], spreads: list[dict[str, float]], colors: list[str]) -> None:
    medians = [s["median"] for s in spreads]
    errors = [[s["median"] - s["p25"] for s in spreads], [s["p75"] - s["median"] for s in spreads]]
    axis.barh(labels, medians, xerr=errors, color=colors, height=0.6, capsize=3, ecolor="#333333")
    for label, s in zip(labels, spreads, strict=True):
        axis.annotate(
            f" {s['median']:.{1 if s['median'] < 100 else 0}f}",
            (s["p75"], label),
            va="center",
            fontsize=9,
        )
    axis.margins(x=0.15)
