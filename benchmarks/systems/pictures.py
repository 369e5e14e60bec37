"""The pictures of the systems' comparison, of CAP and of the bottleneck's migration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.labels import label
from vicort.benchmarks.common.page import (
    STAGE_COLORS,
    covering,
    ink,
    machine_line,
    note,
    page,
    paper,
    quiet,
)
from vicort.benchmarks.systems.cap import signs
from vicort.benchmarks.systems.migration import TITLES
from vicort.benchmarks.systems.systems_report import WORDS, old_accuracy
from vicort.benchmarks.systems.twins import BASELINES, TWIN

GREYS = ("#8d949e", "#6b7d99")  # of the baselines behind the first, which has the colour of text
COLORS = (
    *("#3a7cc9", "#d9822b", "#3f9a5a", "#cc4f4b", "#9067c6"),
    *("#1fa3a3", "#cf5f9f", "#9a8a2a", "#6478e0", "#a06a3c"),
)
APART = 0.8  # points between two lines that would lie on each other
Rows = dict[str, Any]
Colors = dict[str, str]


def colors_of(names: Sequence[str]) -> Colors:
    """A colour for each system; a twin has its system's."""
    others = dict.fromkeys(
        system for name in names if (system := name.removeprefix(TWIN)) not in BASELINES
    )
    palette = dict(zip(BASELINES, (ink(), *GREYS), strict=True)) | {
        system: COLORS[number % len(COLORS)] for number, system in enumerate(others)
    }
    return {name: palette[name.removeprefix(TWIN)] for name in names}


# ---- the systems


def draw_systems(result: dict[str, Any], path: Path) -> Path | None:
    """Rate against accuracy, accuracy by age, first token, and each system against its twin; None,
    and nothing drawn, if no system was measured."""
    part = result["parts"].get("systems")
    rows = {name: row for name, row in part["rows"].items() if "right" in row} if part else {}
    if part is None or not rows:
        return None
    chunks = min(part["old_ages"]) / part["chunk_units"]
    conditions = (
        f"{machine_line(result['conditions'])}. {part['engine_set']}; {part['streams']} unseen "
        "streams of seven things through H.264 files and the whole pipeline; "
        f"{part['store_mb']:g} MB of pages a system ({part['store_units']} whole units of "
        f"{part['unit_seconds']:g} s), full-history excepted; timed after {part['fill_frames']} "
        f"frames decoded into memory. Old: {chunks:g} or more chunks of {part['chunk_units']} "
        "units. Hollow: the uniform that reads as many tokens as the system of its colour, from "
        "a store of the same size."
    )
    panels = [
        partial(_rate, part=part, rows=rows),
        partial(_ages, part=part, rows=rows),
        partial(_first_token, rows=rows),
        partial(_twins, part=part, names=list(rows)),
    ]
    title = "vicort: every system on the same engines, in one run"
    heights = (4.4, 3.6, 0.9 + 0.2 * len(rows), 0.9 + 0.32 * len(part["verdicts"]))
    return page(path, title, panels, heights, 1, conditions)


def _rate(axis: Any, part: dict[str, Any], rows: Rows) -> None:
    places, colors = {}, colors_of(list(rows))
    for name, row in rows.items():
        if "ingest" in row:
            share, low, high = (100 * value for value in old_accuracy(row, part))
            rate, twin = row["ingest"]["frames_a_second"]["median"], name.startswith(TWIN)
            places[name] = rate, share
            axis.errorbar(
                *places[name],
                yerr=[[max(share - low, 0)], [max(high - share, 0)]],
                fmt="s" if name in BASELINES else "o",
                color=colors[name],
                markerfacecolor=paper() if twin else colors[name],
                markersize=5 if twin else 7,
                alpha=0.6 if twin else 1.0,
                elinewidth=1,
                zorder=2 if twin else 3,
            )
    for name, place in places.items():
        if not name.startswith(TWIN):
            label(axis, name, place, color=colors[name], fontsize=8, zorder=4)
        if TWIN + name in places:
            line = zip(place, places[TWIN + name], strict=True)
            axis.plot(*line, color=colors[name], linewidth=0.8, linestyle=":")
    axis.margins(x=0.08)
    axis.set(
        ylim=(-9, 109),
        xlim=(0, None),
        xlabel="frames a second taken in, overlapped, wall clock (right is better)",
        ylabel="% right about old events (up is better)",
        title="rate against accuracy; bars: 95 % (Wilson)",
    )


