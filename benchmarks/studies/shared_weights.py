"""How much memory processes share that run the same engine set.

    python -m vicort.benchmarks.studies.shared_weights ENGINES... --out FILE

One process, then two at once, open each set, watch two frames and answer a question. When all have
answered, Linux's counts of their memory are read (/proc/PID/smaps_rollup): what each shares with
nobody (private), and its part of the pages that it shares with the other (proportional set size,
pss). The sum of pss is what all of them take. Weights that a backend does not convert when it loads
stay pages of their file: clean, shared, and free to leave memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish
from vicort.benchmarks.common.workload import Workload
from vicort.runtime.core import Sampling
from vicort.runtime.errors import VicortError
from vicort.runtime.manifest import read_manifest
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.session import Session

FIELDS = ("Rss", "Pss", "Private_Dirty", "Private_Clean", "Shared_Clean")
DEVICE_MB = 1500  # of pages
PATIENCE_S = 600.0  # timeout for all processes to have answered


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", type=Path, nargs="+", metavar="ENGINES", help="engine sets")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2), help="(default: 1 2)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
        "sets": {
            folder.name: {
                "weights, MB": weight_mb(folder),
                "MB by number of processes": {
                    count: at_once(folder, count) for count in options.processes
                },
            }
            for folder in options.engines
        },
    }
    return finish(report, options.out)


def weight_mb(folder: Path) -> float:
    """MB of 1e6 bytes of the weights in a set."""
    files = read_manifest(folder).files
    return sum(file.bytes for name, file in files.items() if name.endswith(".bin")) / 1e6


def at_once(folder: Path, count: int) -> dict[str, Any]:
    """MB of each of `count` processes, and the sum of their pss. Raises VicortError if one of them
    fails."""
    context = multiprocessing.get_context("spawn")
    answered, found = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=run, args=(folder, answered, found)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise VicortError(f"a process with {folder} failed: see the lines above")
    each = [found.get() for _ in processes]
    return {"each": each, "all, pss": round(sum(one["pss"] for one in each), 1)}


def run(folder: Path, answered: Barrier, found: Any) -> None:
    """The work of one process. If it fails, the others do not wait for it."""
    sampling = Sampling(max_tokens=2)
    memory = MemoryRequest(DEVICE_MB)
    try:
        with Session.open(folder, fps="source", memory=memory, sampling=sampling) as session:
            for frame in Workload(fps=2).frames(0, 2):
                session.push(frame)
            session.ask("What is there?")
            answered.wait(PATIENCE_S)
            found.put(memory_mb())
            answered.wait(PATIENCE_S)
    except BaseException:
        answered.abort()
        raise


def memory_mb() -> dict[str, float]:
    """MB of 1e6 bytes of this process, by the names of the kernel in lower case."""
    counts = dict(
        line.split(":", 1)
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if ":" in line
    )
    return {
        name.lower(): round(int(counts[name].split()[0]) * 1024 / 1e6, 1)
        for name in FIELDS
        if name in counts
    }


if __name__ == "__main__":
    sys.exit(main())
