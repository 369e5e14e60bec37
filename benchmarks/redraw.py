"""`python -m vicort.benchmarks.redraw`: draws the pictures in benchmarks/results/ again from the
JSON files beside them. Nothing is measured."""

from __future__ import annotations

import json
from pathlib import Path

from vicort.benchmarks.cpu import picture
from vicort.benchmarks.evaluation import reliability_picture
from vicort.benchmarks.studies import camera_picture
from vicort.benchmarks.systems import pictures

RESULTS = Path(__file__).parent / "results"
PAINTERS = {
    "bench": ("bench.json", picture.draw),
    "bench-systems": ("bench.json", pictures.draw_systems),
    "bench-migration": ("bench.json", pictures.draw_migration),
    "bench-cap": ("bench.json", pictures.draw_cap),
    "camera": ("camera.json", camera_picture.draw),
    "calibration": ("calibration.json", reliability_picture.draw),
}


def redraw(folder: Path, out: Path) -> list[Path]:
    """Draw what the JSON files in `folder` say into `out`; returns the pictures."""
    drawn = [
        draw(json.loads((folder / source).read_text()), out / f"{name}.png")
        for name, (source, draw) in PAINTERS.items()
    ]
    return [path for path in drawn if path]


if __name__ == "__main__":
    for path in redraw(RESULTS, RESULTS):
        print(path)
