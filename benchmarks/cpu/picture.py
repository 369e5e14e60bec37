"""The picture of the parts that measure the pipeline: a panel a part."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.page import (
    LEVEL_COLORS,
    OURS,
    PALE,
    STAGE_COLORS,
    THEIRS,
    Panel,
    bars,
    ink,
    machine_line,
    note,
    page,
)
from vicort.benchmarks.cpu.report import GOALS, limit


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """None, and nothing drawn, if no part has a panel."""
    panels = _panels(result["parts"])
    title = f"vicort on {machine_line(result['conditions'])}"
    return page(path, title, panels, 3.1)


def _panels(parts: dict[str, Any]) -> list[Panel]:
    machine = parts.get("machine")
    compared = [part for name, part in parts.items() if name.startswith("transformers-")]
    panels: list[Panel] = [partial(_transformers, part=part, machine=machine) for part in compared]
    for name, panel in (
        ("overlap", _overlap),
        ("overlap", _stages),
        ("long-stream", _long),
        ("first-token", _first_token),
    ):
        if name in parts:
            panels.append(partial(panel, part=parts[name]))
    if machine and compared:
        panels.append(partial(_limit, compared=compared, machine=machine))
    return panels


def _transformers(axis: Any, part: dict[str, Any], machine: dict[str, Any] | None) -> None:
    rows = [
        (side, name, row["with_preprocessing"])
        for side, names in part["ms_a_chunk"].items()
        for name, row in names.items()
    ]
    rows.sort(key=lambda row: -row[2]["median"])
    labels = [_two_lines(f"{side} {name}") for side, name, _ in rows]
    colors = [OURS if side == "vicort" else THEIRS for side, _, _ in rows]
    bars(axis, labels, [ms for _, _, ms in rows], colors)
    dotted = ""
    if machine:
        least = min(row["least_ms"] for row in limit(part, machine).values())
        axis.axvline(least, color=ink(), linestyle=":")
        dotted = (
            f"; dotted: its arithmetic at the best matrix rate, {least:.3g}\N{NO-BREAK SPACE}ms"
        )
    axis.set(
        xlabel=f"ms a chunk of 16 frames, preprocessing included{dotted}",
        title=f"{part['model']['parameters'] / 1e6:.2g} M parameters: "
        f"{part['speedup']['with_preprocessing']:.2f}x transformers' best "
        f"(goal {GOALS['transformers']})",
    )


def _two_lines(name: str) -> str:
    """Broken at the space that is nearest to the middle."""
    spaces = [place for place, letter in enumerate(name) if letter == " "]
    if not spaces:
        return name
    middle = min(spaces, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:middle]}\n{name[middle + 1 :]}"


def _overlap(axis: Any, part: dict[str, Any]) -> None:
    block = part["from_memory"]
    modes = list(reversed(block["ms_a_chunk"]))
    colors = [OURS if mode == block["best_overlapped"] else PALE for mode in modes]
    bars(axis, modes, [block["ms_a_chunk"][mode] for mode in modes], colors)
    axis.set(
        xlabel="wall ms a chunk, frames in memory, preprocessing included",
        title=f"overlap, tiny: {block['gain']:.2f}x the best sequential split "
        f"(goal {GOALS['overlap']})",
    )


def _stages(axis: Any, part: dict[str, Any]) -> None:
    """Stages side by side, each mode a row."""
    modes = list(reversed(part["stage_ms"]))
    left = [0.0] * len(modes)
    for stage, color in STAGE_COLORS.items():
        widths = [part["stage_ms"][mode][stage]["median"] for mode in modes]
        axis.barh(modes, widths, left=left, color=color, label=stage, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    wall = [part["from_memory"]["ms_a_chunk"][mode]["median"] for mode in modes]
    axis.plot(wall, modes, "|", color=ink(), markersize=16, markeredgewidth=2, label="wall")
    axis.set(xlabel="ms a chunk inside each stage", title="where the time goes, tiny")
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.24))


def _long(axis: Any, part: dict[str, Any]) -> None:
    labels = [f"{point['chunks']}\nRSS {point['rss_mb']:.0f} MB" for point in part["points"]]
    spreads = [point["ms_between_chunks"] for point in part["points"]]
    medians = [s["median"] for s in spreads]
    errors = [[s["median"] - s["p25"] for s in spreads], [s["p75"] - s["median"] for s in spreads]]
    axis.bar(labels, medians, yerr=errors, color=OURS, width=0.7, capsize=4, ecolor=ink())
    for label, median in zip(labels, medians, strict=True):
        note(axis, f"{median:.1f} ms", (label, median / 2), ha="center", color="white")
    axis.set(
        ylabel="ms between chunks",
        xlabel="chunks of one stream",
        title=f"long stream: peak RSS {part['peak_rss_mb']:.0f} MB",
    )


def _first_token(axis: Any, part: dict[str, Any]) -> None:
    loads = list(reversed(part["loads"]))
    names = [_two_lines(load) for load in loads]
    for level, height in (("p99", 0.7), ("p95", 0.55), ("p50", 0.4)):
        widths = [part["loads"][load]["ttft_ms"][level] for load in loads]
        axis.barh(names, widths, color=LEVEL_COLORS[level], height=height, label=level)
    for load, name in zip(loads, names, strict=True):
        t = part["loads"][load]["ttft_ms"]
        note(axis, f"{t['p50']:.1f} / {t['p95']:.1f} / {t['p99']:.1f}", (t["p99"], name), right=6)
    longest = max(load["ttft_ms"]["p99"] for load in part["loads"].values())
    axis.set(
        xlim=(0, 1.75 * longest),
        xlabel="ms from the ask to the first token: p50 / p95 / p99",
        title="a question's first token, tiny",
    )
    axis.legend(loc="upper right")


def _limit(axis: Any, compared: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    rows = [
        (
            _two_lines(f"{part['model']['name']} {name}"),
            100 * row["share_of_ceiling"],
            row["ceiling_gflop_s"],
        )
        for part in compared
        for name, row in limit(part, machine).items()
    ]
    rows.reverse()
    for name, percent, ceiling in rows:
        axis.barh(name, percent, color=OURS, height=0.6)
        note(axis, f"{percent:.0f}% of {ceiling:.0f} GFLOP/s", (percent, name), right=6)
    axis.set(
        xlim=(0, 130),
        xlabel="% of the measured matrix rate, vision + tokens + prefill",
        title="share of the machine's matrix rate",
    )
