"""Bottleneck migration as a picture: four panels, a line a stage, and what the pipeline made of
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vicort.benchmarks.common.picture import STAGE_COLORS
from vicort.benchmarks.systems.canvas import machine_line, page
from vicort.benchmarks.systems.migration import TITLES


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """None, and nothing drawn, if the study is not there."""
    part = result["parts"].get("migration")
    if part is None:
        return None
    base = ", ".join(
        f"{TITLES[axis].split(',')[0]} {value:g}" for axis, value in part["base"].items()
    )
    conditions = [
        f"{machine_line(result['conditions'])}. {part['engine_set']}, {part['workload']['source']}; one value at a time leaves the "
        f"base ({base}; vertical line). Stages are timed alone, on one thread, after {part['fill_frames']} frames. Shaded: the slowest "
        "stage. Black: what the overlapped pipeline took for a frame, wall clock; the published formula says: what the slowest stage takes."
    ]

    def panels(figure: Any, axes: Any) -> None:
        for axis, (name, points) in zip(axes.flat, part["axes"].items(), strict=True):
            _panel(axis, name, points, part["base"][name])
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=9.5
        )

    return page(path, (15.5, 10), (2, 2), "vicort: where the bottleneck goes", conditions, panels)


def _panel(axis: Any, name: str, points: list[dict[str, Any]], base: float) -> None:
    places = range(len(points))
    values = [point["value"] for point in points]
    for stage, color in STAGE_COLORS.items():
        axis.plot(
            places,
            [point["stage_ms_a_frame"][stage] for point in points],
            marker="o",
            color=color,
            label=stage,
            linewidth=2,
        )
    axis.plot(
        *(places, [1e3 / point["overlapped_frames_a_second"]["median"] for point in points]),
        "k--",
        marker="s",
        markersize=5,
        label="overlapped pipeline",
    )
    for place, point in enumerate(points):
        axis.axvspan(
            place - 0.5, place + 0.5, color=STAGE_COLORS[point["slowest"]], alpha=0.09, linewidth=0
        )
    top = axis.get_ylim()[1]
    for place, point in enumerate(points):
        rate = point["overlapped_frames_a_second"]["median"]
        note = (
            f"{point['slowest']}\n{rate:.0f} frames/s\nfirst token {point['ttft_ms']['p50']:.0f} ms"
        )
        axis.annotate(
            note, (place, top * 1.04), ha="center", va="bottom", fontsize=8, color="#333333"
        )
    if base in values:
        axis.axvline(values.index(base), color="#999999", linewidth=0.8, zorder=0)
    axis.set_ylim(0, top * 1.3)
    axis.set_xlim(-0.5, len(points) - 0.5)
    axis.set_xticks(places, [f"{value:g}" for value in values])
    axis.set_ylabel("ms a frame")
    axis.set_xlabel(TITLES[name])
    axis.set_title(TITLES[name].split(",")[0], loc="left")
