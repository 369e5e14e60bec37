"""The pipeline at real size by the wall clock: stages, overlap, decoding, first tokens.

Each function is a step of gpu.check and needs the engines of step `<size>-build`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from vicort.benchmarks.common import first_token
from vicort.benchmarks.common.checkpoints import read_json
from vicort.benchmarks.common.spread import Spread, interleaved, spread
from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.vision_units import vision_ms_a_unit
from vicort.benchmarks.common.workload import (
    CHUNK_FRAMES,
    QUESTIONS,
    Workload,
    bench_system,
    describe_system,
)
from vicort.benchmarks.cpu import arithmetic
from vicort.benchmarks.gpu.engine_steps import stage_ms
from vicort.benchmarks.gpu.goals import GOALS, PUBLISHED
from vicort.benchmarks.gpu.kernel_steps import matrix_product_ms
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed
from vicort.benchmarks.gpu.nvidia_smi import nvidia_smi
from vicort.benchmarks.gpu.real_models import Place
from vicort.benchmarks.gpu.torch_resizing import resizer
from vicort.runtime.core import Freshness, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.sources.nvdec import NvdecUnavailable, load_module
from vicort.runtime.sources.opening import Decode

MATRIX_SIDE = 8192


@dataclass(frozen=True)
class PipelineAmount:
    """How much each step measures."""

    warmup: int = 30  # chunks: graphs are captured, and the window of 4 chunks is full
    stages: int = 100  # chunks, one stage at a time
    unit_runs: int = 40  # of vision, for each number of units
    chunks: int = 200  # a measurement of the pipeline …
    repeats: int = 5  # … of each mode in turn: 1,000 chunks of each
    encoded_chunks: int = 60  # in a clip
    encoded_repeats: int = 3
    filled: int = 120  # chunks on a stream before it is asked
    questions: int = 200  # under each load
    answers: int = 8  # that are let run on, for the time between tokens
    answer_tokens: int = 48
    real_time_fps: int = 30
    width: int = 640  # pixels of a frame before preprocessing
    height: int = 360
    device_mb: float = 4096  # of pages; both tiers are full before the pipeline's last measurement
    # of pinned memory, for each of two sessions: a machine may have little until it is asked for
    host_mb: float = 1024


AMOUNT = PipelineAmount()


@dataclass(frozen=True)
class PipelineSetup:
    """Engines for frames of one size, and the stream that they run."""

    place: Place
    side: int
    engines: EngineSet
    workload: Workload
    system: System

    def stream(self, overlap: bool, **options: Any) -> VicortStream:
        return VicortStream(self.engines, self.system, self.workload, overlap, **options)

    @property
    def operations(self) -> arithmetic.Operations:
        return operations(self.place, self.side, self.system)

    def describe(self) -> dict[str, Any]:
        return {
            "gpu": self.place.lab.gpu.name,
            "backend": self.place.backend,
            "model": self.place.size.name,
            "side": self.side,
            "resized_by": resizer(),
            "chunk_frames": CHUNK_FRAMES,
            "workload": self.workload.describe(),
            "system": describe_system(self.system),
            "clocks": nvidia_smi(),
        }


@contextmanager
def pipeline_setup(lab: Lab, name: str, side: int, fps: int = 2) -> Iterator[PipelineSetup]:
    """Raises Skip if the engines are not there."""
    place = Place.of(lab, name)
    system = bench_system(device_mb=AMOUNT.device_mb, host_mb=AMOUNT.host_mb)
    with place.open(side) as engines:
        yield PipelineSetup(
            place, side, engines, Workload(AMOUNT.width, AMOUNT.height, fps), system
        )


def operations(place: Place, side: int, system: System) -> arithmetic.Operations:
    """Of one chunk."""
    return arithmetic.of_chunk(
        read_json(place.checkpoint / "config.json"), side, CHUNK_FRAMES, system
    )


class DeviceMemory:
    """Gigabytes of the GPU's memory in use by all processes, at the noted moments."""

    def __init__(self, lab: Lab) -> None:
        self._driver = lab.gpu.driver
        self.gb: dict[str, float] = {}
        self.note("before")

    def note(self, moment: str) -> None:
        free, total = self._driver.memory()
        self.gb[moment] = round((total - free) / 1e9, 3)


# ---- stages


