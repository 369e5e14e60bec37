"""Several streams in one process: how many files are held at 1x, and whether those that run at full speed share alike.

    python -m vicort.benchmarks.together --streams 4 16 32 --out benchmarks/results/together.json

A stream at 1x is `vicort-run --realtime` over the same clip, with a question every six seconds; late is a frame that was handed over
more than 0.1 s after it was due. At full speed, sessions take frames from memory; alike is how far apart the first and the last end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.benchmarks import machine
from vicort.runtime.core import Frame
from vicort.runtime.engine import EngineSet
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

CLIP = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "shapes.mp4"
EVERY = ("--every", "6", "what is there now?")


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines/tiny-fp32-openvino"))
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--frames", type=int, default=1024, help="of a stream at full speed (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"conditions": machine.conditions() | machine.now(), "command": " ".join(sys.argv[1:])}
    report["at 1x"] = [in_time(options.engine_dir, streams) for streams in options.streams]
    with EngineSet.open(options.engine_dir) as engines:
        at_full_speed(engines, 1, 64)  # warm-up
        report["full speed"] = [at_full_speed(engines, streams, options.frames) for streams in (1, 4)]
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


def in_time(engine_dir: Path, streams: int) -> dict[str, Any]:
    """So many streams at 1x, in a process of their own."""
    command = [sys.executable, "-m", "vicort.runtime.run", *[str(CLIP)] * streams, "--realtime", "--format", "jsonl", *EVERY]
    done = subprocess.run([*command, "--engine-dir", str(engine_dir)], capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    summaries = [event for event in events if event["event"] == "summary"]
    lags = [summary["realtime"]["lag_ms"] for summary in summaries]
    return {
        "streams": streams,
        "frames": sum(summary["frames"] for summary in summaries),
        "late": sum(summary["realtime"]["late"] for summary in summaries),
        "answers": sum(event["event"] == "answer" for event in events),
        "worst stream's lag_ms": {level: max(lag[level] for lag in lags) for level in ("p50", "p99")},
        "peak_rss_mb": max(summary["peak_rss_mb"] for summary in summaries),
    }


def at_full_speed(engines: EngineSet, streams: int, frames: int) -> dict[str, Any]:
    """So many sessions on one engine set, each with frames in memory, as fast as they are taken."""
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
    return {"streams": streams, "frames a second, all": streams * frames / max(ends), "first and last end after s": [min(ends), max(ends)]}


if __name__ == "__main__":
    sys.exit(main())
