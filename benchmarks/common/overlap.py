"""The gain of overlapping stages: the overlapped pipeline against the best sequential one on the
same cores."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import interleaved, spread
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import CHUNK_FRAMES, Workload, bench_system, describe_system
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.sources import open_source
from vicort.runtime.sources.opening import Decode

MODES = {  # overlapped?, CPU threads a running stage
    "sequential 1t": (False, 1),
    "sequential 2t": (False, 2),
    "overlapped 1t": (True, 1),
    "overlapped 2t": (True, 2),
}
SEQUENTIAL = [mode for mode, (overlap, _) in MODES.items() if not overlap]
OVERLAPPED = [mode for mode, (overlap, _) in MODES.items() if overlap]


def measure(engine_dir: Path, settings: Settings) -> dict[str, Any]:
    """Wall milliseconds a chunk of each mode, from frames in memory and from an encoded file."""
    workload, system = Workload(), bench_system()
    with ExitStack() as stack:
        streams = {}
        for mode, (overlap, threads) in MODES.items():
            engines = stack.enter_context(EngineSet.open(engine_dir, threads=threads))
            streams[mode] = stack.enter_context(
                VicortStream(engines, system, workload, overlap, threads=threads)
            )
            streams[mode].push_chunks(settings.warmup_chunks)
        memory = interleaved(
            {
                mode: partial(stream.push_chunks, settings.chunks)
                for mode, stream in streams.items()
            },
            settings.repeats,
        )
        warmup = settings.warmup_chunks
        stages = {mode: stream.stage_spreads(warmup) for mode, stream in streams.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workload.encode(folder / "clip.mp4", settings.chunks * CHUNK_FRAMES)
        readers = {
            mode: reader(streams[mode], folder / "clip.mp4", threads, settings.chunks)
            for mode, (_, threads) in MODES.items()
        }
        encoded = interleaved(readers, settings.repeats)
    return {
        "engine_set": engine_dir.name,
        "workload": workload.describe() | {"chunk_frames": CHUNK_FRAMES},
        "system": describe_system(system),
        "warmup_chunks": settings.warmup_chunks,
        "chunks_a_measurement": settings.chunks,
        "repeats": settings.repeats,
        "from_memory": compare(memory),
        "from_encoded_file": compare(encoded),
        "stage_ms": stages,
    }


def compare(ms: dict[str, list[float]]) -> dict[str, Any]:
    """Modes, the best of each kind by median, and what overlapping gains: best sequential / best
    overlapped."""
    medians = {mode: spread(values)["median"] for mode, values in ms.items()}
    sequential = min(SEQUENTIAL, key=medians.__getitem__)
    overlapped = min(OVERLAPPED, key=medians.__getitem__)
    rounds = [a / b for a, b in zip(ms[sequential], ms[overlapped], strict=True)]
    return {
        "ms_a_chunk": {mode: spread(values) for mode, values in ms.items()},
        "frames_a_second": {
            mode: round(CHUNK_FRAMES / median * 1e3, 1) for mode, median in medians.items()
        },
        "best_sequential": sequential,
        "best_overlapped": overlapped,
        "gain": round(medians[sequential] / medians[overlapped], 3),
        "gain_by_round": spread(rounds),
    }


def reader(
    stream: VicortStream, path: Path, threads: int, chunks: int, decode: Decode = "cpu"
) -> Callable[[], float]:
    """Decode the file and push its frames; wall milliseconds a chunk, decoding included, opening
    not."""

    def read() -> float:
        first = stream.next_frames(chunks * CHUNK_FRAMES)[0].time
        goal = len(stream.watch.chunks) + chunks
        with open_source(str(path), threads=threads, decode=decode) as source:
            start = time.perf_counter_ns()
            for number, frame in enumerate(source):
                stream.session.push(
                    replace(frame, time=first + Fraction(number, stream.workload.fps))
                )
        stream.watch.wait_for(goal)
        return (stream.watch.placed_ns[goal - 1] - start) / 1e6 / chunks

    return read
