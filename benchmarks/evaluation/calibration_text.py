"""The calibration of a system as text: a table of the parts, one of the kinds of questions, and the
reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping

from vicort.benchmarks.evaluation.calibration_error import BINS, CalibrationFigures, Interval
from vicort.benchmarks.evaluation.calibration_result import (
    REPORTED,
    BeforeAndAfter,
    CalibrationResult,
)

MEASURES = (
    f"expected calibration error (ECE) over {BINS} bins of equal width, confidence = probability "
    "of the most probable choice (arXiv:1706.04599); Brier score over all choices; NLL in nats; "
    "95 % intervals by bootstrap over streams"
)


def printed(result: CalibrationResult, titles: Mapping[str, str]) -> str:
    """titles: of the parts, by name."""
    rows = {titles.get(name, name): part for name, part in result.parts.items()}
    rows[REPORTED] = result.reported
    head = f"temperature {result.temperature:.3f}, fitted on {result.fitted_on} questions"
    blocks = [
        [head, *(f"note: {remark}" for remark in result.remarks)],
        _errors(rows, "part"),
        _scores(rows, "part"),
        _errors(result.kinds, "kind of question"),
        _diagram(result.reported),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _errors(rows: Mapping[str, BeforeAndAfter], what: str) -> list[str]:
    """Calibration errors before and after."""
    heads = ["questions", "right", "ECE at 1", "95 %", "by chance", "ECE after", "95 %", "change"]
    table = [[what, *heads]]
    for name, row in rows.items():
        before, after = row.before, row.after
        table.append(
            [
                name,
                str(before.questions),
                f"{100 * before.accuracy:.1f} %",
                f"{before.ece:.4f}",
                _interval(before.ece_interval),
                f"{before.ece_by_chance:.4f}",
                f"{after.ece:.4f}",
                _interval(after.ece_interval),
                _interval(row.ece_change),
            ]
        )
    return _aligned(table)


def _scores(rows: Mapping[str, BeforeAndAfter], what: str) -> list[str]:
    """The other figures, before and after."""
    heads = ["Brier at 1", "after", "NLL at 1", "after", "change", "separation at 1", "after"]
    table = [[what, *heads, "outside"]]
    for name, row in rows.items():
        before, after = row.before, row.after
        table.append(
            [
                name,
                f"{before.brier:.4f}",
                f"{after.brier:.4f}",
                f"{before.nll:.4f}",
                f"{after.nll:.4f}",
                _interval(row.nll_change),
                _share(before.separation),
                _share(after.separation),
                "-" if row.outside is None else f"{row.outside:.2g}",
            ]
        )
    return _aligned(table)


def _diagram(row: BeforeAndAfter) -> list[str]:
    """The reliability diagram as a table: a bin a line."""
    table = [["probability", "questions at 1", "mean", "right", "questions after", "mean", "right"]]
    for number in range(BINS):
        cells = [*_bin(row.before, number), *_bin(row.after, number)]
        if any(cell != "-" for cell in cells):
            table.append([f"{number / BINS:.3f}-{(number + 1) / BINS:.3f}", *cells])
    return [f"reliability diagram, {REPORTED}", *_aligned(table)]


def _bin(found: CalibrationFigures, number: int) -> list[str]:
    for each in found.bins:
        if round(each.low * BINS) == number:
            return [str(each.questions), f"{each.confidence:.3f}", f"{each.accuracy:.3f}"]
    return ["-"] * 3


def _interval(bounds: Interval) -> str:
    return " to ".join(f"{bound:.4f}" for bound in bounds)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(table: list[list[str]]) -> list[str]:
    """The first column to the left, others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