def stages(lab: Lab, name: str, side: int) -> dict[str, Any]:
    """Each stage alone, one after another: milliseconds a chunk between two marks on its stream,
    and the rate of its arithmetic. Preprocessing begins on an idle stream, so that the host's part
    of it lies between the marks too. And vision alone, by the units in a run."""
    memory = DeviceMemory(lab)
    with pipeline_setup(lab, name, side) as work:
        memory.note("engines loaded")
        with work.stream(overlap=False) as stream:
            stream.push_chunks(AMOUNT.warmup)
            memory.note("session warm")
            stream.push_chunks(AMOUNT.stages)
            ms = stage_ms(stream, AMOUNT.warmup)
        found = work.describe() | {
            "chunks": AMOUNT.stages,
            "warmup": AMOUNT.warmup,
            "stage_ms": ms,
            "vision_ms_a_unit": vision_ms_a_unit(work.engines, AMOUNT.unit_runs),
            "device_gb": memory.gb,
        }
        gflop = work.operations.gflop()
    limit = matrix_ceiling()
    return found | {
        "gflop_a_chunk": gflop,
        "ceiling": limit,
        "rates": stage_rates(ms, gflop, limit),
    }


def stage_rates(
    ms: dict[str, Spread], gflop: dict[str, float], limit: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """TFLOP/s of each stage that multiplies matrices, and its share of the ceiling where that was
    measured."""
    found = {}
    for stage in ("vision", "prefill"):
        rate = gflop[stage] / ms[stage]["median"]
        found[stage] = {"tflop_s": round(rate, 2)}
        if "tflop_s" in limit:
            found[stage]["share_of_matrix_ceiling"] = round(rate / limit["tflop_s"], 4)
    return found


def matrix_ceiling() -> dict[str, Any]:
    """TFLOP/s of a large bf16 matrix product, or the reason why it was not measured."""
    try:
        ms = matrix_product_ms(MATRIX_SIDE)
    except (Skip, StepFailed) as reason:
        return {"skipped": str(reason)}
    return {
        "matrix_side": MATRIX_SIDE,
        "ms": ms,
        "tflop_s": round(2 * MATRIX_SIDE**3 / 1e9 / ms["median"], 1),
    }


# ---- the whole pipeline


def pipeline(lab: Lab, name: str, side: int) -> dict[str, Any]:
    """Overlapped against sequential from frames in memory, preprocessing included, first frame in
    to last page placed."""
    memory = DeviceMemory(lab)
    with ExitStack() as stack:
        work = stack.enter_context(pipeline_setup(lab, name, side))
        memory.note("engines loaded")
        streams: dict[str, VicortStream] = {}
        for mode, overlap in (("overlapped", True), ("sequential", False)):
            streams[mode] = stack.enter_context(work.stream(overlap))
            streams[mode].push_chunks(AMOUNT.warmup)
            memory.note(f"{mode} session warm")
        ms = interleaved(
            {mode: partial(stream.push_chunks, AMOUNT.chunks) for mode, stream in streams.items()},
            AMOUNT.repeats,
        )
        memory.note("at the end")
        found = work.describe() | {
            "source": "frames in memory",
            "warmup": AMOUNT.warmup,
            "chunks_of_each": AMOUNT.chunks * AMOUNT.repeats,
            "ms_a_chunk": {mode: spread(values) for mode, values in ms.items()},
            "gain_by_round": spread(
                [slow / fast for slow, fast in zip(ms["sequential"], ms["overlapped"], strict=True)]
            ),
            "stage_ms": {mode: stage_ms(stream, AMOUNT.warmup) for mode, stream in streams.items()},
            "pages": {mode: stream.session.summary().pages for mode, stream in streams.items()},
            "device_gb": memory.gb,
        }
        gflop = work.operations.gflop()
    return found | {
        "gflop_a_chunk": gflop,
        **reach(found["ms_a_chunk"], gflop["total"], matrix_ceiling()),
    }


def reach(ms: dict[str, Spread], gflop: float, limit: dict[str, Any]) -> dict[str, Any]:
    """Frames a second, what the ceiling allows for the pipeline's arithmetic, and the share of
    that; gflop: of a chunk."""
    rates = {mode: round(CHUNK_FRAMES / values["median"] * 1e3, 1) for mode, values in ms.items()}
    found: dict[str, Any] = {"frames_a_second": rates, "ceiling": limit, "published": PUBLISHED}
    if "tflop_s" in limit:
        allowed = CHUNK_FRAMES / gflop * 1e3 * limit["tflop_s"]
        share = max(rates.values()) / allowed
        goal = GOALS["share_of_matrix_ceiling"]
        found |= {
            "ceiling_allows_frames_a_second": round(allowed, 1),
            "share_of_matrix_ceiling": round(share, 4),
        }
        found |= {"goal": goal, "goal_reached": share >= goal}
    return found


# ---- decoding included


def encoded(lab: Lab, name: str, side: int, decode: Decode) -> dict[str, Any]:
    """Overlapped, from an encoded H.264 file: decoding included, opening not."""
    from vicort.benchmarks.common.overlap import reader

    Place.of(lab, name)
    if decode == "gpu":
        try:
            load_module()
        except NvdecUnavailable as error:
            raise Skip(str(error)) from error
    with pipeline_setup(lab, name, side) as work, work.stream(overlap=True) as stream:
        clip = written_clip(lab.folder, work.workload, AMOUNT.encoded_chunks * CHUNK_FRAMES)
        read = reader(stream, clip, 1 if decode == "gpu" else 4, AMOUNT.encoded_chunks, decode)
        read()  # warms up
        ms = [read() for _ in range(AMOUNT.encoded_repeats)]
        return work.describe() | {
            "source": f"H.264 file, decoded on the {decode.upper()}",
            "chunks": AMOUNT.encoded_chunks * AMOUNT.encoded_repeats,
            "ms_a_chunk": spread(ms),
            "frames_a_second": round(CHUNK_FRAMES / spread(ms)["median"] * 1e3, 1),
        }


def written_clip(folder: Path, workload: Workload, frames: int) -> Path:
    path = folder / f"stream-{workload.width}x{workload.height}-{frames}.mp4"
    if not path.is_file():
        partial_file = path.with_name(f"part-{path.name}")
        workload.encode(partial_file, frames)
        partial_file.rename(path)
    return path


# ---- first tokens, and those that follow


def questions(lab: Lab, name: str, side: int) -> dict[str, Any]:
    """Time to the first token idle, at 1x and while ingesting at full rate, then the time between
    tokens: of answers that wait for every frame before the question, and of answers from what is in
    memory."""
    with pipeline_setup(lab, name, side, AMOUNT.real_time_fps) as work:
        measured = {freshness: _questions(work, freshness) for freshness in get_args(Freshness)}
        at_1x, goal = f"1x real time, {work.workload.fps} frames/s", GOALS["ttft_p99_ms"]
        goals = [
            {
                "freshness": freshness,
                "load": load,
                "p99_ms": goal,
                "reached": measured[freshness]["loads"][load]["ttft_ms"]["p99"] <= goal,
            }
            for freshness, load in (
                ("now", first_token.FULL_RATE),
                ("now", at_1x),
                ("complete", at_1x),
            )
        ]
        return work.describe() | {
            "chunks_before": AMOUNT.filled,
            "answer_tokens_at_most": first_token.ANSWER_TOKENS,
            "freshness": measured,
            "goals": goals,
            "goal_reached": all(goal["reached"] for goal in goals),
        }


def _questions(work: PipelineSetup, freshness: Freshness) -> dict[str, Any]:
    loads = first_token.by_load(
        work.engines, work.system, work.workload, AMOUNT.filled, AMOUNT.questions, freshness
    )
    with work.stream(overlap=True, freshness=freshness) as stream:
        stream.push_chunks(AMOUNT.filled)
        first_token.ask_at_every_unit(stream)
        idle = between_tokens(stream.session, AMOUNT.answers, AMOUNT.answer_tokens)
        with first_token.running(stream, first_token.at_full_rate):
            loaded = between_tokens(stream.session, AMOUNT.answers, AMOUNT.answer_tokens)
    return {"loads": loads, "between_tokens_ms": {"idle": idle, first_token.FULL_RATE: loaded}}


def between_tokens(session: Session, answers: int, tokens: int) -> Spread | str:
    """Milliseconds from one token to the next, the mean of each answer; a text if no answer had two
    tokens."""
    sampling, means = Sampling(max_tokens=tokens), []
    for number in range(answers + 1):
        start = time.perf_counter()
        answer = session.ask(QUESTIONS[number % len(QUESTIONS)], sampling=sampling)
        rest = (time.perf_counter() - start) * 1e3 - answer.ttft_ms
        if number and answer.tokens > 1:  # the first is a warm-up
            means.append(rest / (answer.tokens - 1))
    return spread(means) if means else "every answer had fewer than two tokens"
