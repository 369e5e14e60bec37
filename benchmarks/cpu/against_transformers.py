"""vicort against transformers on the same streaming job: first a check that the job is the same,
then the times."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.checkpoints import parameters, read_json
from vicort.benchmarks.common.engine_sets import KINDS, Model
from vicort.benchmarks.common.observed_engine import ObservedEngine
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import interleaved, spread
from vicort.benchmarks.common.transformers_stream import TransformersStream, Variant
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import (
    CHUNK_FRAMES,
    QUESTIONS,
    Workload,
    bench_system,
    describe_system,
)
from vicort.benchmarks.cpu import arithmetic
from vicort.runtime.core import Frame
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System

VARIANTS = [
    *(
        Variant(precision, threads)
        for precision in ("fp32", "bf16", "autocast")
        for threads in (1, 2)
    ),
    *(Variant(precision, 2, attention="eager") for precision in ("fp32", "bf16")),
]
ANSWER_TOKENS = 4


@dataclass(frozen=True)
class Amount:
    """How many chunks to measure, for a model of this size."""

    warmup: int
    screening: int
    chunks: int
    repeats: int
    history: int

    @staticmethod
    def of(settings: Settings, model: Model) -> Amount:
        s, tiny = settings, model.name == "tiny"
        return Amount(
            warmup=5,
            screening=s.screening_chunks if tiny else s.medium_screening_chunks,
            chunks=s.compared_chunks if tiny else s.medium_chunks,
            repeats=s.compared_repeats if tiny else s.medium_repeats,
            history=s.history_chunks if tiny else s.medium_history_chunks,
        )


@dataclass(frozen=True)
class Runner:
    """One way of running vicort: an engine set, threads, overlapped or not."""

    backend: str
    precision: str
    threads: int
    overlap: bool

    @property
    def name(self) -> str:
        return (
            f"{self.backend} {self.precision} {'overlapped' if self.overlap else 'sequential'} "
            f"{self.threads}t"
        )


def measure(model: Model, cache: Path, settings: Settings) -> dict[str, Any]:
    """The whole comparison at one model size."""
    amount, workload, system = Amount.of(settings, model), Workload(), bench_system()
    same = check_same_job(model, cache, system, settings.checked_chunks)
    variants, screened = screen_transformers(model, workload, system, amount, settings.compiled)
    runners, vicort_screened = screen_vicort(model, cache, workload, system, amount)
    final = compare(model, cache, workload, system, amount, variants, runners)
    best, bare = (fastest(final, kind) for kind in ("with_preprocessing", "without_preprocessing"))
    return {
        "model": {
            "name": model.name,
            "parameters": parameters(model.checkpoint),
            "frame": f"{model.side}x{model.side}",
        },
        "workload": workload.describe() | {"chunk_frames": CHUNK_FRAMES},
        "system": describe_system(system),
        "amount": vars(amount),
        "same_job": same,
        "gflop_a_chunk": operations(model, system).gflop(),
        "transformers_screened_ms": screened,
        "vicort_screened_ms": vicort_screened,
        "ms_a_chunk": final,
        "fastest": {"with_preprocessing": best, "without_preprocessing": bare},
        "speedup": {
            kind: round(
                final["transformers"][names["transformers"]][kind]["median"]
                / final["vicort"][names["vicort"]][kind]["median"],
                3,
            )
            for kind, names in (("with_preprocessing", best), ("without_preprocessing", bare))
        },
        "full_history": full_history(
            model, cache, workload, amount, replace(variants[0], compiled=False), runners[0]
        ),
    }


def fastest(final: dict[str, dict[str, Any]], kind: str) -> dict[str, str]:
    """Of each side the runner with the least median, among those that were measured in this way."""
    return {
        side: min((n for n in names if kind in names[n]), key=lambda n: names[n][kind]["median"])
        for side, names in final.items()
    }


# ---- the same job


def check_same_job(model: Model, cache: Path, system: System, chunks: int) -> dict[str, Any]:
    """Kept tokens, answers and logits of both sides in fp32, on frames of the engine's own size,
    which neither side resizes."""
    workload = Workload(model.side, model.side)
    with EngineSet.open(model.engines(cache, "openvino", "fp32"), threads=2) as engines:
        kept: list[np.ndarray] = []
        rows: list[np.ndarray] = []  # logits of each run of the output head
        engines.tokens = ObservedEngine(
            engines.tokens, lambda run, _: kept.append(run["kept"][: int(run["count"][0])].copy())
        )
        engines.head = ObservedEngine(
            engines.head, lambda run, _: rows.append(run["logits"][0].copy())
        )
        with VicortStream(
            engines, system, workload, overlap=False, max_tokens=ANSWER_TOKENS
        ) as stream:
            stream.push_chunks(chunks)
            ingested = len(rows)
            answers = [stream.ask(question) for question in QUESTIONS]
    logits = rows[ingested:]
    theirs = TransformersStream(
        model.checkpoint, system, Variant("fp32", 2), model.side, model.side
    )
    for chunk in chunks_of(workload, 0, chunks):
        theirs.push(chunk)
    replies = [theirs.ask(question, ANSWER_TOKENS) for question in QUESTIONS]
    expected = [row for reply in replies for row in reply.logits]
    same_length = len(expected) == len(logits)
    difference = (
        max(float(np.abs(a - b).max()) for a, b in zip(logits, expected, strict=True))
        if same_length
        else None
    )
    return {
        "precision": "fp32",
        "chunks": chunks,
        "kept_a_chunk": [len(indices) for indices in kept],
        "kept_tokens_equal": all(
            np.array_equal(a, b) for a, b in zip(kept, theirs.kept, strict=True)
        ),
        "answers": [answer.text for answer in answers],
        "answers_equal": [answer.text for answer in answers] == [reply.text for reply in replies],
        "logits_compared": len(logits) if same_length else 0,
        "largest_logit_difference": difference,
        "logit_deviation": float(np.std(expected)),
    }


# ---- the fastest way of running each


def screen_transformers(
    model: Model, workload: Workload, system: System, amount: Amount, compiled: bool
) -> tuple[list[Variant], dict[str, float]]:
    """Milliseconds a chunk, without preprocessing, of all variants; returns the fastest in fp32 and
    with bf16, fastest first."""
    chunks = chunks_of(workload, 0, 2 + amount.screening)
    measured: dict[Variant, float] = {}

    def screen(variant: Variant) -> None:
        stream = TransformersStream(model.checkpoint, system, variant, model.side, model.side)
        measured[variant] = float(np.median([ms for _, ms in timed(stream, chunks)][2:]))

    for variant in VARIANTS:
        screen(variant)
    fastest = min(measured, key=measured.__getitem__)
    screen(replace(fastest, batched_windows=True))
    if compiled:
        screen(replace(fastest, compiled=True))
    gc.collect()
    order = sorted((v for v in measured if not v.batched_windows), key=measured.__getitem__)
    leaders = [next(v for v in order if (v.precision == "fp32") == full) for full in (True, False)]
    leaders.sort(key=measured.__getitem__)
    return leaders, {variant.name: round(ms, 3) for variant, ms in measured.items()}


def screen_vicort(
    model: Model, cache: Path, workload: Workload, system: System, amount: Amount
) -> tuple[list[Runner], dict[str, float]]:
    """Milliseconds a chunk, without preprocessing, of all engine kinds; returns the fastest of each
    precision, fastest first."""
    measured: dict[Runner, float] = {}
    for backend, precision in KINDS:
        folder = model.engines(cache, backend, precision)
        for threads in (1, 2):
            runner = Runner(backend, precision, threads, overlap=False)
            with (
                EngineSet.open(folder, threads=threads) as engines,
                VicortStream(engines, system, workload, overlap=False) as stream,
            ):
                stream.push_chunks(2 + amount.screening)
                measured[runner] = float(np.median(bare_ms(stream, 2)))
    order = sorted(measured, key=measured.__getitem__)
    leaders = [
        next(r for r in order if r.precision == precision)
        for precision in dict.fromkeys(r.precision for r in order)
    ]
    return leaders, {runner.name: round(ms, 3) for runner, ms in measured.items()}


# ---- the comparison


def compare(
    model: Model,
    cache: Path,
    workload: Workload,
    system: System,
    amount: Amount,
    variants: Sequence[Variant],
    runners: Sequence[Runner],
) -> dict[str, dict[str, Any]]:
    """Interleaved measurements of the leaders; the first of vicort's overlapped as well."""
    with ExitStack() as stack:
        theirs = {v.name: _Theirs(model, system, workload, v) for v in variants}
        ours: dict[str, _Ours] = {}
        for runner in [
            *runners,
            *(replace(runners[0], threads=threads, overlap=True) for threads in (1, 2)),
        ]:
            engines = stack.enter_context(
                EngineSet.open(
                    model.engines(cache, runner.backend, runner.precision), threads=runner.threads
                )
            )
            ours[runner.name] = _Ours(
                stack.enter_context(
                    VicortStream(
                        engines,
                        system,
                        workload,
                        runner.overlap,
                        max_tokens=ANSWER_TOKENS,
                        threads=runner.threads,
                    )
                )
            )
        everyone: dict[str, _Theirs | _Ours] = {**theirs, **ours}
        for each in everyone.values():
            each.run(amount.warmup)
            each.clear()
        interleaved(
            {name: partial(each.run, amount.chunks) for name, each in everyone.items()},
            amount.repeats,
        )
        asked = {name: each.ask() for name, each in everyone.items()}
    sides: dict[str, dict[str, Any]] = {"transformers": theirs, "vicort": ours}
    return {
        side: {name: each.report() | {"question_ms": asked[name]} for name, each in names.items()}
        for side, names in sides.items()
    }