def _ages(axis: Any, part: dict[str, Any], rows: Rows) -> None:
    from matplotlib.transforms import ScaledTranslation

    keys, colors = ["now", *(f"{age} units" for age in part["ages"])], colors_of(list(rows))
    names = [name for name in rows if not name.startswith(TWIN)]
    for number, name in enumerate(names):
        shares = [100 * rows[name]["accuracy"][key]["accuracy"] for key in keys]
        style = {"color": colors[name], "label": name, "linewidth": 1.4, "marker": "."}
        up = APART * (number - (len(names) - 1) / 2) / 72
        moved = axis.transData + ScaledTranslation(0, up, axis.figure.dpi_scale_trans)
        line = "--" if name in BASELINES else "-"
        axis.plot(range(len(keys)), shares, line, transform=moved, **style)
    guess = 100 / 6
    axis.axhline(guess, color=quiet(), linewidth=0.8, linestyle=":")
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axis.annotate("a guess", (1, guess), (4, 0), color=quiet(), va="center", fontsize=7.5, **beside)
    ages = ["now", *(f"{age}\n({age / part['chunk_units']:g})" for age in part["ages"])]
    axis.set_xticks(range(len(keys)), ages)
    axis.set(
        xlabel="how long ago the last thing disappeared: units (chunks); lines that would lie on "
        "each other are drawn a little apart",
        ylabel="% right",
        ylim=(-9, 109),
        title="accuracy by age",
    )
    axis.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.24))


def _first_token(axis: Any, rows: Rows) -> None:
    """From p50 to p99, idle above and while ingesting below; the tick between is p95."""
    colors = colors_of(list(rows))
    timed = [(name, row) for name, row in reversed(rows.items()) if "ttft_ms" in row]
    for number, (name, row) in enumerate(timed):
        for load, y in (("idle", number + 0.18), ("while ingesting", number - 0.18)):
            t, color, idle = row["ttft_ms"][load], colors[name], load == "idle"
            alpha, face = (1.0, color) if idle else (0.6, paper())
            axis.plot((t["p50"], t["p99"]), (y, y), color=color, linewidth=1.8, alpha=alpha)
            axis.plot(t["p50"], y, "o", color=color, markersize=4, markerfacecolor=face)
            axis.plot(t["p95"], y, "|", color=color, markersize=6)
    labels = ["its uniform" if name.startswith(TWIN) else name for name, _ in timed]
    axis.set_yticks(range(len(timed)), labels, fontsize=7.5)
    axis.set(
        xscale="log",
        ylim=(-0.7, len(timed) - 0.3),
        xlabel="ms from ask to first token: p50 (dot), p95, p99 (end); filled: idle, hollow: while "
        "ingesting",
        title="first token",
    )
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(axis="x")


def _twins(axis: Any, part: dict[str, Any], names: Sequence[str]) -> None:
    """Points of accuracy over the twin, with the bootstrap interval; filled where the difference is
    significant."""
    colors = colors_of(names)
    compared = {
        name: result["twin"]["old"]
        for name, result in part["verdicts"].items()
        if "twin" in result and "old" in result["twin"]
    }
    ordered = sorted(compared, key=lambda name: compared[name]["difference"])
    for number, name in enumerate(ordered):
        c, color = compared[name], colors[name]
        low, middle, high = (100 * c[key] for key in ("low", "difference", "high"))
        face = color if c["better"] else paper()
        axis.plot((low, high), (number, number), color=color, linewidth=2)
        axis.plot(middle, number, "o", markersize=7, color=color, markerfacecolor=face)
        end, away, side = (high, 8, "left") if middle > 0 else (low, -8, "right")
        text = f"{middle:+.0f}, {WORDS[c['better']]}"
        style = {"ha": side, "va": "center", "fontsize": 7.5, "textcoords": "offset points"}
        axis.annotate(text, (end, number), (away, 0), **style)
    axis.axvline(0, color=ink(), linewidth=0.8)
    axis.set_yticks(range(len(ordered)), ordered)
    axis.margins(x=0.2, y=0.12)
    axis.set(
        xlabel="points of accuracy about old events over its uniform; bars: 95 % (bootstrap over "
        "streams)",
        title="same bytes: does choosing beat even spacing?",
    )


# ---- CAP

CAP_COLUMNS = (
    ("context_s", "C: seconds back that are remembered", 1.0),
    ("accuracy", "A: % right, mean over all ages", 100.0),
    ("frames_a_second", "P: frames a second, overlapped", 1.0),
    ("ttft_ms", "P: first token idle, p50 ms (left is better)", 1.0),
)


def draw_cap(result: dict[str, Any], path: Path) -> Path | None:
    """A row a system, a column an axis; None, and nothing drawn, without the part."""
    cap = result["parts"].get("cap")
    if cap is None or not cap["systems"]:
        return None
    names = [name for name in reversed(cap["systems"]) if not name.startswith(TWIN)]
    part = result["parts"]["systems"]
    conditions = (
        f"{machine_line(result['conditions'])}. {part['engine_set']}, {part['streams']} unseen "
        f"streams, {part['store_mb']:g} MB of pages a system, full-history excepted. C: the oldest "
        f"age at which {cap['level']:.0%} of the questions are answered right, and at all younger "
        f"ages (the oldest asked: {cap['oldest_s']:g} s). Hollow: the uniform that reads as many "
        "tokens, from a store of the same size; the signs at the right are against it (of "
        "baselines: against full-history). The principle is arXiv 2405.11299's, its measures are "
        "ours."
    )
    panels = [partial(_cap_column, cap=cap, names=names, column=column) for column in CAP_COLUMNS]
    title, height = "vicort: context, accuracy, performance", 1.2 + 0.36 * len(names)
    return page(path, title, panels, height, len(panels), conditions)


