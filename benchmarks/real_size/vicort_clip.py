"""vicort's run of the clip."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.vicort_stream import StreamRecorder
from vicort.benchmarks.real_size.clip_job import (
    ANSWER_TOKENS,
    QUESTION,
    SYSTEM,
    ClipJob,
    RunTimes,
    read_files,
)
from vicort.benchmarks.real_size.process_memory import MemoryPeak
from vicort.runtime.core import Question, Sampling
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.session import Session

DEVICE_MB = 1500  # of pages


def run_vicort(job: ClipJob, folder: Path) -> dict[str, Any]:
    """Whole chunks first; when they are in memory the other frames come, and at once the
    question."""
    streamed, rest = job.parts()
    read_files(folder)
    recorder = StreamRecorder()
    with MemoryPeak() as memory:
        start = time.perf_counter()
        with Session.open(
            folder,
            SYSTEM,
            threads=job.threads,
            fps="source",
            memory=MemoryRequest(DEVICE_MB),
            sampling=Sampling(max_tokens=ANSWER_TOKENS, temperature=0),
            on_event=recorder.event,
        ) as session:
            opened = memory.note_loaded()
            for frame in streamed:
                session.push(frame)
            if streamed:
                recorder.wait_for_frames(len(streamed))
            placed = time.perf_counter() if streamed else opened
            for frame in rest:
                session.push(frame)
            asked = time.perf_counter()
            answer = session.submit(Question(QUESTION, at=session.now)).result()
            ended = time.perf_counter()
            session.finish()
    times = RunTimes(
        load=opened - start,
        streamed_frames=len(streamed),
        streaming=placed - opened,
        first_token=asked - placed + answer.ttft_ms / 1000,
        answer=ended - placed,
        later_tokens=answer.tokens - 1,
    )
    return {
        **times.report(),
        **memory.report(),
        "frames": len(streamed) + len(rest),
        "tokens": sum(chunk.tokens for chunk in recorder.chunks),
        "kept": sum(chunk.kept for chunk in recorder.chunks),
    }
