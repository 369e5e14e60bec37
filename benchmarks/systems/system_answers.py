"""One system's and its twin's answers: accuracy by the age of the event, and tokens read."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.children import one_line
from vicort.benchmarks.common.observed_engine import ObservedEngine
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.workload import describe_system
from vicort.benchmarks.evaluation.ages import Row, by_age, rows_of
from vicort.benchmarks.evaluation.items import Dataset
from vicort.benchmarks.evaluation.watching import Candidate
from vicort.benchmarks.systems.tokens_read import TokenCounter
from vicort.benchmarks.systems.twins import BASELINES, twin_of, with_store
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.system import System, load_system

MIN_STREAMS = 3
OLD_CHUNKS = 64  # age in the engine set's chunks from which an event is old


def measure(
    engine_dir: Path, name: str, streams: Dataset, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Rows of a system and, if it has one, of its twin; a row that failed holds nothing but its
    `error`."""
    with EngineSet.open(engine_dir, threads=1) as engines:
        system = with_store(engines, load_system(name), settings.store_mb)
        rows = {name: _row(engines, system, streams, settings)}
        if name in BASELINES or "error" in rows[name]:
            return rows
        twin = with_store(
            engines,
            twin_of(system, rows[name]["tokens_read"], engines.manifest.model.unit_tokens),
            settings.store_mb,
        )
        return rows | {twin.name: _row(engines, twin, streams, settings)}


def old_ages(ages: Sequence[int], chunk_units: int) -> list[int]:
    """Ages of at least OLD_CHUNKS chunks; of a quick run, which has none, the highest."""
    return [age for age in ages if age >= OLD_CHUNKS * chunk_units] or [max(ages)]


def _row(
    engines: EngineSet, system: System, streams: Dataset, settings: Settings
) -> dict[str, Any]:
    try:
        return answers(engines, system, streams, settings)
    except (
        VicortError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return {"error": one_line(error)}


def answers(
    engines: EngineSet, system: System, streams: Dataset, settings: Settings
) -> dict[str, Any]:
    """One system's row: stages one after another on one core, which changes no answer.

    Raises VicortError if not one question was answered.
    """
    start, plain = time.perf_counter(), engines.llm
    counter = TokenCounter()
    engines.llm = ObservedEngine(plain, counter.run)
    try:
        rows = list(_watched(engines, system, streams, settings))
    finally:
        engines.llm = plain
    if failures := [row.error for row in rows if row.error]:
        raise VicortError(
            f"{len(failures)} of {len(rows)} questions were not answered: {failures[0]}"
        )
    watched = len({row.stream for row in rows})
    model, counted = engines.manifest.model, _counted(counter, watched, settings)
    tokens = _read_when_old(counted, rows, settings, model)
    bytes_of_token = page_bytes(model, engines.pool_dtype) / model.page_tokens
    return {
        "system": describe_system(system),
        "accuracy": by_age(rows)[system.name],
        "right": _verdicts(rows),
        "streams": watched,
        "tokens_read": round(tokens, 1),
        "mb_read": round(tokens * bytes_of_token / 1e6, 3),
        "counted_at": "engine" if counted is not None else "answers",
        "seconds": round(time.perf_counter() - start, 1),
    }


def _watched(
    engines: EngineSet, system: System, streams: Dataset, settings: Settings
) -> Iterator[Row]:
    """All streams, or as many as a slow system gets through."""
    start = time.perf_counter()
    for number, video in enumerate(streams.videos):
        if number >= MIN_STREAMS and time.perf_counter() - start > settings.answer_seconds:
            break
        yield from rows_of(system.name, video, Candidate.of(engines, system, overlap=False))


def _counted(counter: TokenCounter, streams: int, settings: Settings) -> np.ndarray | None:
    """[streams, questions] tokens that each question could see, in the order they were asked: by
    time, so by age; None if not all were.

    A question with its own frames is not counted there.
    """
    counter.flush()
    questions = len(counter.counts) // streams
    if (
        not questions
        or len(counter.counts) % streams
        or (questions - 1) % len(settings.system_ages)
    ):
        return None
    return np.array(counter.counts).reshape(streams, questions)


def _read_when_old(
    counted: np.ndarray | None, rows: Sequence[Row], settings: Settings, model: ModelSpec
) -> float:
    """Tokens a question reads, mean over those about old events."""
    old = old_ages(settings.system_ages, model.chunk_frames // UNIT_FRAMES)
    if counted is None:
        return float(np.mean([row.tokens_read for row in rows if row.age in old]))
    an_age = (counted.shape[1] - 1) // len(settings.system_ages)
    return float(counted[:, -an_age * len(old) :].mean())


def _verdicts(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Of each age (-1 = now) and each stream: 1 or 0 a question, in the order of its shapes."""
    right: dict[int, dict[int, dict[str, bool]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        right[row.age][row.stream][row.shape] = row.right
    return {
        str(age): {
            str(stream): "".join(str(int(shapes[shape])) for shape in sorted(shapes))
            for stream, shapes in by_stream.items()
        }
        for age, by_stream in right.items()
    }
