"""The page that every benchmark's picture is drawn on: panels, a title, conditions below. It is as
wide as a README, and drawn twice, for light and for dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.labels import place_labels
from vicort.export.library_caches import temporary_caches
from vicort.runtime.written_files import new_file

WIDTH = 8.3  # inches; a README shows 830 pixels
DPI = 200
STAGE_COLORS = {
    "preprocess": "#8496b0",
    "vision": "#3a7cc9",
    "tokens": "#d9991f",
    "prefill": "#4a9f66",
}
OURS, THEIRS, PALE, MIDDLE = "#3a7cc9", "#cc6244", "#9fb3cc", "#6f9fd8"
LEVEL_COLORS = {"p50": OURS, "p95": MIDDLE, "p99": PALE, "max": PALE}
# characters in an inch: of a panel's title and of the names of its axes, of the conditions
TITLE_CHARACTERS, NAME_CHARACTERS, CONDITION_CHARACTERS = 10.5, 15.5, 18.3
THEMES = {
    "": {"paper": "#ffffff", "ink": "#1f2328", "quiet": "#59636e", "grid": "#e6e9ed"},
    "-dark": {"paper": "#0d1117", "ink": "#e6edf3", "quiet": "#9198a1", "grid": "#262c35"},
}
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
Panel = Callable[[Any], None]  # draws into a matplotlib Axes


def page(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    row_height: float | Sequence[float],
    columns: int = 2,
    conditions: str = "",
) -> Path | None:
    """Draws the panels row by row, a last one that is alone as wide as its row.

    row_height: inches of every row, or of each. conditions: text below the panels. Returns `path`,
    which is for light pages; one for dark pages lies beside it, named as `dark` says. None without
    files if there are no panels.
    """
    if not panels:
        return None
    for suffix in THEMES:
        with themed(suffix):
            figure = composed(title, panels, row_height, min(columns, len(panels)), conditions)
            with new_file(path.with_stem(path.stem + suffix)) as file:
                figure.savefig(file, dpi=DPI, format=path.suffix[1:])
    return path


def dark(path: Path) -> Path:
    """The picture for dark pages that belongs to one for light pages."""
    return path.with_stem(f"{path.stem}-dark")


@contextmanager
def themed(suffix: str) -> Iterator[None]:
    """Within this context, matplotlib draws for light or dark pages and closes its figures at the
    end. suffix: a key of THEMES."""
    with temporary_caches():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    theme = THEMES[suffix]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    colors = dict.fromkeys(inked, theme["ink"]) | dict.fromkeys(papered, theme["paper"])
    with pyplot.rc_context(STYLE | colors | {"grid.color": theme["grid"]}):
        try:
            yield
        finally:
            pyplot.close("all")


def composed(
    title: str,
    panels: Sequence[Panel],
    row_height: float | Sequence[float],
    columns: int,
    conditions: str,
) -> Any:
    """A matplotlib Figure; arguments as of `page`."""
    from matplotlib import pyplot

    rows = -(-len(panels) // columns)
    heights = [row_height] * rows if isinstance(row_height, int | float) else list(row_height)
    head = textwrap.fill(title, round(TITLE_CHARACTERS * WIDTH * 0.8))
    below = textwrap.fill(conditions, round(CONDITION_CHARACTERS * WIDTH))
    more = 0.2 * (head.count("\n") + 1) + 0.14 * below.count("\n") + 0.2 * bool(below)
    figure = pyplot.figure(figsize=(WIDTH, sum(heights) + more), layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        alone = column == 0 and number == len(panels) - 1
        axis = figure.add_subplot(grid[row, :] if alone else grid[row, column])
        panel(axis)
        _wrap(axis, WIDTH if alone else WIDTH / columns, heights[row])
    figure.suptitle(head, fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    quiet = THEMES["-dark" if _is_dark() else ""]["quiet"]
    figure.supxlabel(below, fontsize=7, color=quiet, x=0.01, ha="left")
    figure.draw_without_rendering()
    place_labels(figure)
    return figure


def _is_dark() -> bool:
    return paper() == THEMES["-dark"]["paper"]


def paper() -> str:
    """The colour behind a panel."""
    return _color("axes.facecolor")


def ink() -> str:
    """The colour of text and of lines that stand out."""
    return _color("text.color")


def quiet() -> str:
    """The colour of text and of lines that stay back."""
    return THEMES["-dark" if _is_dark() else ""]["quiet"]


def _color(parameter: str) -> str:
    import matplotlib

    return str(matplotlib.rcParams[parameter])


def _wrap(axis: Any, width: float, height: float) -> None:
    """Break the title and the names of a panel's axes to its width and height in inches."""
    axis.set_title(textwrap.fill(axis.get_title("left"), round(TITLE_CHARACTERS * width * 0.8)))
    axis.set_xlabel(textwrap.fill(axis.get_xlabel(), round(NAME_CHARACTERS * width * 0.8)))
    axis.set_ylabel(textwrap.fill(axis.get_ylabel(), round(NAME_CHARACTERS * height * 0.7)))


def machine_line(conditions: dict[str, Any]) -> str:
    flags = ", ".join(conditions["matrix_flags"])
    date, version = conditions["date"][:10], conditions["libraries"]["vicort"]
    return f"{conditions['cores']} cores of {conditions['cpu']} ({flags}), {date}, vicort {version}"


def covering() -> dict[str, Any]:
    """The box behind a note through which grid lines do not pass."""
    return {"facecolor": paper(), "edgecolor": "none", "pad": 0.6}


def note(
    axis: Any,
    text: str,
    place: tuple[Any, Any],
    up: float = 0,
    right: float = 0,
    **options: Any,
) -> None:
    """Text at a place in the axes' data, moved up and to the right by so many points."""
    options = {"fontsize": 7.5, "va": "center"} | options
    axis.annotate(text, place, xytext=(right, up), textcoords="offset points", **options)


def bars(axis: Any, labels: list[str], spreads: list[dict[str, float]], colors: list[str]) -> None:
    """Horizontal bars of medians, quartiles as error bars."""
    medians = [s["median"] for s in spreads]
    errors = [[s["median"] - s["p25"] for s in spreads], [s["p75"] - s["median"] for s in spreads]]
    axis.barh(labels, medians, xerr=errors, color=colors, height=0.6, capsize=3, ecolor=ink())
    for label, s in zip(labels, spreads, strict=True):
        text = f"{s['median']:.{1 if s['median'] < 100 else 0}f}"
        note(axis, text, (s["p75"], label), right=6)
    axis.margins(x=0.2)