class _Theirs:
    def __init__(self, model: Model, system: System, workload: Workload, variant: Variant) -> None:
        self._stream = TransformersStream(model.checkpoint, system, variant, model.side, model.side)
        self._workload, self._next = workload, 0
        self.clear()

    def clear(self) -> None:
        self._whole: list[float] = []
        self._bare: list[float] = []

    def run(self, chunks: int) -> float:
        """Milliseconds a chunk, preprocessing included."""
        times = timed(self._stream, chunks_of(self._workload, self._next, chunks))
        self._next += chunks
        self._whole.append(float(np.mean([preprocess + rest for preprocess, rest in times])))
        self._bare.append(float(np.mean([rest for _, rest in times])))
        return self._whole[-1]

    def ask(self) -> dict[str, float]:
        asked = 2 * QUESTIONS
        return _questions([self._stream.ask(each, ANSWER_TOKENS).ttft_ms for each in asked])

    def report(self) -> dict[str, Any]:
        return {
            "with_preprocessing": spread(self._whole),
            "without_preprocessing": spread(self._bare),
        }


class _Ours:
    def __init__(self, stream: VicortStream) -> None:
        self._stream, self._overlap = stream, stream.overlap
        self.clear()

    def clear(self) -> None:
        self._whole: list[float] = []
        self._bare: list[float] = []
        self._first = len(self._stream.watch.chunks)

    def run(self, chunks: int) -> float:
        """Milliseconds a chunk, preprocessing included."""
        first = len(self._stream.watch.chunks)
        self._whole.append(self._stream.push_chunks(chunks))
        self._bare.append(float(np.mean(bare_ms(self._stream, first))))
        return self._whole[-1]

    def ask(self) -> dict[str, float]:
        return _questions([each.ttft_ms for each in self._stream.ask_all(2 * len(QUESTIONS))])

    def report(self) -> dict[str, Any]:
        """Overlapped, a chunk's stages share the cores with other chunks': its own time without
        preprocessing then says nothing."""
        bare = {} if self._overlap else {"without_preprocessing": spread(self._bare)}
        stages = self._stream.stage_spreads(self._first)
        return {"with_preprocessing": spread(self._whole), **bare, "stage_ms": stages}


