"""Bottleneck migration as a table."""

from __future__ import annotations

from typing import Any

from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.systems.migration import TITLES
from vicort.runtime.stream_statistics import STAGES


def table(part: dict[str, Any]) -> Table:
    base = ", ".join(f"{axis} {value:g}" for axis, value in part["base"].items())
    rows = [
        (f"{axis} {point['value']:g}", *_cells(point))
        for axis, points in part["axes"].items()
        for point in points
    ]
    return Table(
        "BOTTLENECK MIGRATION  ms a frame inside each stage, alone on one thread, as one value "
        "at a time leaves the base",
        (
            f"{part['engine_set']}, {part['workload']['source']}; base: {base}; after "
            f"{part['fill_frames']} frames.",
            (
                "Formula: 1 / slowest stage, as published. Overlapped: the rate that the pipeline "
                "reached, by the wall clock."
            ),
        ),
        (
            "value",
            *STAGES,
            "slowest",
            "formula, frames/s",
            "overlapped",
            "sequential",
            "kept",
            "first token idle p50, ms",
        ),
        tuple(rows),
        tuple(statements(part)),
    )


def statements(part: dict[str, Any]) -> list[str]:
    """Where the slowest stage changes, in words."""
    lines = []
    for axis, migrations in part["migrations"].items():
        moves = [
            f"between {m['after']:g} and {m['before']:g} from {m['from']} to {m['to']}"
            for m in migrations
        ]
        stays = part["axes"][axis][0]["slowest"]
        lines.append(
            f"{TITLES[axis]}: "
            f"{'; '.join(moves) if moves else f'{stays} is the slowest throughout'}."
        )
    return lines


def _cells(point: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(f"{point['stage_ms_a_frame'][stage]:.3f}" for stage in STAGES),
        point["slowest"],
        f"{point['formula_frames_a_second']:.0f}",
        *(
            f"{point[f'{mode}_frames_a_second']['median']:.0f}"
            for mode in ("overlapped", "sequential")
        ),
        f"{point['kept_share']:.0%}",
        f"{point['ttft_ms']['p50']:.1f}",
    )
