"""How fast the default number of threads is beside every fixed split of the same cores.

    python -m vicort.benchmarks.studies.thread_splits ENGINES... --out FILE

Each engine set runs a stream overlapped and sequentially, with one thread and with all cores for
each running stage, from frames in memory. The ways take turns. The default is overlapped with all
cores. `against the best` divides its time by that of the fastest way, round by round.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import interleaved, spread
from vicort.benchmarks.common.study import finish
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import Workload, bench_system
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.engines.engine_set import EngineSet

DEVICE_MB = 2300  # of pages; the 3B model needs so many


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", type=Path, nargs="+", metavar="ENGINES", help="engine sets")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument(
        "--size",
        type=_size,
        default=(320, 180),
        metavar="WIDTHxHEIGHT",
        help="of frames (default: 320x180)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=5, help="chunks (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=8, help="in a round (default: %(default)s)")
    options = parser.parse_args()
    width, height = options.size
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
        "sets": {
            folder.name: splits_of(
                folder, Workload(width, height), options.warmup, options.chunks, options.rounds
            )
            for folder in options.engines
        },
    }
    return finish(report, options.out)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give WIDTHxHEIGHT, such as 320x180")
    return int(found[1]), int(found[2])


def splits_of(
    folder: Path, workload: Workload, warmup: int, chunks: int, rounds: int
) -> dict[str, Any]:
    """Wall milliseconds a chunk of each way, and the default's divided by those of the fastest."""
    cores = usable_cores()
    with ExitStack() as stack:
        streams = {}
        for threads in sorted({1, cores}):
            engines = stack.enter_context(EngineSet.open(folder, threads=threads))
            for overlap in (False, True):
                way = f"{'overlapped' if overlap else 'sequential'}, {threads} threads"
                streams[way] = stack.enter_context(
                    VicortStream(
                        engines,
                        bench_system(device_mb=DEVICE_MB),
                        workload,
                        overlap,
                        threads=threads,
                    )
                )
                if warmup:
                    streams[way].push_chunks(warmup)
        times = interleaved(
            {way: partial(stream.push_chunks, chunks) for way, stream in streams.items()}, rounds
        )
    default = f"overlapped, {cores} threads"
    spreads = {way: spread(values) for way, values in times.items()}
    best = min(spreads, key=lambda way: spreads[way]["median"])
    return {
        "ms a chunk": spreads,
        "best": best,
        "default": default,
        "against the best": spread(
            [a / b for a, b in zip(times[default], times[best], strict=True)]
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
