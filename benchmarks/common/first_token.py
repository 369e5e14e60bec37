"""Time to first token: on an idle stream, at 1x, and while ingesting as fast as possible; of
answers that see every frame, and of those that see what is in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import percentiles
from vicort.benchmarks.common.vicort_stream import PAUSE_S, VicortStream
from vicort.benchmarks.common.workload import (
    CHUNK_FRAMES,
    QUESTIONS,
    Workload,
    bench_system,
    describe_system,
)
from vicort.runtime.core import UNIT_FRAMES, Freshness
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System

Load = Callable[[VicortStream, threading.Event], None]

ANSWER_TOKENS = 4
FILLED = 40  # chunks after the warm-up, before the first question
FULL_RATE = "as fast as it takes frames"
RATE_S = 2.0  # for which the rate without questions is measured


def measure(engine_dir: Path, settings: Settings) -> dict[str, Any]:
    """Percentiles of ttft_ms, and the rate at which frames went in meanwhile."""
    workload, system = Workload(fps=settings.real_time_fps), bench_system()
    with EngineSet.open(engine_dir) as engines:
        chunks = settings.warmup_chunks + FILLED
        result = {
            freshness: by_load(engines, system, workload, chunks, settings.questions, freshness)
            for freshness in get_args(Freshness)
        }
    return {
        "engine_set": engine_dir.name,
        "workload": workload.describe(),
        "system": describe_system(system),
        "mode": f"overlapped {usable_cores()}t",
        "answer_tokens_at_most": ANSWER_TOKENS,
        "pause_s": PAUSE_S,
        "loads": {
            load if freshness == "complete" else f"{load}, freshness {freshness}": row
            for freshness, rows in result.items()
            for load, row in rows.items()
        },
    }


def by_load(
    engines: EngineSet,
    system: System,
    workload: Workload,
    chunks: int,
    questions: int,
    freshness: Freshness = "complete",
) -> dict[str, Any]:
    """`questions` questions under each load, each load on a new stream of `chunks` chunks."""
    loads: dict[str, Load] = {
        "idle": lambda stream, stop: None,
        f"1x real time, {workload.fps} frames/s": _at_real_time,
        FULL_RATE: at_full_rate,
    }
    result: dict[str, Any] = {}
    for name, load in loads.items():
        with VicortStream(
            engines,
            system,
            workload,
            overlap=True,
            max_tokens=ANSWER_TOKENS,
            freshness=freshness,
        ) as stream:
            stream.push_chunks(chunks)
            ask_at_every_unit(stream)
            result[name] = _under(stream, load, questions)
    return result


def ask_at_every_unit(stream: VicortStream) -> None:
    """Asks after each number of units of a chunk, and while it is full: what an engine compiles at
    a new shape must not fall into a first token that counts. To be called between two chunks."""
    for units in range(1, CHUNK_FRAMES // UNIT_FRAMES + 1):
        stream.push(stream.next_frames(units * UNIT_FRAMES))
        stream.ask(QUESTIONS[units % len(QUESTIONS)])
        stream.push(stream.next_frames(CHUNK_FRAMES - units * UNIT_FRAMES))


def _under(stream: VicortStream, load: Load, questions: int) -> dict[str, Any]:
    """Asks one question after another from this thread while `load` feeds frames from another."""
    alone = _rate_of(stream, load, RATE_S)
    with running(stream, load):
        answers, rate = stream.ask_with_pauses(questions)
    unseen = [float((each.at - (each.seen_until or 0)) * stream.workload.fps) for each in answers]
    return {
        "ttft_ms": percentiles([each.ttft_ms for each in answers]),
        "unseen_frames": percentiles(unseen),  # that came before the question
        "frames_a_second_without_questions": round(alone, 1),
        "frames_a_second_meanwhile": round(rate, 1),
        "answers": len(answers),
    }


def _rate_of(stream: VicortStream, load: Load, seconds: float) -> float:
    with running(stream, load):
        frames, start = stream.watch.frames, time.perf_counter()
        time.sleep(seconds)
        return (stream.watch.frames - frames) / (time.perf_counter() - start)


@contextmanager
def running(stream: VicortStream, load: Load) -> Iterator[None]:
    """Runs `load` in a thread; its error is raised here."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            load(stream, stop)
        except BaseException as error:  # noqa: BLE001 - handed on below
            failures.append(error)

    thread = threading.Thread(target=run, name="feeder")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def at_full_rate(stream: VicortStream, stop: threading.Event) -> None:
    while not stop.is_set():
        stream.push(stream.next_frames(1))


def _at_real_time(stream: VicortStream, stop: threading.Event) -> None:
    """Pushes each frame at its time, in real time."""
    start, number = time.perf_counter(), 0
    while not stop.is_set():
        delay = start + number / stream.workload.fps - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        stream.push(stream.next_frames(1))
        number += 1
