"""The camera's curves, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vicort.benchmarks.common.picture import OURS, PALE, THEIRS

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
}


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """Lag and memory over the hour, and lag over the number of streams; None, and nothing drawn,
    without parts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts, panels = result["parts"], []
    if "hour" in parts:
        panels += [
            lambda axis: _lag(axis, parts["hour"], parts.get("real-time")),
            lambda axis: _memory(axis, parts["hour"]),
        ]
    if "streams" in parts:
        panels.append(lambda axis: _streams(axis, parts["streams"]))
    if not panels:
        return None
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(6.2 * len(panels), 4.2), squeeze=False, layout="constrained"
        )
        for axis, panel in zip(axes.flat, panels, strict=True):
            panel(axis)
        c = result["conditions"]
        figure.suptitle(
            f"a simulated camera on {c['cores']} cores of {c['cpu']}, {result['engine_set']}, "
            f"{c['date'][:10]}",
            fontsize=12,
        )
        figure.savefig(path, dpi=110, facecolor="white")
        pyplot.close(figure)
    return path


def _lag(axis: Any, part: dict[str, Any], real_time: dict[str, Any] | None) -> None:
    minutes = [row["from_s"] / 60 for row in part["rows"]]
    for level, color in (("max", PALE), ("p95", "#7fa3cf"), ("p50", OURS)):
        axis.plot(
            minutes,
            [row["lag_ms"][level] for row in part["rows"]],
            color=color,
            label=f"{level} of a row",
            linewidth=2,
        )
    if real_time:
        middle = real_time["lag_ms"]["p50"]
        axis.axhline(
            middle, color="#333333", linestyle=":", label=f"at true 1x, p50: {middle:.0f} ms"
        )
    axis.set_ylim(bottom=0)
    axis.set_xlabel("minutes of stream time")
    axis.set_ylabel("ms from a chunk's last frame to memory")
    axis.set_title(
        f"lag, clock at {part['speed']:g}x: {part['answered']} of {part['asked']} answered, "
        f"{part['dropped']} dropped",
        loc="left",
    )
    axis.legend(frameon=False, fontsize=9)


def _memory(axis: Any, part: dict[str, Any]) -> None:
    minutes = [row["from_s"] / 60 for row in part["rows"]]
    axis.plot(
        minutes,
        [row["rss_mb"] for row in part["rows"]],
        color=OURS,
        linewidth=2,
        label="resident memory, MB",
    )
    axis.set_ylim(bottom=0)
    axis.set_xlabel("minutes of stream time")
    axis.set_ylabel("MB")
    pages = axis.twinx()
    for tier, style in (("device", "-"), ("host", "--")):
        pages.plot(
            minutes,
            [row["pages"][tier] for row in part["rows"]],
            color=THEIRS,
            linestyle=style,
            label=f"pages, {tier} (right)",
        )
    pages.set_ylim(bottom=0)
    lines = [*axis.get_lines(), *pages.get_lines()]
    axis.legend(
        lines, [line.get_label() for line in lines], frameon=False, fontsize=9, loc="lower right"
    )
    axis.set_title("memory", loc="left")


def _streams(axis: Any, part: dict[str, Any]) -> None:
    labels = [str(point["streams"]) for point in part["points"]]
    colors = [OURS if point["held"] else THEIRS for point in part["points"]]
    seconds = [point["lag_ms_of_the_worst_stream"]["p95"] / 1e3 for point in part["points"]]
    axis.bar(labels, seconds, color=colors, width=0.6)
    for label, height, point in zip(labels, seconds, part["points"], strict=True):
        axis.text(
            label,
            height,
            f"{height:.2f} s\n{point['dropped']} dropped",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axis.margins(y=0.2)
    axis.set_xlabel("streams at 1x in one process (red: not held)")
    axis.set_ylabel("lag p95 of the worst stream, s")
    axis.set_title(f"held at 1x: {part['held']} streams", loc="left")
