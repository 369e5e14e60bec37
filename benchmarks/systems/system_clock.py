"""Timing of one system: frames per second, time to first token, and lag at 1x."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from vicort.benchmarks.common.first_token import at_full_rate, running
from vicort.benchmarks.common.long_stream import rss_mb
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import percentiles, spread
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import CHUNK_FRAMES, QUESTIONS
from vicort.benchmarks.systems.recorded import Recording, read_recording
from vicort.runtime.cli.lag import LagMeter
from vicort.runtime.core import Question
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System

ASK_EVERY_S = 0.5  # of a 1x replay
MIN_MEASUREMENTS = 2  # measurements of a rate


def measure(
    engine_dir: Path,
    recording: Path,
    choose: Callable[[EngineSet], System],
    settings: Settings,
    whole: bool,
) -> dict[str, Any]:
    """All of it; of a twin (`whole` False) only the overlapped rate and the first token, idle and
    under load."""
    with EngineSet.open(engine_dir, threads=1) as engines:
        system = choose(engines)
        workload = read_recording(recording, motion=system.wants_motion)
        result = _overlapped(engines, system, workload, settings, whole)
    if whole:
        cores = len(os.sched_getaffinity(0))
        with EngineSet.open(engine_dir, threads=cores) as engines:
            result["sequential"] = _sequential(engines, system, workload, settings) | {
                "threads": cores
            }
    result["peak_rss_mb"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1
    )
    return result


def fill_frames(system: System, settings: Settings) -> int:
    """Frames before a system is timed: fewer if it keeps everything, because its stream is
    limited."""
    return (
        settings.unbounded_fill_frames if system.overflow.refuses else settings.system_fill_frames
    )


def loaded_questions(system: System, settings: Settings) -> int:
    """Questions under full load: fewer if the system keeps everything, for the same reason."""
    return math.ceil(settings.system_loaded_questions / (8 if system.overflow.refuses else 1))


def fill(stream: VicortStream, frames: int) -> None:
    """Bring a stream to its steady state."""
    for _ in range(frames // CHUNK_FRAMES):
        stream.push_frames(CHUNK_FRAMES)


def rates(stream: VicortStream, settings: Settings) -> list[float]:
    """Frames a second, measured several times; fewer times if one takes long."""
    start, measured = time.perf_counter(), list[float]()
    while len(measured) < settings.system_repeats:
        measured.append(stream.push_frames(settings.system_rate_frames))
        if (
            len(measured) >= MIN_MEASUREMENTS
            and time.perf_counter() - start > settings.system_seconds
        ):
            break
    return measured


def _overlapped(
    engines: EngineSet, system: System, workload: Recording, settings: Settings, whole: bool
) -> dict[str, Any]:
    meter = LagMeter()
    with VicortStream(engines, system, workload, overlap=True, also=meter.event) as stream:
        fill(stream, fill_frames(system, settings))
        first = len(stream.watch.chunks)
        measured = rates(stream, settings)
        chunks, stage_ms = stream.watch.chunks[first:], stream.stage_ms_a_frame(first)
        idle = stream.ask_all(settings.system_questions)
        resting = _memory(engines, stream)
        loaded = _under_load(stream, loaded_questions(system, settings))
        summary = stream.session.summary()
        result = {
            "ingest": {"frames_a_second": spread(measured, 1), "stage_ms_a_frame": stage_ms},
            "kept_share": round(
                sum(chunk.kept for chunk in chunks) / sum(chunk.tokens for chunk in chunks), 4
            ),
            "tokens_read_when_timed": median(answer.tokens_read for answer in idle),
            "ttft_ms": {
                "idle": percentiles([answer.ttft_ms for answer in idle]),
                "while ingesting": loaded["ttft_ms"],
            },
            "frames_a_second_while_asked": loaded["frames_a_second"],
            **resting,
            "moved_mb": round(summary.moved_mb, 3),
            "reruns": summary.reruns,
            "asked": len(idle) + loaded["ttft_ms"]["n"],
            "rss_mb": rss_mb(),
        }
        return result | ({"replay": _replay(stream, meter, settings)} if whole else {})


def _memory(engines: EngineSet, stream: VicortStream) -> dict[str, Any]:
    pages = stream.session.summary().pages
    mb_a_page = page_bytes(engines.manifest.model, engines.pool_dtype) / 1e6
    return {
        "frames_before_asking": stream.watch.frames,
        "pages": pages,
        "stored_mb": round(sum(pages.values()) * mb_a_page, 2),
    }


def _under_load(stream: VicortStream, questions: int) -> dict[str, Any]:
    """One question after another, with pauses, while frames come as fast as they are taken."""
    with running(stream, at_full_rate):
        answers, rate = stream.ask_with_pauses(questions)
    ttft_ms = percentiles([answer.ttft_ms for answer in answers])
    return {"ttft_ms": ttft_ms, "frames_a_second": round(rate, 1)}


def _sequential(
    engines: EngineSet, system: System, workload: Recording, settings: Settings
) -> dict[str, Any]:
    with VicortStream(
        engines, system, workload, overlap=False, threads=len(os.sched_getaffinity(0))
    ) as stream:
        fill(stream, fill_frames(system, settings))
        return {"frames_a_second": spread(rates(stream, settings), 1)}


def _replay(stream: VicortStream, meter: LagMeter, settings: Settings) -> dict[str, Any]:
    """Pushes each frame at its time, in real time, with questions; the oldest chunk is dropped if
    the system is too slow.

    Ends the stream.
    """
    fps, before = settings.real_time_fps, stream.session.summary()
    stream.session.change_lag_policy("drop-oldest")  # until here nothing was to be dropped
    frames, first = stream.next_frames(round(settings.replay_s * fps)), stream.session.now
    asked: list[Future] = []
    start = time.monotonic()
    for number, frame in enumerate(frames, 1):
        due = start + number / fps
        time.sleep(max(0.0, due - time.monotonic()))
        at = first + Fraction(number, fps)
        meter.captured(at, due)
        stream.push([replace(frame, time=at)])
        if number % round(ASK_EVERY_S * fps) == 0:
            question = Question(
                QUESTIONS[len(asked) % len(QUESTIONS)], at, id=f"replay {len(asked)}"
            )
            asked.append(stream.session.submit(question, _first_token(meter, question.id)))
    stream.session.finish()
    lag = meter.summary()
    return {
        "frames_a_second": fps,
        "seconds": settings.replay_s,
        "frames": len(frames),
        "dropped": stream.session.summary().dropped - before.dropped,
        "late": lag["late"],
        "lag_ms": lag["lag_ms"],
        "ttft_ms": percentiles([answer.result().ttft_ms for answer in asked]),
    }


def _first_token(meter: LagMeter, answer_id: str) -> Callable[[str], None]:
    return lambda text: meter.token(answer_id)
