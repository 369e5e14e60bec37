"""What the pictures of the benchmarks share: a page with its conditions, and a colour for each
system."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.systems.twins import BASELINES, TWIN

GREYS = ("#222222", "#9a9a9a", "#5f6b7a")  # of the baselines
COLORS = (
    "#2f6db5",
    "#d9822b",
    "#3f9a5a",
    "#b8423f",
    "#7d57b0",
    "#1fa3a3",
    "#c34f95",
    "#8a7a1f",
    "#4b5fd0",
    "#80522d",
)
LINE = 235  # characters of conditions in a line
RC = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
}


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """A colour a system; a twin has its system's."""
    others = dict.fromkeys(
        system for name in names if (system := name.removeprefix(TWIN)) not in BASELINES
    )
    palette = dict(zip(BASELINES, GREYS, strict=True)) | {
        system: COLORS[place % len(COLORS)] for place, system in enumerate(others)
    }
    return {name: palette[name.removeprefix(TWIN)] for name in names}


def machine_line(conditions: dict[str, Any]) -> str:
    flags = ", ".join(conditions["matrix_flags"])
    date, version = conditions["date"][:10], conditions["libraries"]["vicort"]
    return f"{conditions['cores']} cores of {conditions['cpu']} ({flags}), {date}, vicort {version}"


def page(
    path: Path,
    size: tuple[float, float],
    grid: tuple[int, int],
    title: str,
    conditions: Sequence[str],
    draw: Callable[[Any, Any], None],
) -> Path:
    """A picture of grid (rows, columns) panels; `draw` gets the figure and its axes, the conditions
    stand below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(RC):
        figure, axes = pyplot.subplots(*grid, figsize=size, squeeze=False, layout="constrained")
        draw(figure, axes)
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        below = "\n".join(
            line for text in conditions for line in textwrap.wrap(text, round(LINE * size[0] / 15))
        )
        figure.supxlabel(below, fontsize=8.5, color="#444444", x=0.01, ha="left")
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)
    return path
