"""Several streams in one process: how equally streams at full speed share it, and what is gained
where their units are encoded together.

    python -m vicort.benchmarks.studies.together --out benchmarks/results/together.json

At full speed: sessions on one engine set with frames from memory, with chunks of the engines' size
and of one unit, each with a vision encoder of its own and with a shared one, in turn; and the times
at which the first and the last session end. Batched: milliseconds of vision for each unit, by the
units in one run. For streams at 1x see vicort.benchmarks.studies.camera.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.study import finish, study_parser
from vicort.benchmarks.common.vision_units import vision_ms_a_unit
from vicort.runtime.core import UNIT_FRAMES, Frame
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.stages.shared_vision import SharedVision

CLIP = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "shapes.mp4"


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__)
    words = "of a stream at full speed (default: %(default)s)"
    parser.add_argument("--frames", type=int, default=1024, help=words)
    words = "of the full-speed measurements (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=5, help=words)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
    }
    with EngineSet.open(options.engine_dir) as engines:
        at_full_speed(engines, Load(streams=1, chunk_frames=UNIT_FRAMES), 64)  # warm-up
        chunk_frames = engines.manifest.model.chunk_frames
        loads = [
            Load(streams, size, shared)
            for streams in (1, 4)
            for size in (chunk_frames, UNIT_FRAMES)
            for shared in (False, True)
        ]
        rounds = [
            [at_full_speed(engines, load, options.frames) for load in loads]
            for _ in range(options.rounds)
        ]
        report["full speed"] = [
            vars(load) | together([each[number] for each in rounds])
            for number, load in enumerate(loads)
        ]
        report["batched: vision, ms a unit"] = vision_ms_a_unit(engines)
    return finish(report, options.out)


@dataclass(frozen=True)
class Load:
    """Streams at full speed, at the same time."""

    streams: int
    chunk_frames: int
    shared_vision: bool = False


@dataclass(frozen=True)
class Taken:
    """How fast the frames of a load were taken."""

    rate: float  # frames a second, of all streams
    ends: list[float]  # seconds until each stream's end, the first first
    units_a_run: float | None  # of shared vision


def at_full_speed(engines: EngineSet, load: Load, frames: int) -> Taken:
    """Sessions on one engine set, each with `frames` frames in memory, as fast as possible."""
    with open_source(str(CLIP)) as source:
        pictures = [frame.image for frame in source]
    system = load_system("vicostream").with_(chunk={"frames": load.chunk_frames})
    ends: list[float] = []
    with ExitStack() as stack:
        vision = stack.enter_context(SharedVision(engines)) if load.shared_vision else None
        began = time.monotonic()

        def watch() -> None:
            with Session(engines, system, shared_vision=vision) as session:
                for index in range(frames):
                    session.push(Frame(pictures[index % len(pictures)], Fraction(index, 2), index))
                session.finish()
                ends.append(time.monotonic() - began)

        threads = [threading.Thread(target=watch) for _ in range(load.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = vision.counts() if vision else None
    return Taken(
        rate=load.streams * frames / max(ends),
        ends=sorted(ends),
        units_a_run=counts.units / counts.runs if counts else None,
    )


def together(rounds: Sequence[Taken]) -> dict[str, Any]:
    """What the rounds of one load found."""
    found: dict[str, Any] = {
        "frames a second, all": spread([taken.rate for taken in rounds]),
        "first end / last end": spread([taken.ends[0] / taken.ends[-1] for taken in rounds]),
    }
    if units := [taken.units_a_run for taken in rounds if taken.units_a_run]:
        found["units a run"] = spread(units)
    return found


if __name__ == "__main__":
    sys.exit(main())
