"""Damaged files of every kind that vicort reads: each must be answered or refused in one line, in
bounded time and memory.

    python -m fuzzing.fuzz --seconds 60 --seed 1 --engines ../engines/tiny-fp32-openvino

With --engines each file also goes the whole way, up to an answer about it.
File i of a seed is always the same: `--first i --files 1` tries it again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzzing.fuzz_child import Outcome, tried
from fuzzing.fuzz_files import Good, good_files, spoiled
from fuzzing.through_engines import EngineTrials

TIMEOUT = 60.0  # seconds for a file, on a machine that does other things
MAX_BYTES = 3 << 30  # of memory: a decoder's limit and the program
MAX_PROGRAM_BYTES = 1 << 30  # of memory beside the decoder: frames that wait, and a session


@dataclass(frozen=True)
class Trial:
    number: int
    good: Good
    faults: str
    path: Path
    outcomes: dict[str, Outcome]  # by how the file was tried: read, answered about

    @property
    def bad(self) -> bool:
        return any(outcome.bad for outcome in self.outcomes.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a file was neither answered nor refused."""
    typed = _parser().parse_args(arguments)
    kinds: Counter[str] = Counter()
    found: dict[str, list[tuple[int, Outcome]]] = {}
    bad = False
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder logs otherwise
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicort-fuzz-")))
        log = stack.enter_context(typed.log.open("a")) if typed.log else None
        engines = stack.enter_context(EngineTrials(typed.engines, room)) if typed.engines else None
        files, lacking = good_files(room, typed.engines)
        if lacking:
            print(f"not written here: {', '.join(lacking)}")
        begin = time.monotonic()
        for trial in trials(files, room, engines, typed):
            kinds[trial.good.kind] += 1
            for way, outcome in trial.outcomes.items():
                found.setdefault(way, []).append((trial.number, outcome))
            if log:
                print(json.dumps(_row(trial)), file=log, flush=True)
            if trial.bad:
                bad = True
                _report(trial, typed.keep)
        took = time.monotonic() - begin
    print(
        f"seed {typed.seed}: {sum(kinds.values())} files of {len(files)} good ones in "
        f"{took:.0f} s ({_listed(kinds)})"
    )
    for way, outcomes in found.items():
        print(f"{way}: {_measured(outcomes)}")
    return int(bad)


def trials(
    files: Sequence[Good], room: Path, engines: EngineTrials | None, typed: argparse.Namespace
) -> Iterator[Trial]:
    """Files first, first + 1, … of a seed, for so many seconds and at most so many."""
    end = time.monotonic() + typed.seconds
    number = typed.first
    while time.monotonic() < end and (typed.files is None or number < typed.first + typed.files):
        rng = np.random.default_rng((typed.seed, number))
        good = files[int(rng.integers(len(files)))]
        content, faults = spoiled(good.content, rng, good.kind)
        path = room / "spoiled" / good.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        outcomes = {"read": tried(path, good.kind, seconds=TIMEOUT, max_bytes=MAX_BYTES)}
        if engines and good.kind != "packets":
            outcomes["answered about"] = engines.tried(
                path, good.kind, seconds=TIMEOUT, max_bytes=MAX_PROGRAM_BYTES
            )
        yield Trial(number, good, faults, path, outcomes)
        number += 1


def _measured(outcomes: Sequence[tuple[int, Outcome]]) -> str:
    """How files ended, and which took most."""
    counts = Counter(outcome.kind for _, outcome in outcomes)
    slowest, longest = max(outcomes, key=lambda each: each[1].seconds)
    largest, most = max(outcomes, key=lambda each: each[1].peak)
    typical = statistics.median(outcome.seconds for _, outcome in outcomes)
    return (
        f"{_listed(counts)}; median {typical:.2f} s, slowest {longest.seconds:.1f} s "
        f"(file {slowest}), most memory {most.peak / 1e6:.0f} MB (file {largest})"
    )


def _row(trial: Trial) -> dict[str, object]:
    return {
        "number": trial.number,
        "name": trial.good.name,
        "kind": trial.good.kind,
        "faults": trial.faults,
        "bytes": trial.path.stat().st_size,
        **{
            way: [outcome.kind, round(outcome.seconds, 3), outcome.peak, outcome.detail[:300]]
            for way, outcome in trial.outcomes.items()
        },
    }


def _report(trial: Trial, keep: Path | None) -> None:
    for way, outcome in trial.outcomes.items():
        if outcome.bad:
            print(
                f"file {trial.number}, {trial.good.name} as {trial.good.kind}, {trial.faults}, "
                f"{way}: {outcome.kind}: {outcome.detail}",
                flush=True,
            )
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{trial.number}-{trial.good.kind}-{trial.good.name}").write_bytes(
            trial.path.read_bytes()
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fuzzing.fuzz", description="Read damaged files.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60, help="(default: %(default)s)")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--first", type=int, default=0, help="number of the first file (default: %(default)s)")
    add("--files", type=int, help="maximum number of files (default: no limit)")
    add("--engines", type=Path, metavar="DIR", help="an engine set that answers about each file")
    add("--log", type=Path, metavar="FILE", help="add a JSON line for each file to this file")
    words = "folder for copies of files that were neither answered nor refused"
    add("--keep", type=Path, metavar="DIR", help=words)
    return parser


if __name__ == "__main__":
    sys.exit(main())
