"""Accuracy of each system on streams it never saw, by the age of what is asked about: through encoded files and the whole pipeline.

    python -m vicort.benchmarks.shapestream --streams 12 --out benchmarks/results/shapestream.json

Each stream shows seven things one after another and then nothing for up to 1,000 units. "what color was the SHAPE?" is asked about
each of them when the last has been gone for 0, 8, 64, 250 and 1,000 units; "what is there now?" while the last one is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from fractions import Fraction
from pathlib import Path

from vicort.export.tiny.evaluate import HELD_OUT, LONG
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import Stream, make_stream
from vicort.runtime.core import Answer, Question
from vicort.runtime.engine import EngineSet
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.system import load_system

SYSTEMS = ("full-history", "vicostream", "uniform", "simplestream")
AGES = (0, 8, 64, 250, 1000)  # units, that is seconds, since the last thing went
THINGS = 7


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines/tiny-fp32-openvino"))
    parser.add_argument("--system", action="append", help=f"a name or a YAML file; may be repeated (default: {', '.join(SYSTEMS)})")
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--ages", type=int, nargs="+", default=AGES, help="units (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    systems = options.system or SYSTEMS
    started = time.time()
    right: dict[str, dict[str, list[bool]]] = {system: defaultdict(list) for system in systems}
    with tempfile.TemporaryDirectory() as folder, EngineSet.open(options.engine_dir) as engines:
        for seed in range(options.streams):
            stream = make_stream(HELD_OUT + seed, THINGS, LONG.size[0] / LONG.size[1], tail=max(options.ages) + 1)
            path = Path(folder) / "stream.mp4"
            write_video(path, stream, LONG.size, LONG.fps, LONG.codec, LONG.bitrate, LONG.style)
            for system in systems:
                for kind, verdict in watch(path, stream, engines, system, options.ages):
                    right[system][kind].append(verdict)
            print(f"stream {seed + 1} of {options.streams}", file=sys.stderr, flush=True)
    table = {system: {kind: summarise(verdicts) for kind, verdicts in kinds.items()} for system, kinds in right.items()}
    print_table(table)
    if options.out:
        conditions = {
            "date": date.today().isoformat(),
            "engines": options.engine_dir.name,
            "streams": options.streams,
            "things a stream": THINGS,
            "file": f"{LONG.size[0]}x{LONG.size[1]}, {LONG.fps} fps, {LONG.codec} at {LONG.bitrate} bit/s",
            "seeds": f"{HELD_OUT} and up, never trained on",
            "minutes": round((time.time() - started) / 60, 1),
        }
        options.out.write_text(json.dumps({"conditions": conditions, "accuracy": table}, indent=1) + "\n")
    return 0


def watch(path: Path, stream: Stream, engines: EngineSet, system: str, ages: tuple[int, ...]) -> list[tuple[str, bool]]:
    """One pass of one system over one file: each question's kind, and whether its answer was right."""
    gone = Fraction(stream.things[-1].end).limit_denominator(1000)
    truth: dict[str, tuple[str, str]] = {}  # of each question: its kind and its answer
    with Session(engines, load_system(system)) as session, open_source(str(path)) as source:
        last = stream.things[-1]
        middle = Fraction((max(last.start, last.end - 1) + last.end) / 2).limit_denominator(1000)
        truth["now"] = "now", f"{last.color} {last.shape}"
        futures = [session.submit(Question("what is there now?", middle, "now"))]
        for age in ages:
            for thing in stream.things:
                question = Question(f"what color was the {thing.shape}?", gone + age, f"{age} {thing.shape}")
                truth[question.id] = f"{age} units", thing.color
                futures.append(session.submit(question))
        for frame in source.frames(session.wants):
            session.push(frame)
        session.finish()
        answers: list[Answer] = [future.result() for future in futures]
    return [(truth[answer.id][0], answer.text == truth[answer.id][1]) for answer in answers]


def summarise(verdicts: list[bool]) -> dict[str, float | int]:
    return {"accuracy": round(sum(verdicts) / len(verdicts), 4), "asked": len(verdicts)}


def print_table(table: dict[str, dict[str, dict[str, float | int]]]) -> None:
    kinds = list(next(iter(table.values())))
    print(f"{'system':14}" + "".join(f"{kind:>12}" for kind in kinds))
    for system, row in table.items():
        print(f"{system:14}" + "".join(f"{100 * row[kind]['accuracy']:>11.1f}%" for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
