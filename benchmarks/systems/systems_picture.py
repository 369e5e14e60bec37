"""The systems' comparison as a picture: rate against accuracy, accuracy by age, first token, and
each system against its twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vicort.benchmarks.systems.canvas import colors_of, machine_line, page
from vicort.benchmarks.systems.systems_report import old_accuracy
from vicort.benchmarks.systems.twins import BASELINES, TWIN

HIGH = 70  # % right: labels of crowded points above go downwards


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """Four panels; None, and nothing drawn, if no system was measured."""
    part = result["parts"].get("systems")
    rows = {name: row for name, row in part["rows"].items() if "right" in row} if part else {}
    if part is None or not rows:
        return None
    chunks = min(part["old_ages"]) / part["chunk_units"]
    conditions = [
        f"{machine_line(result['conditions'])}. {part['engine_set']}; {part['streams']} unseen streams of seven things through H.264 "
        f"files and the whole pipeline; {part['store_mb']:g} MB of pages a system ({part['store_units']} whole units of "
        f"{part['unit_seconds']:g} s), full-history excepted; timed after {part['fill_frames']} frames decoded into memory. Old: "
        f"{chunks:g} or more chunks of {part['chunk_units']} units. Hollow: the uniform that reads as many tokens as the system of its "
        "colour, from the same store."
    ]

    def panels(figure: Any, axes: Any) -> None:
        colors = colors_of(list(rows))
        _rate(axes[0][0], part, rows, colors)
        _ages(axes[0][1], part, rows, colors)
        _first_token(axes[1][0], rows, colors)
        _twins(axes[1][1], part, colors)

    return page(
        path,
        (15.5, 11.5),
        (2, 2),
        "vicort: every system on the same engines, in one run",
        conditions,
        panels,
    )


def _rate(axis: Any, part: dict[str, Any], rows: dict[str, Any], colors: dict[str, str]) -> None:
    places = {}
    for name, row in rows.items():
        if "ingest" in row:
            share, low, high = (100 * value for value in old_accuracy(row, part))
            rate, twin = row["ingest"]["frames_a_second"]["median"], name.startswith(TWIN)
            places[name] = rate, share
            axis.errorbar(
                *(rate, share),
                yerr=[[max(share - low, 0)], [max(high - share, 0)]],
                fmt="s" if name in BASELINES else "o",
                color=colors[name],
                markerfacecolor="white" if twin else colors[name],
                markersize=6 if twin else 9,
                alpha=0.6 if twin else 1.0,
                elinewidth=1,
                zorder=2 if twin else 3,
            )
    for name, place in places.items():
        if not name.startswith(TWIN):
            step = 11 * _crowd(name, places)
            above = 5 + step if place[1] < HIGH else -14 - step
            axis.annotate(
                name,
                place,
                xytext=(8, above),
                textcoords="offset points",
                fontsize=9,
                color=colors[name],
                zorder=4,
            )
        if TWIN + name in places:
            axis.plot(
                *zip(place, places[TWIN + name], strict=True),
                color=colors[name],
                linewidth=0.8,
                linestyle=":",
            )
    axis.margins(x=0.16)
    axis.set_ylim(-4, 104)
    axis.set_xlim(left=0)
    axis.set_xlabel("frames a second taken in, overlapped, wall clock (right is better)")
    axis.set_ylabel("% right about old events (up is better)")
    axis.set_title("rate against accuracy; bars: 95 % (Wilson)", loc="left")


def _crowd(name: str, places: dict[str, tuple[float, float]]) -> int:
    """How many labels of systems lie left of this one's point, and so near that they would be
    written over."""
    width = 0.25 * max(rate for rate, _ in places.values())
    rate, share = places[name]
    others = [
        place for other, place in places.items() if other != name and not other.startswith(TWIN)
    ]
    return sum(0 <= rate - left < width and abs(share - height) < 4 for left, height in others)


def _ages(axis: Any, part: dict[str, Any], rows: dict[str, Any], colors: dict[str, str]) -> None:
    keys = ["now", *(f"{age} units" for age in part["ages"])]
    for name, row in rows.items():
        if not name.startswith(TWIN):
            shares = [100 * row["accuracy"][key]["accuracy"] for key in keys]
            axis.plot(
                keys,
                shares,
                "--" if name in BASELINES else "-",
                marker=".",
                color=colors[name],
                label=name,
                linewidth=1.8,
            )
    axis.axhline(100 / 6, color="#bbbbbb", linewidth=0.8)
    axis.annotate(
        "a guess",
        (0, 100 / 6),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=8,
        color="#999999",
    )
    axis.set_xticks(
        range(len(keys)),
        ["now", *(f"{age}\n({age / part['chunk_units']:g})" for age in part["ages"])],
    )
    axis.set_xlabel("how long ago the last thing went: units (chunks)")
    axis.set_ylabel("% right")
    axis.set_ylim(-4, 104)
    axis.set_title("accuracy by age", loc="left")
    axis.legend(frameon=False, fontsize=9, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _first_token(axis: Any, rows: dict[str, Any], colors: dict[str, str]) -> None:
    """From p50 to p99, idle above and while ingesting below; the tick between is p95."""
    timed = [(name, row) for name, row in reversed(rows.items()) if "ttft_ms" in row]
    for place, (name, row) in enumerate(timed):
        for load, height in (("idle", 0.18), ("while ingesting", -0.18)):
            t, y = row["ttft_ms"][load], place + height
            axis.plot(
                (t["p50"], t["p99"]),
                (y, y),
                color=colors[name],
                linewidth=2.2,
                alpha=1 if load == "idle" else 0.55,
            )
            axis.plot(
                t["p50"],
                y,
                "o",
                color=colors[name],
                markersize=5,
                markerfacecolor=colors[name] if load == "idle" else "white",
            )
            axis.plot(t["p95"], y, "|", color=colors[name], markersize=8)
    axis.set_yticks(
        range(len(timed)),
        ["its uniform" if name.startswith(TWIN) else name for name, _ in timed],
        fontsize=9,
    )
    axis.set_xscale("log")
    axis.set_xlabel(
        "ms from ask to first token: p50 (dot), p95, p99 (end); filled: idle, hollow: while ingesting"
    )
    axis.set_title("first token", loc="left")
    axis.grid(axis="x", color="#eeeeee")


def _twins(axis: Any, part: dict[str, Any], colors: dict[str, str]) -> None:
    """Points of accuracy over the twin, with the bootstrap interval; filled where the test tells
    them apart."""
    compared = {
        name: result["twin"]["old"]
        for name, result in part["verdicts"].items()
        if "twin" in result and "old" in result["twin"]
    }
    names = sorted(compared, key=lambda name: compared[name]["difference"])
    for place, name in enumerate(names):
        c = compared[name]
        low, middle, high = (100 * c[key] for key in ("low", "difference", "high"))
        axis.plot((low, high), (place, place), color=colors[name], linewidth=2)
        axis.plot(
            middle,
            place,
            "o",
            markersize=8,
            color=colors[name],
            markerfacecolor=colors[name] if c["better"] else "white",
        )
        told = {1: "better", 0: "not told apart", -1: "worse"}[c["better"]]
        axis.annotate(
            f"{middle:+.0f}, {told}",
            (middle, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axis.axvline(0, color="#333333", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.margins(y=0.12)
    axis.set_xlabel(
        "points of accuracy about old events over its uniform; bars: 95 % (bootstrap over streams)"
    )
    axis.set_title("same bytes: does choosing beat even spacing?", loc="left")
