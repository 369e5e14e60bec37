"""Draws a training run: loss, and share of right answers by kind of question.

    python -m vicort.export.tiny.curve_picture RUN/curve.json export/tiny/training_curve.png

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

SIZE = (10.0, 6.6)  # inches
COLORS = 10  # of lines, before they come again
BETWEEN_NAMES = 1 / 35  # least distance, as a share of all steps


def draw_curve(curve: Sequence[Mapping[str, Any]], path: Path) -> None:
    """curve: the reports of `train`, in their order; path: of a picture, its suffix names the
    format."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    steps = [report["step"] for report in curve]
    loss.plot(steps, [report["loss"] for report in curve])
    loss.set(yscale="log", ylabel="loss")
    kinds = dict.fromkeys(kind for report in curve for kind in report["accuracy"])
    for number, kind in enumerate(kinds):
        shares = [100 * report["accuracy"].get(kind, float("nan")) for report in curve]
        accuracy.plot(steps, shares, "-" if number < COLORS else ":", label=kind)
    accuracy.set(ylim=(0, 102), xlabel="step", ylabel="% right")
    accuracy.legend(ncols=6, fontsize="small")
    for axis in (loss, accuracy):
        axis.grid(alpha=0.3)
        for before, after in pairwise(curve):
            if before["stage"] != after["stage"]:
                axis.axvline(before["step"], color="gray", linestyle="--", linewidth=0.8)
    _name_stages(loss, curve)
    figure.savefig(path, dpi=120)


def _name_stages(axis: Any, curve: Sequence[Mapping[str, Any]]) -> None:
    place = -float("inf")
    for stage in dict.fromkeys(report["stage"] for report in curve):
        first = next(report["step"] for report in curve if report["stage"] == stage)
        place = max(first, place + BETWEEN_NAMES * curve[-1]["step"])
        axis.annotate(
            stage, (place, 1.02), xycoords=("data", "axes fraction"), rotation=40, fontsize="small"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curve", type=Path, help="curve.json of a run of vicort.export.tiny.train")
    parser.add_argument("picture", type=Path, help="file to write, such as training_curve.png")
    arguments = parser.parse_args()
    draw_curve(json.loads(arguments.curve.read_text()), arguments.picture)


if __name__ == "__main__":
    main()
