"""A model of real size on this machine: loading, memory, frames, first token, decoding.

    python -m vicort.export.random_checkpoint --size 3b build/3b --tokenizer DIR
    vicort-build build/3b --weights int4 --out build/3b-int4
    python -m vicort.benchmarks.studies.real_size CLIP build/3b-int4 [ENGINES ...]

Each engine set runs in a process of its own: it is opened, the clip streams through system
vicostream, and a question is asked at the end. The first run of a set reads its files from the
disk, later ones from the page cache. Weights are random, so answers say nothing; the work is that
of a trained model, but for tokens that are dropped: random features are less alike.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.children import in_child
from vicort.benchmarks.common.study import finish
from vicort.runtime.core import ChunkEvent, Question, Sampling
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

QUESTION = "What happens in this video?"
TOKENS = 16  # of the answer
FIELDS = {"Rss": "rss", "Private_Dirty": "private"}
SAMPLED_EVERY = 0.25  # seconds


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="(default: all cores)")
    parser.add_argument("--memory", type=float, metavar="MB", help="(default: automatic)")
    parser.add_argument("--sequential", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "clip": options.clip.name,
        "threads": options.threads,
        "overlap": not options.sequential,
        "engines": {},
    }
    for _ in range(options.rounds):
        for folder in options.engines:
            found = in_child(
                measure,
                options.clip,
                folder,
                options.threads,
                options.memory,
                not options.sequential,
            )
            print(folder.name, found, flush=True)
            report["engines"].setdefault(folder.name, []).append(found)
    return finish(report, options.out)


def measure(
    clip: Path, folder: Path, threads: int | None, memory_mb: float | None, overlap: bool
) -> dict[str, float]:
    """One run. Times in the units of their names, memory in MB of 1e6 bytes."""
    chunks: list[ChunkEvent] = []

    def on_event(event: object) -> None:
        if isinstance(event, ChunkEvent):
            chunks.append(event)

    with peak_memory() as peak:
        start = time.perf_counter()
        with Session.open(
            folder,
            threads=threads,
            overlap=overlap,
            memory=MemoryRequest(memory_mb),
            sampling=Sampling(max_tokens=TOKENS, temperature=0),
            on_event=on_event,
        ) as session:
            opened, loaded = time.perf_counter(), memory()
            with open_source(str(clip)) as source:
                for frame in source.frames(session.wants):
                    session.push(frame)
            pushed = time.perf_counter()
            answer = session.submit(Question(QUESTION, at=session.now)).result()
            ended = time.perf_counter()
    frames = sum(chunk.frames for chunk in chunks)
    first = pushed + answer.ttft_ms / 1000
    return {
        "load_s": opened - start,
        "frames": frames,
        "tokens": sum(chunk.tokens for chunk in chunks),
        "kept": sum(chunk.kept for chunk in chunks),
        "clip_to_first_token_s": first - opened,
        "last_frame_to_first_token_s": first - pushed,
        "decode_ms": 1000 * (ended - first) / max(answer.tokens - 1, 1),
        "loaded_private_mb": loaded["private"],
        "loaded_rss_mb": loaded["rss"],
        "peak_private_mb": max(peak["private"], loaded["private"]),
        "peak_rss_mb": max(peak["rss"], loaded["rss"]),
    }


def memory() -> dict[str, float]:
    """MB of this process: of all its pages (rss), and of those that it alone has and has written to
    (private)."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[FIELDS[name]] = int(value.split()[0]) * 1024 / 1e6
    return found


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """The highest values of `memory` while the block runs."""
    peak: dict[str, float] = dict.fromkeys(FIELDS.values(), 0.0)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLED_EVERY):
            for name, value in memory().items():
                peak[name] = max(peak[name], value)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
