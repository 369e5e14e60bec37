"""One system by the clock: how fast it takes frames, how long its first token takes, how far behind it falls at 1x."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.first_token import PAUSE, at_full_rate, running
from vicort.benchmarks.long_stream import rss_mb
from vicort.benchmarks.recorded import Recording, read_recording
from vicort.benchmarks.settings import Settings
from vicort.benchmarks.spread import percentiles, spread
from vicort.benchmarks.vicort_stream import VicortStream
from vicort.benchmarks.workload import CHUNK_FRAMES, QUESTIONS
from vicort.runtime.core import Question
from vicort.runtime.engine import EngineSet
from vicort.runtime.lag import LagMeter
from vicort.runtime.pool import page_bytes
from vicort.runtime.system import System

ASK_EVERY_S = 0.5  # of a 1x replay


def measure(engine_dir: Path, recording: Path, system: System, settings: Settings, whole: bool) -> dict[str, Any]:
    """All of it; of a twin (`whole` False) only the overlapped rate and the first token, idle and under load."""
    motion = system.drop.policy == "motion"
    workload = read_recording(recording, motion=motion)
    with EngineSet.open(engine_dir, threads=1) as engines:
        result = _overlapped(engines, system, workload, settings)
        if whole:
            result["replay"] = _replay(engines, system, read_recording(recording, settings.real_time_fps, motion), settings)
    if whole:
        cores = len(os.sched_getaffinity(0))
        with EngineSet.open(engine_dir, threads=cores) as engines:
            result["sequential"] = _sequential(engines, system, workload, settings) | {"threads": cores}
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
    return result


def fill(stream: VicortStream, frames: int) -> None:
    """Bring a stream to its steady state, chunk by chunk: nothing is dropped, whatever the lag policy."""
    for _ in range(frames // CHUNK_FRAMES):
        stream.push_frames(CHUNK_FRAMES)


def _overlapped(engines: EngineSet, system: System, workload: Recording, settings: Settings) -> dict[str, Any]:
    with VicortStream(engines, system, workload, overlap=True) as stream:
        fill(stream, settings.system_fill_frames)
        filled, first = stream.watch.frames, len(stream.watch.chunks)
        rates = [stream.push_frames(settings.system_rate_frames) for _ in range(settings.system_repeats)]
        taken, chunks = stream.watch.frames - filled, stream.watch.chunks[first:]
        stage_ms = {stage: round(sum(times) / taken, 4) for stage, times in stream.stage_ms(first).items()}
        idle = [stream.ask(QUESTIONS[number % len(QUESTIONS)]).ttft_ms for number in range(settings.system_questions)]
        resting = _memory(engines, stream)
        loaded = _under_load(stream, settings.system_loaded_questions)
        summary = stream.session.summary()
        return {
            "ingest": {"frames_a_second": spread(rates, 1), "stage_ms_a_frame": stage_ms},
            "kept_share": round(sum(chunk.kept for chunk in chunks) / sum(chunk.tokens for chunk in chunks), 4),
            "ttft_ms": {"idle": percentiles(idle), "while ingesting": loaded["ttft_ms"]},
            "frames_a_second_while_asked": loaded["frames_a_second"],
            **resting,
            "moved_mb": getattr(summary, "moved_mb", None),
            "reruns": getattr(summary, "reruns", None),
            "asked": len(idle) + loaded["ttft_ms"]["n"],
            "rss_mb": rss_mb(),
        }


def _memory(engines: EngineSet, stream: VicortStream) -> dict[str, Any]:
    pages = stream.session.summary().pages
    mb_a_page = page_bytes(engines.manifest.model, engines.dtype) / 1e6
    return {"frames_before_asking": stream.watch.frames, "pages": pages, "stored_mb": round(sum(pages.values()) * mb_a_page, 2)}


def _under_load(stream: VicortStream, questions: int) -> dict[str, Any]:
    """One question after another, with pauses, while frames come as fast as they are taken."""
    random = np.random.default_rng(0)
    with running(stream, at_full_rate):
        frames, start = stream.watch.frames, time.perf_counter()
        ttfts = []
        for number in range(questions):
            time.sleep(random.uniform(*PAUSE))
            ttfts.append(stream.ask(QUESTIONS[number % len(QUESTIONS)]).ttft_ms)
        rate = (stream.watch.frames - frames) / (time.perf_counter() - start)
    return {"ttft_ms": percentiles(ttfts), "frames_a_second": round(rate, 1)}


def _sequential(engines: EngineSet, system: System, workload: Recording, settings: Settings) -> dict[str, Any]:
    with VicortStream(engines, system, workload, overlap=False, threads=len(os.sched_getaffinity(0))) as stream:
        fill(stream, settings.system_fill_frames)
        rates = [stream.push_frames(settings.system_rate_frames) for _ in range(settings.system_repeats)]
    return {"frames_a_second": spread(rates, 1)}


def _replay(engines: EngineSet, system: System, workload: Recording, settings: Settings) -> dict[str, Any]:
    """Each frame when its time has come, by the machine's clock, questions among them, the oldest chunk dropped if it cannot keep up."""
    meter, asked = LagMeter(), list[Future]()
    with VicortStream(engines, system, workload, overlap=True, also=meter.event, on_lag="drop-oldest") as stream:
        fill(stream, settings.system_fill_frames)
        frames, before = stream.next_frames(round(settings.replay_s * workload.fps)), stream.session.summary()
        ask_every = round(ASK_EVERY_S * workload.fps)
        start = time.monotonic()
        for number, frame in enumerate(frames):
            due = start + number / workload.fps
            time.sleep(max(0.0, due - time.monotonic()))
            meter.take(frame.time, due)
            stream.push([frame])
            if number % ask_every == ask_every - 1:
                text = QUESTIONS[len(asked) % len(QUESTIONS)]
                asked.append(stream.session.submit(Question(text, stream.session.now), _first_token(meter, f"q{len(asked) + 1}")))
        stream.session.finish()
        summary, lag = stream.session.summary(), meter.summary()
        return {
            "frames_a_second": workload.fps,
            "seconds": settings.replay_s,
            "frames": len(frames),
            "dropped": summary.dropped - before.dropped,
            "late": lag["late"],
            "lag_ms": lag["lag_ms"],
            "ttft_ms": percentiles([answer.result().ttft_ms for answer in asked]),
        }


def _first_token(meter: LagMeter, answer_id: str) -> Callable[[str], None]:
    return lambda text: meter.token(answer_id)
