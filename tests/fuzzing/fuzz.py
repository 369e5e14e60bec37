"""Damaged files of every kind that vicort reads: each must be answered or refused in one line, in
bounded time and memory.

    python -m fuzzing.fuzz --seconds 60 --seed 1

File i of a seed is always the same: `--first i --files 1` tries it again.
"""

from __future__ import annotations

import argparse
import os
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

TIMEOUT = 60.0  # seconds for a file, on a machine that does other things
MAX_BYTES = 3 << 30  # of memory: a decoder's limit and the program


@dataclass(frozen=True)
class Trial:
    number: int
    good: Good
    faults: str
    path: Path
    outcome: Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a file was neither answered nor refused."""
    typed = _parser().parse_args(arguments)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    peak = slowest = 0.0
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder logs otherwise
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicort-fuzz-")))
        files, lacking = good_files(room)
        if lacking:
            print(f"not written here: {', '.join(lacking)}")
        begin = time.monotonic()
        before = begin
        for trial in trials(files, room, typed.seed, typed.first, typed.seconds, typed.files):
            after = time.monotonic()
            slowest, before = max(slowest, after - before), after
            counts[trial.outcome.kind] += 1
            kinds[trial.good.kind] += 1
            peak = max(peak, trial.outcome.peak)
            if trial.outcome.bad:
                _report(trial, typed.keep)
    print(
        f"seed {typed.seed}: {sum(counts.values())} files of {len(files)} good ones in "
        f"{before - begin:.0f} s ({_listed(kinds)})"
    )
    print(f"{_listed(counts)}; slowest {slowest:.1f} s, most memory {peak / 1e6:.0f} MB")
    return int(any(kind not in ("answered", "refused") for kind in counts))


def trials(
    files: Sequence[Good], room: Path, seed: int, first: int, seconds: float, count: int | None
) -> Iterator[Trial]:
    """Files first, first + 1, … of a seed, for `seconds` and at most `count`."""
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end and (count is None or number < first + count):
        rng = np.random.default_rng((seed, number))
        good = files[int(rng.integers(len(files)))]
        content, faults = spoiled(good.content, rng, good.kind)
        path = room / "spoiled" / good.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        yield Trial(
            number,
            good,
            faults,
            path,
            tried(path, good.kind, seconds=TIMEOUT, max_bytes=MAX_BYTES),
        )
        number += 1


def _report(trial: Trial, keep: Path | None) -> None:
    print(
        f"file {trial.number}, {trial.good.name} as {trial.good.kind}, {trial.faults}: "
        f"{trial.outcome.kind}: {trial.outcome.detail}"
    )
    sys.stdout.flush()
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
    words = "folder for copies of files that were neither answered nor refused"
    add("--keep", type=Path, metavar="DIR", help=words)
    return parser


if __name__ == "__main__":
    sys.exit(main())
