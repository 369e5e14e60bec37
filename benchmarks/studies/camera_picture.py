"""The camera's curves, as a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.page import LEVEL_COLORS, OURS, THEIRS, Panel, ink, note, page


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """Lag and memory over the hour, and lag over the number of streams; None, and nothing drawn,
    without parts."""
    parts, c = result["parts"], result["conditions"]
    panels: list[Panel] = []
    if "hour" in parts:
        panels.append(partial(_lag, part=parts["hour"], real_time=parts.get("real-time")))
        panels.append(partial(_memory, part=parts["hour"]))
    if "streams" in parts:
        panels.append(partial(_streams, part=parts["streams"]))
    title = (
        f"a simulated camera on {c['cores']} cores of {c['cpu']}, {result['engine_set']}, "
        f"{c['date'][:10]}"
    )
    return page(path, title, panels, 2.9)


def _lag(axis: Any, part: dict[str, Any], real_time: dict[str, Any] | None) -> None:
    minutes = [row["from_s"] / 60 for row in part["rows"]]
    for level in ("max", "p95", "p50"):
        lags = [row["lag_ms"][level] for row in part["rows"]]
        axis.plot(minutes, lags, color=LEVEL_COLORS[level], label=f"{level} of a row", linewidth=2)
    if real_time:
        middle = real_time["lag_ms"]["p50"]
        label = f"at true 1x, p50: {middle:.0f} ms"
        axis.axhline(middle, color=ink(), linestyle=":", label=label)
    axis.set(
        ylim=(0, None),
        xlabel="minutes of stream time",
        ylabel="ms from a chunk's last frame to memory",
        title=f"lag, clock at {part['speed']:g}x: {part['answered']} of {part['asked']} answered, "
        f"{part['dropped']} dropped",
    )
    axis.legend()


def _memory(axis: Any, part: dict[str, Any]) -> None:
    minutes = [row["from_s"] / 60 for row in part["rows"]]
    resident = [row["rss_mb"] for row in part["rows"]]
    axis.plot(minutes, resident, color=OURS, linewidth=2, label="resident memory")
    pages = axis.twinx()
    for tier, style in (("device", "-"), ("host", "--")):
        counts = [row["pages"][tier] for row in part["rows"]]
        pages.plot(minutes, counts, color=THEIRS, linestyle=style, label=f"pages, {tier}")
    pages.set_ylim(bottom=0)
    pages.set_ylabel("pages in use")
    pages.spines["right"].set_visible(True)
    axis.set(ylim=(0, None), xlabel="minutes of stream time", ylabel="MB", title="memory")
    lines = [*axis.get_lines(), *pages.get_lines()]
    axis.legend(handles=lines, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _streams(axis: Any, part: dict[str, Any]) -> None:
    for point in part["points"]:
        label, seconds = str(point["streams"]), point["lag_ms_of_the_worst_stream"]["p95"] / 1e3
        axis.bar(label, seconds, color=OURS if point["held"] else THEIRS, width=0.6)
        text = f"{seconds:.2f} s\n{point['dropped']} dropped"
        note(axis, text, (label, seconds), ha="center", va="bottom")
    axis.margins(y=0.2)
    axis.set(
        xlabel="streams at 1x in one process (red: not held)",
        ylabel="lag p95 of the worst stream, s",
        title=f"held at 1x: {part['held']} streams",
    )
