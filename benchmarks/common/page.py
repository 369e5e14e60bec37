"""The page that every benchmark's picture is drawn on: panels, a title, conditions below."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vicort.export.library_caches import temporary_caches
from vicort.runtime.written_files import new_file

STAGE_COLORS = {
    "preprocess": "#7a8ca5",
    "vision": "#2f6db5",
    "tokens": "#e0a126",
    "prefill": "#4a9a62",
}
OURS, THEIRS, PALE, MIDDLE = "#2f6db5", "#c4573a", "#b9c7da", "#7fa3cf"
LEVEL_COLORS = {"p50": OURS, "p95": MIDDLE, "p99": PALE, "max": PALE}
CHARACTERS_AN_INCH = 15.6  # of the conditions
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
Panel = Callable[[Any], None]  # draws into a matplotlib Axes


def page(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    size: tuple[float, float],
    columns: int = 2,
    conditions: str = "",
) -> Path | None:
    """Draws the panels row by row; returns `path`, or None without a file if there are no panels.

    size: width and height of the page in inches. conditions: text below the panels.
    """
    if not panels:
        return None
    with temporary_caches():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained"
        )
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        below = textwrap.fill(conditions, round(CHARACTERS_AN_INCH * size[0]))
        figure.supxlabel(below, fontsize=8.5, color="#444444", x=0.01, ha="left")
        with new_file(path) as file:
            figure.savefig(file, dpi=130, facecolor="white", format=path.suffix[1:])
        pyplot.close(figure)
    return path


def machine_line(conditions: dict[str, Any]) -> str:
    flags = ", ".join(conditions["matrix_flags"])
    date, version = conditions["date"][:10], conditions["libraries"]["vicort"]
    return f"{conditions['cores']} cores of {conditions['cpu']} ({flags}), {date}, vicort {version}"


def note(axis: Any, text: str, place: tuple[Any, Any], up: float = 0, **options: Any) -> None:
    """Text at a place in the axes' data, `up` points above it."""
    options = {"fontsize": 9, "va": "center"} | options
    axis.annotate(text, place, xytext=(0, up), textcoords="offset points", **options)


def bars(axis: Any, labels: list[str], spreads: list[dict[str, float]], colors: list[str]) -> None:
    """Horizontal bars of medians, quartiles as error bars."""
    medians = [s["median"] for s in spreads]
    errors = [[s["median"] - s["p25"] for s in spreads], [s["p75"] - s["median"] for s in spreads]]
    axis.barh(labels, medians, xerr=errors, color=colors, height=0.6, capsize=3, ecolor="#333333")
    for label, s in zip(labels, spreads, strict=True):
        note(axis, f" {s['median']:.{1 if s['median'] < 100 else 0}f}", (s["p75"], label))
    axis.margins(x=0.15)
