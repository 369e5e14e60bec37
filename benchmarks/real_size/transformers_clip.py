"""transformers' runs of the clip: as a whole when the question comes, or streamed in chunks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.transformers_stream import TransformersStream, Variant
from vicort.benchmarks.real_size.clip_job import (
    ANSWER_TOKENS,
    QUESTION,
    SYSTEM,
    ClipJob,
    RunTimes,
    read_files,
    resized,
)
from vicort.benchmarks.real_size.process_memory import MemoryPeak
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.policies.system import load_system


def run_whole(job: ClipJob, checkpoint: Path, variant: Variant) -> dict[str, Any]:
    """All frames and the question in one pass, as transformers is commonly used. Compiled: a first
    run, in which PyTorch compiles, is not counted."""
    frames = job.frames()
    read_files(checkpoint)
    with MemoryPeak() as memory:
        start = time.perf_counter()
        stream = TransformersStream(checkpoint, load_system("full-history"), variant, *job.size)
        opened = memory.note_loaded()
        if variant.compiled:
            stream.ask_about(resized(frames, job.size), QUESTION, ANSWER_TOKENS)
        came = time.perf_counter()
        fitted = resized(frames, job.size)
        asked = time.perf_counter()
        reply = stream.ask_about(fitted, QUESTION, ANSWER_TOKENS)
        ended = time.perf_counter()
    times = RunTimes(
        load=opened - start,
        streamed_frames=0,
        streaming=0,
        first_token=asked - came + reply.ttft_ms / 1000,
        answer=ended - came,
        later_tokens=len(reply.logits) - 1,
    )
    tokens = len(frames) // UNIT_FRAMES * job.unit_tokens
    return {
        **times.report(),
        **memory.report(),
        "frames": len(frames),
        "tokens": tokens,
        "kept": tokens,
    }


def run_in_chunks(job: ClipJob, checkpoint: Path, variant: Variant) -> dict[str, Any]:
    """vicort's own job: chunks go to a cache as they come, with the same rule of what is kept and
    the same window; the last chunk comes with the question."""
    streamed, rest = job.parts()
    read_files(checkpoint)
    with MemoryPeak() as memory:
        start = time.perf_counter()
        stream = TransformersStream(checkpoint, load_system(SYSTEM), variant, *job.size)
        opened = memory.note_loaded()
        for first in range(0, len(streamed), job.chunk_frames):
            stream.push(resized(streamed[first : first + job.chunk_frames], job.size))
        came = time.perf_counter() if streamed else opened
        stream.push(resized(rest, job.size))
        asked = time.perf_counter()
        reply = stream.ask(QUESTION, ANSWER_TOKENS)
        ended = time.perf_counter()
    times = RunTimes(
        load=opened - start,
        streamed_frames=len(streamed),
        streaming=came - opened,
        first_token=asked - came + reply.ttft_ms / 1000,
        answer=ended - came,
        later_tokens=len(reply.logits) - 1,
    )
    frames = len(streamed) + len(rest)
    return {
        **times.report(),
        **memory.report(),
        "frames": frames,
        "tokens": frames // UNIT_FRAMES * job.unit_tokens,
        "kept": sum(map(len, stream.kept)),
    }
