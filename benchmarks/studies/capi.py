"""Cost of the C API for each frame, compared with Python: the same pushes from both, in turns.

    make capi && python -m vicort.benchmarks.studies.capi

A frame that the sampler skips costs only the call. One that it keeps is copied by the C API, but
not by Python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.common.spread import spread
from vicort.runtime import Frame, Session
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.written_files import write_file

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 160  # pushes that are not counted, as in capi/bench/push.c
TIMES = ("refused_call_us", "taken_call_us", "taken_frame_us")


def from_python(
    engine_dir: Path, refused: int, taken: int, width: int, height: int
) -> dict[str, float]:
    """The twin of capi/bench/push.c: medians of a call, and the whole stream's time a frame;
    microseconds."""
    call_refused, _ = _push(engine_dir, None, refused, Fraction(1, 1_000_000), width, height)
    call_taken, frame_taken = _push(engine_dir, "source", taken, Fraction(1, 25), width, height)
    return dict(zip(TIMES, (call_refused, call_taken, frame_taken), strict=True))


def _push(
    engine_dir: Path,
    fps: Literal["source"] | None,
    count: int,
    step: Fraction,
    width: int,
    height: int,
) -> tuple[float, float]:
    pixels = np.zeros((height, width, 3), np.uint8)
    calls, first = [], 0
    with Session.open(engine_dir, fps=fps) as session:
        for i in range(-WARM_UP, count):
            began = time.perf_counter_ns()
            first = began if i == 0 else first
            if session.wants(at := (i + WARM_UP) * step):
                session.push(Frame.of(pixels, at, i + WARM_UP))
            if i >= 0:
                calls.append(time.perf_counter_ns() - began)
        session.finish()
        whole = time.perf_counter_ns() - first
    return float(np.median(calls)) / 1e3, whole / count / 1e3


def compiled(folder: Path) -> Path:
    """capi/bench/push.c against the library of `make capi`."""
    prefix, target = ROOT / "build" / "capi", folder / "push"
    if not (prefix / "lib" / "libvicort.so").is_file():
        sys.exit(f"{prefix}/lib/libvicort.so is not there: run `make capi` first")
    search = [f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"]
    compiler = os.environ.get("CC", "cc").split()
    source = str(ROOT / "capi/bench/push.c")
    command = [*compiler, "-std=gnu11", "-O2", source, "-o", str(target), *search, "-lvicort"]
    subprocess.run(command, check=True)
    return target


def measure(sides: dict[str, list[str]], repeats: int) -> dict[str, Any]:
    """Each side in a child process, in turns; spreads over the repeats."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, command in sides.items():
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[side].append(json.loads(done.stdout))
    return {
        side: {name: spread([run[name] for run in done], 2) for name in TIMES}
        for side, done in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    words = "engine set (default: the tiny model's)"
    add("--engine-dir", type=Path, default=find_engine_dir("tiny"), help=words)
    words = "pushes that the sampler skips (default: %(default)s)"
    add("--refused", type=int, default=20_000, help=words)
    words = "pushes that the sampler keeps (default: %(default)s)"
    add("--taken", type=int, default=1600, help=words)
    add("--size", type=int, nargs=2, default=(320, 180), metavar=("WIDTH", "HEIGHT"))
    add("--repeats", type=int, default=5)
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "capi.json")
    add("--from-python", action="store_true", help=argparse.SUPPRESS)
    typed = parser.parse_args()
    if typed.engine_dir is None:
        parser.error(
            "no engines of the tiny model are built: run `vicort-build tiny`, or name a set with "
            "--engine-dir"
        )
    counts = (typed.refused, typed.taken, *typed.size)
    if typed.from_python:
        print(json.dumps(from_python(typed.engine_dir, *counts)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = [str(typed.engine_dir), *map(str, counts)]
        python = [
            *(sys.executable, "-m", "vicort.benchmarks.studies.capi", "--from-python"),
            *("--engine-dir", given[0], "--refused", given[1], "--taken", given[2]),
            *("--size", *given[3:]),
        ]
        commands = {"c": [str(compiled(Path(folder))), *given], "python": python}
        result = measure(commands, typed.repeats)
    settings = {
        "engines": typed.engine_dir.name,
        "refused": counts[0],
        "taken": counts[1],
        "size": list(typed.size),
    }
    about = {"conditions": conditions(), "settings": settings, "repeats": typed.repeats}
    write_file(typed.out, json.dumps(about | result, indent=1) + "\n", "--out")
    for name in TIMES:
        print(
            f"{name:16} C {result['c'][name]['median']:9.2f}   Python "
            f"{result['python'][name]['median']:9.2f}"
        )


if __name__ == "__main__":
    main()
