"""Context, accuracy and performance of every system side by side: a row a system, a column an
axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vicort.benchmarks.systems.canvas import colors_of, machine_line, page
from vicort.benchmarks.systems.cap import signs
from vicort.benchmarks.systems.twins import TWIN

COLUMNS = (
    ("context_s", "C: seconds back that are remembered", 1.0),
    ("accuracy", "A: % right, mean over all ages", 100.0),
    ("frames_a_second", "P: frames a second, overlapped", 1.0),
    ("ttft_ms", "P: first token idle, p50 ms (left is better)", 1.0),
)


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """None, and nothing drawn, if the part is not there."""
    cap = result["parts"].get("cap")
    if cap is None or not cap["systems"]:
        return None
    names = [name for name in reversed(cap["systems"]) if not name.startswith(TWIN)]
    part = result["parts"]["systems"]
    conditions = [
        f"{machine_line(result['conditions'])}. {part['engine_set']}, {part['streams']} unseen streams, {part['store_mb']:g} MB of pages a "
        f"system, full-history excepted. C: the oldest age at which {cap['level']:.0%} of the questions are answered right, and at all "
        f"younger ages (the oldest asked: {cap['oldest_s']:g} s). Hollow: the uniform that reads as many tokens, from the same store; "
        "the signs at the right are against it (of baselines: against full-history). The principle is arXiv 2405.11299's, its "
        "measures are ours."
    ]

    def panels(figure: Any, axes: Any) -> None:
        colors = colors_of(list(cap["systems"]))
        for axis, (key, title, scale) in zip(axes[0], COLUMNS, strict=True):
            _column(axis, cap["systems"], names, colors, key, scale)
            axis.set_title(title, loc="left", fontsize=10)
        axes[0][0].set_xscale("symlog", linthresh=8)
        axes[0][0].set_xlim(0, 2.5 * cap["oldest_s"])
        axes[0][0].set_xticks(ticks := [0, 10, 100, 1000], map(str, ticks))
        axes[0][0].set_yticks(range(len(names)), names)
        against = [cap["systems"][name]["against"] for name in names]
        for place, compared in enumerate(against):
            text = signs(compared.get("twin") or compared.get("reference"))
            axes[0][-1].annotate(
                text,
                (1.03, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=10,
                family="monospace",
            )

    return page(
        path,
        (15.5, 2.2 + 0.55 * len(names)),
        (1, len(COLUMNS)),
        "vicort: context, accuracy, performance",
        conditions,
        panels,
    )


def _column(
    axis: Any,
    systems: dict[str, Any],
    names: list[str],
    colors: dict[str, str],
    key: str,
    scale: float,
) -> None:
    for place, name in enumerate(names):
        value = scale * systems[name][key]
        twin = systems.get(TWIN + name)
        if twin:
            axis.plot(
                (value, scale * twin[key]),
                (place, place),
                color=colors[name],
                linewidth=1,
                alpha=0.6,
            )
            axis.plot(
                scale * twin[key],
                place,
                "o",
                color=colors[name],
                markerfacecolor="white",
                markersize=7,
                clip_on=False,
            )
        axis.plot(value, place, "o", color=colors[name], markersize=9, clip_on=False)
        axis.annotate(
            f"{value:.0f}",
            (value, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axis.set_yticks(range(len(names)), [""] * len(names))
    axis.set_ylim(-0.6, len(names) - 0.3)
    axis.set_xlim(left=0)
    axis.margins(x=0.12)
    axis.grid(axis="x", color="#eeeeee")
