"""transformers on the GPU, on the same streaming job and random weights as vicort."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from vicort.benchmarks.common.spread import percentiles, spread
from vicort.benchmarks.common.workload import (
    CHUNK_FRAMES,
    QUESTIONS,
    Workload,
    bench_system,
    describe_system,
)
from vicort.benchmarks.gpu.kernel_steps import cuda_torch
from vicort.benchmarks.gpu.lab import Lab, need
from vicort.benchmarks.gpu.pipeline_steps import AMOUNT
from vicort.benchmarks.gpu.real_models import Place

if TYPE_CHECKING:
    from vicort.benchmarks.common.transformers_stream import TransformersStream, Variant
    from vicort.runtime.core import Frame

# chunks: the window is full after 5, and compiled code has seen all shapes that come later
WARMUP = 8
CHUNKS, REPEATS = 20, 5
QUESTIONS_ASKED = 30
ANSWER_TOKENS = 4


def transformers(lab: Lab, name: str, side: int, compiled: bool) -> dict[str, Any]:
    """bf16 with SDPA, eager or under torch.compile: wall clock a chunk, and the time to the first
    token of an idle stream."""
    place = Place.of(lab, name)
    need("transformers", "it is what is compared with")
    torch = cuda_torch()
    from vicort.benchmarks.common.transformers_stream import Variant

    torch.cuda.reset_peak_memory_stats()
    found = measure(place, side, Variant("bf16", threads=4, compiled=compiled, device="cuda"))
    return {
        "gpu": lab.gpu.name,
        "device_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        **found,
    }


def measure(place: Place, side: int, variant: Variant) -> dict[str, Any]:
    """Chunks follow each other without a wait of ours between them. Where the vision encoder's
    windows are of one size (448x448), they attend all at once, which transformers does not do by
    itself."""
    from vicort.benchmarks.common.transformers_stream import TransformersStream

    workload, system = Workload(AMOUNT.width, AMOUNT.height), bench_system()
    variant = replace(variant, batched_windows=windows_are_equal(place, side))
    stream = TransformersStream(place.checkpoint, system, variant, side, side)
    chunks = (workload.frames(n * CHUNK_FRAMES, CHUNK_FRAMES) for n in count())
    start = time.perf_counter()
    for _ in range(WARMUP):
        stream.push(next(chunks))
    stream.finish()
    warm = time.perf_counter() - start
    whole, bare = (
        [run(stream, list(islice(chunks, CHUNKS)), preprocessing) for _ in range(REPEATS)]
        for preprocessing in (True, False)
    )
    ttft = [
        stream.ask(QUESTIONS[n % len(QUESTIONS)], ANSWER_TOKENS).ttft_ms
        for n in range(len(QUESTIONS) + QUESTIONS_ASKED)
    ]
    ms = spread(whole)
    return {
        "model": place.size.name,
        "side": side,
        "variant": variant.name,
        "workload": workload.describe(),
        "system": describe_system(system),
        "warmup_s": round(warm, 1),
        "chunks": CHUNKS * REPEATS,
        "ms_a_chunk": ms,
        "ms_a_chunk_without_preprocessing": spread(bare),
        "frames_a_second": round(CHUNK_FRAMES / ms["median"] * 1e3, 1),
        "ttft_ms": {"idle": percentiles(ttft[len(QUESTIONS) :])},
    }


def windows_are_equal(place: Place, side: int) -> bool:
    """Whether the vision encoder's windows divide a frame evenly, so that one call can attend in
    all of them."""
    return side % place.size.config["vision_config"]["window_size"] == 0


def run(stream: TransformersStream, chunks: list[list[Frame]], preprocessing: bool) -> float:
    """Wall milliseconds a chunk, until the device is done with the last one."""
    ready = None if preprocessing else [stream.preprocess(frames) for frames in chunks]
    stream.finish()
    start = time.perf_counter()
    for number, frames in enumerate(chunks):
        stream.push(frames, ready[number] if ready else None)
    stream.finish()
    return (time.perf_counter() - start) * 1e3 / len(chunks)
