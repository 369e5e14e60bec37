"""Writes the table of GPU steps in docs/proof.md from benchmarks/results/gpu-check.json, the report
of `make gpu-check`; steps that are not in it have not run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vicort.benchmarks.gpu.check import STEPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "proof.md"
REPORT = ROOT / "benchmarks" / "results" / "gpu-check.json"
BEGIN = "<!-- Steps of gpu-check: written by docs/tools/gpu_results.py. Run `make docs`. -->\n"
END = "<!-- End of the steps. -->\n"
SHOWN = ("code", "torch", "triton", "tensorrt-rtx", "tensorrt", "cuda-core")  # versions, if there


def page(text: str, report: Mapping[str, Any]) -> str:
    """The text of the page with this report in it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "".join([before, BEGIN, "\n", *table(report), "\n", END, after])


def table(report: Mapping[str, Any]) -> Iterator[str]:
    yield "| step | it asks | outcome | when, on what |\n|---|---|---|---|\n"
    for name, step in STEPS.items():
        found = report.get("steps", {}).get(name)
        cells = (
            f"`{name}`",
            step.question,
            *(("not run", "") if found is None else outcome(found)),
        )
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def outcome(step: Mapping[str, Any]) -> tuple[str, str]:
    measured = step["measured"]
    versions = measured["versions"]
    ran_with = [f"{name} {versions[name]}" for name in SHOWN if name in versions]
    reason = f": {step['reason']}" if "reason" in step else ""
    where = [measured["date"][:10], *([step["gpu"]] if "gpu" in step else []), *ran_with]
    return step["outcome"] + reason, ", ".join(where)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> int:
    PAGE.write_text(page(PAGE.read_text(), read(REPORT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
