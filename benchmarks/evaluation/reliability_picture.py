"""The reliability diagrams of a calibration, before and after the temperature."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.page import OURS, PALE, THEIRS, Panel, ink, note, page
from vicort.benchmarks.evaluation.calibration_error import BINS
from vicort.benchmarks.evaluation.calibration_result import REPORTED


def draw(report: dict[str, Any], path: Path) -> Path | None:
    """Two panels for each system of the report of `vicort-eval calibration`; None, and nothing
    drawn, without systems."""
    panels: list[Panel] = []
    for name, result in report["calibration"].items():
        for key, temperature in (("before", 1.0), ("after", result["temperature"])):
            figures = result[REPORTED][key]
            panels.append(partial(_diagram, figures=figures, name=name, temperature=temperature))
    first = next(iter(report["calibration"].values()), None)
    about = first and (f"{first[REPORTED]['before']['questions']:,} questions")
    title = f"how often answers of a probability are right: {about}"
    return page(path, title, panels, 3.4)


def _diagram(axis: Any, figures: dict[str, Any], name: str, temperature: float) -> None:
    """A bar is the share of right answers in a bin, a mark its mean probability."""
    bins = figures["bins"]
    middles = [(each["low"] + each["high"]) / 2 for each in bins]
    few = [each["questions"] < figures["questions"] / 100 for each in bins]
    colors = [PALE if each else OURS for each in few]
    right = [each["accuracy"] for each in bins]
    axis.bar(
        middles,
        right,
        width=0.9 / BINS,
        color=colors,
        label="right; pale: under 1 % of all",
    )
    given = [each["confidence"] for each in bins]
    axis.plot(given, given, "o", color=THEIRS, markersize=3.5, label="mean probability")
    axis.plot([0, 1], [0, 1], color=ink(), linestyle=":", linewidth=1)
    for middle, height, each in zip(middles, right, bins, strict=True):
        above = max(height, each["confidence"])
        note(axis, str(each["questions"]), (middle, above), 9, -4, ha="center", fontsize=7)
    low, high = figures["ece_interval"]
    axis.set(
        xlim=(0, 1),
        ylim=(0, 1.25),
        xlabel="probability of the answer",
        ylabel="share of right answers",
        title=f"{name}, temperature {temperature:.3g}: error {figures['ece']:.3f} "
        f"({low:.3f} to {high:.3f})",
    )
    axis.legend(loc="upper left")