def full_history(
    model: Model, cache: Path, workload: Workload, amount: Amount, variant: Variant, runner: Runner
) -> dict[str, Any]:
    """Nothing dropped, everything attended to: milliseconds a chunk, without preprocessing, as the
    stream grows.

    Not compiled: every chunk brings a new shape, and torch.compile would be timed instead.
    """
    system, count = bench_system("full-history"), amount.history
    theirs = TransformersStream(model.checkpoint, system, variant, model.side, model.side)
    their_ms = [rest for _, rest in timed(theirs, chunks_of(workload, 0, count))]
    folder = model.engines(cache, runner.backend, runner.precision)
    with (
        EngineSet.open(folder, threads=runner.threads) as engines,
        VicortStream(engines, system, workload, overlap=False) as stream,
    ):
        stream.push_chunks(count)
        our_ms = bare_ms(stream, 0)
    few = max(count // 10, 2)
    places = {
        "first": slice(1, 1 + few),
        "middle": slice(count // 2, count // 2 + few),
        "last": slice(count - few, count),
    }
    return {
        "system": describe_system(system),
        "chunks": count,
        "points": {name: f"chunks {place.start}-{place.stop}" for name, place in places.items()},
        f"transformers {variant.name}": {
            name: spread(their_ms[place]) for name, place in places.items()
        },
        f"vicort {runner.name}": {name: spread(our_ms[place]) for name, place in places.items()},
    }


# ---- parts


def chunks_of(workload: Workload, first: int, count: int) -> list[list[Frame]]:
    """Chunks number `first` to first + count."""
    return [
        workload.frames(number * CHUNK_FRAMES, CHUNK_FRAMES)
        for number in range(first, first + count)
    ]


def timed(
    stream: TransformersStream, chunks: Sequence[Sequence[Frame]]
) -> list[tuple[float, float]]:
    """Wall milliseconds of each chunk: preprocessing, all the rest."""
    times = []
    for frames in chunks:
        start = time.perf_counter()
        patches = stream.preprocess(frames)
        middle = time.perf_counter()
        stream.push(frames, patches)
        times.append(((middle - start) * 1e3, (time.perf_counter() - middle) * 1e3))
    return times


def bare_ms(stream: VicortStream, first_chunk: int) -> list[float]:
    """Milliseconds of all stages but preprocessing, each chunk from `first_chunk` on."""
    stages = stream.stage_ms(first_chunk)
    return [
        sum(times)
        for times in zip(stages["vision"], stages["tokens"], stages["prefill"], strict=True)
    ]


def operations(model: Model, system: System) -> arithmetic.Operations:
    """Of one chunk when the window is full."""
    return arithmetic.of_chunk(
        read_json(model.checkpoint / "config.json"), model.side, CHUNK_FRAMES, system
    )


def _questions(ttft_ms: list[float]) -> dict[str, float]:
    """The first round of questions is a warm-up."""
    return spread(ttft_ms[len(QUESTIONS) :])