def _cap_column(
    axis: Any, cap: dict[str, Any], names: list[str], column: tuple[str, str, float]
) -> None:
    key, title, scale = column
    systems, colors = cap["systems"], colors_of(list(cap["systems"]))
    for number, name in enumerate(names):
        value, color = scale * systems[name][key], colors[name]
        if twin := systems.get(TWIN + name):
            other, hollow = scale * twin[key], {"markerfacecolor": paper(), "markersize": 5}
            axis.plot((value, other), (number, number), color=color, linewidth=1, alpha=0.6)
            axis.plot(other, number, "o", color=color, clip_on=False, **hollow)
        axis.plot(value, number, "o", color=color, markersize=7, clip_on=False)
        note(axis, f"{value:.0f}", (value, number), 10, ha="center", bbox=covering())
        if column == CAP_COLUMNS[-1]:
            against = systems[name]["against"]
            text = signs(against.get("twin") or against.get("reference"))
            place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7.5}
            axis.annotate(text, (1.06, number), family="monospace", **place)
    axis.set_yticks(range(len(names)), names if key == "context_s" else [""] * len(names))
    values = [scale * systems[each][key] for each in systems if each.removeprefix(TWIN) in names]
    axis.set(title=title, ylim=(-0.6, len(names) - 0.1), xlim=(-0.14 * max(values), None))
    axis.set_xlim(right=1.16 * max(values))
    axis.grid(axis="x")
    if key == "context_s":
        axis.set_xscale("symlog", linthresh=8)
        axis.set_xlim(-4, 4 * cap["oldest_s"])
        axis.set_xticks(ticks := [0, 10, 100, 1000], map(str, ticks))
        axis.xaxis.minorticks_off()


# ---- the bottleneck's migration


def draw_migration(result: dict[str, Any], path: Path) -> Path | None:
    """A panel an axis, a line a stage; None, and nothing drawn, without the part."""
    part = result["parts"].get("migration")
    if part is None:
        return None
    base = ", ".join(
        f"{TITLES[axis].split(',')[0]} {value:g}" for axis, value in part["base"].items()
    )
    conditions = (
        f"{machine_line(result['conditions'])}. {part['engine_set']}, "
        f"{part['workload']['source']}; one value at a time differs from the base ({base}; "
        "vertical line). Stages are timed alone, on one thread, after "
        f"{part['fill_frames']} frames. Shaded: the slowest stage. Dashed: what the overlapped "
        "pipeline took for a frame, wall clock; the published formula says: what the slowest "
        "stage takes. Above: its frames a second, and the first token's ms."
    )
    panels = [
        partial(_migration, name=name, points=points, base=part["base"][name], legend=not number)
        for number, (name, points) in enumerate(part["axes"].items())
    ]
    return page(path, "vicort: where the bottleneck is", panels, 3.0, conditions=conditions)


def _migration(
    axis: Any, name: str, points: list[dict[str, Any]], base: float, legend: bool
) -> None:
    numbers, values = range(len(points)), [point["value"] for point in points]
    for stage, color in STAGE_COLORS.items():
        ms = [point["stage_ms_a_frame"][stage] for point in points]
        axis.plot(numbers, ms, marker="o", markersize=4, color=color, label=stage, linewidth=1.6)
    rates = [point["overlapped_frames_a_second"]["median"] for point in points]
    wall = [1e3 / rate for rate in rates]
    style = {"color": ink(), "linestyle": "--", "marker": "s", "markersize": 4}
    axis.plot(numbers, wall, label="overlapped pipeline", **style)
    top = axis.get_ylim()[1]
    for number, point, rate in zip(numbers, points, rates, strict=True):
        color = STAGE_COLORS[point["slowest"]]
        axis.axvspan(number - 0.5, number + 0.5, color=color, alpha=0.13, linewidth=0)
        text = f"{rate:.0f} /s\n{point['ttft_ms']['p50']:.0f} ms"
        note(axis, text, (number, top * 1.04), ha="center", va="bottom")
    if base in values:
        axis.vlines(values.index(base), 0, top, color=quiet(), linewidth=0.8, zorder=0)
    axis.set_xticks(numbers, [f"{value:g}" for value in values])
    axis.set(
        ylim=(0, top * 1.3),
        xlim=(-0.5, len(points) - 0.5),
        ylabel="ms a frame",
        xlabel=TITLES[name],
        title=TITLES[name].split(",")[0],
    )
    if legend:
        axis.figure.legend(
            *axis.get_legend_handles_labels(), loc="outside upper right", ncols=5, fontsize=7.5
        )
