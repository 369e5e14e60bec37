"""Several streams in one process: how equally streams at full speed share it, and what batches over
streams could gain.

    python -m vicort.benchmarks.studies.together --out benchmarks/results/together.json

At full speed: sessions on one engine set with frames from memory, and the times at which the first
and the last session end. Batched: milliseconds of vision for each unit, by the units in one run.
The language engine takes one stream at a time, so only vision could gain from such batches. For
streams at 1x see vicort.benchmarks.studies.camera.
"""

from __future__ import annotations

import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.study import finish, study_parser
from vicort.runtime.core import UNIT_FRAMES, Frame
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import EngineError
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

CLIP = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "shapes.mp4"


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__)
    words = "of a stream at full speed (default: %(default)s)"
    parser.add_argument("--frames", type=int, default=1024, help=words)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
    }
    with EngineSet.open(options.engine_dir) as engines:
        at_full_speed(engines, 1, 64)  # warm-up
        report["full speed"] = [
            at_full_speed(engines, streams, options.frames) for streams in (1, 4)
        ]
        report["batched: vision, ms a unit"] = batched(engines)
    return finish(report, options.out)


def at_full_speed(engines: EngineSet, streams: int, frames: int) -> dict[str, Any]:
    """`streams` sessions on one engine set, each with frames in memory, as fast as possible."""
    with open_source(str(CLIP)) as source:
        pictures = [frame.image for frame in source]
    ends: list[float] = []
    began = time.monotonic()

    def watch() -> None:
        with Session.open(engines, "vicostream") as session:
            for index in range(frames):
                session.push(Frame(pictures[index % len(pictures)], Fraction(index, 2), index))
            session.finish()
            ends.append(time.monotonic() - began)

    threads = [threading.Thread(target=watch) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "streams": streams,
        "frames a second, all": streams * frames / max(ends),
        "first and last end after s": [min(ends), max(ends)],
    }


def batched(engines: EngineSet, repeats: int = 40) -> dict[int, dict[str, float]]:
    """Vision's cost a temporal unit, by how many units are in one run; the sizes take turns."""
    model = engines.manifest.model
    if model.fixed_size is None:
        raise EngineError(f"{model.name} takes frames of any size: build it with --image-size")
    frames = np.random.default_rng(0).integers(
        0, 256, (model.chunk_frames, *model.fixed_size, 3), np.uint8
    )
    features = np.empty(
        (model.chunk_frames // UNIT_FRAMES, model.unit_tokens, model.width), engines.dtype
    )
    stream = InlineStream("vision")

    def run(units: int) -> None:
        engines.vision.enqueue(
            {"frames": frames[: UNIT_FRAMES * units], "features": features[:units]}, stream
        ).done()

    sizes = [units for units in (1, 2, 4, 8) if units <= len(features)]
    seconds: dict[int, list[float]] = {units: [] for units in sizes}
    for repeat in range(repeats + 3):  # three to warm up
        for units in sizes:
            start = time.perf_counter()
            run(units)
            if repeat >= 3:
                seconds[units].append(1e3 * (time.perf_counter() - start) / units)
    return {units: spread(values) for units, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
