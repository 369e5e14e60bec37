"""The stages of a chunk's journey, each a verb on a `Job`:

preprocess -> vision -> tokens -> prefill
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from vicort.runtime.core import Chunk
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.engines.engine_set import Engine, EngineSet
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.language.language_run import LanguageOutput, LanguageRun
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.policies.drop import Drop, MotionPruning
from vicort.runtime.policies.ingest import LatestFrames, SlidingWindow
from vicort.runtime.policies.overflow import Refuse
from vicort.runtime.stages.anchors import Anchors
from vicort.runtime.stages.pruned_vision import PrunedTokens, PrunedVision
from vicort.runtime.stages.speaker import Speaker


class Buffers:
    """What one chunk in flight needs, allocated once."""

    def __init__(self, device: Device, model: ModelSpec, feature_dtype: np.dtype) -> None:
        units, tokens = model.chunk_frames // 2, model.unit_tokens
        self.frames = device.empty(
            (model.chunk_frames, model.image_height, model.image_width, 3), np.uint8
        )
        self.features = device.empty((units, tokens, model.width), feature_dtype)
        self.threshold = device.empty((1,), np.float32)
        self.positions = device.empty((1,), np.int32)
        self.kept = device.empty((units * tokens,), np.int32)
        self.count = device.empty((1,), np.int32)
        self.compact = device.empty((units * tokens, model.width), feature_dtype)
        self.mean = device.empty((model.width,), np.float32)


@dataclass
class Job:
    """A chunk on its way."""

    chunk: Chunk
    buffers: Buffers
    submitted: int = field(default_factory=time.perf_counter_ns)
    # for the trace: what a stage found out, in the spans of those that follow
    notes: dict[str, Any] = field(default_factory=dict)
    anchors: tuple[int, ...] = ()  # set by PrunedVision: units of the chunk that hold an I frame
    kept: int = 0  # set by TokenControl: rows of `rows` and `indices`
    # set by TokenControl: Array [kept, width], what enters the language model
    rows: Any = field(init=False)
    indices: np.ndarray = field(init=False)  # set by TokenControl: [kept] u * P + p, ascending
    # set by TokenControl: [width] float32, of the kept tokens: the chunk's digest
    mean: np.ndarray = field(init=False)


class Stage(Protocol):
    name: str
    stream: Stream

    def run(self, job: Job) -> None:
        """From the stream's own work. What it gives is there for whoever waits for this work."""
        ...


class Preprocess:
    """Frames of any size -> letterboxed frames of the engine's size."""

    name = "preprocess"

    def __init__(self, stream: Stream, preprocessor: Any) -> None:
        self.stream, self._preprocessor = stream, preprocessor

    def run(self, job: Job) -> None:
        images = [frame.image for frame in job.chunk.frames]
        self._preprocessor(images, job.buffers.frames[: len(images)], self.stream)


class Vision:
    """Frames -> visual tokens, P a temporal unit."""

    name = "vision"

    def __init__(self, stream: Stream, engine: Engine) -> None:
        self.stream, self._engine = stream, engine

    def run(self, job: Job) -> None:
        units, buffers = job.chunk.units, job.buffers
        bindings = {"frames": buffers.frames[: 2 * units], "features": buffers.features[:units]}
        self._engine.enqueue(bindings, self.stream)


class TokenControl:
    """Which visual tokens go on, and their mean, the chunk's digest."""

    name = "tokens"

    def __init__(self, stream: Stream, engine: Engine, drop: Drop, device: Device) -> None:
        self.stream = stream
        self._engine = engine
        self._drop = drop
        self._device = device

    def run(self, job: Job) -> None:
        buffers, device = job.buffers, self._device
        features = buffers.features[: job.chunk.units]
        units, tokens, _ = features.shape
        threshold, positions = self._drop.bounds(units, tokens)
        device.upload(buffers.threshold, np.array([threshold], np.float32), self.stream)
        device.upload(buffers.positions, np.array([positions], np.int32), self.stream)
        bindings = {
            "features": features,
            "threshold": buffers.threshold,
            "positions": buffers.positions,
            "kept": buffers.kept[: units * tokens],
            "count": buffers.count,
            "compact": buffers.compact[: units * tokens],
            "mean": buffers.mean,
        }
        self._engine.enqueue(bindings, self.stream)
        # The one wait of the host between stages: how much is prefilled depends on what was seen.
        count, kept, job.mean = device.read(self.stream, buffers.count, buffers.kept, buffers.mean)
        job.kept = int(count[0])
        job.rows, job.indices = buffers.compact[: job.kept], kept[: job.kept]


@dataclass(frozen=True)
class LatestUnit:
    """A unit that waits, as visual tokens, for a question to prefill it."""

    start: Fraction
    end: Fraction
    number: int
    chunk: int
    rows: Any  # Array [P, width]


class Prefill:
    """Visual tokens -> keys and values in pages."""

    name = "prefill"

    def __init__(
        self,
        device: Device,
        stream: Stream,
        run: LanguageRun,
        memory: Memory,
        timeline: Timeline,
        model: ModelSpec,
    ) -> None:
        self._device = device
        self.stream = stream
        self._language = run
        self._memory = memory
        self._timeline = timeline
        self._model = model
        ingest = memory.system.ingest
        self._anchors = (
            Anchors(ingest, device, run, memory)
            if isinstance(ingest, SlidingWindow) and ingest.anchors
            else None
        )
        self.latest: deque[LatestUnit] = deque(
            maxlen=ingest.frames // 2 if isinstance(ingest, LatestFrames) else 0
        )
        self.seen_until = Fraction(0)  # seconds, last frame of the newest unit
        self.speaker: Speaker | None = None  # set by Session where the system speaks by itself

    def run(self, job: Job) -> None:
        if self._memory.system.ingest.prefills:
            self._prefill(job)
        else:
            self._wait_for_question(job)
        self.seen_until = job.chunk.end

    def _prefill(self, job: Job) -> None:
        chunk, tokens = job.chunk, self._model.unit_tokens
        self._timeline.begin(chunk.start)
        if self._memory.system.ingest.slides:
            self._slide(chunk)
        self._keep_in_range(chunk.frames[-2].time)
        positions = np.concatenate(
            [self._timeline.unit(chunk.frames[2 * u].time) for u in range(chunk.units)]
        )[job.indices]
        of_unit = np.bincount(job.indices // tokens, minlength=chunk.units).tolist()
        if job.kept:
            out = self._attend(job, positions)
            queries = (
                self._device.read(self.stream, out.queries)[0].copy()
                if self._memory.long_term
                else None
            )
            self._memory.place_chunk(
                chunk, of_unit, out.k, out.v, positions, job.mean.copy(), self.stream, queries
            )
            if self.speaker:
                (logits,) = self._device.read(self.stream, out.logits)
                self.speaker.decide(chunk, logits[0], job.submitted)
        if self._anchors:
            self._anchors.keep(job, of_unit, self.stream)

    def _slide(self, chunk: Chunk) -> None:
        """Positions follow the prompt again once older chunks are gone; where the system has
        anchors, that is now."""
        slid = self._anchors is not None and self._memory.slide(chunk)
        if steps := self._memory.close_gaps(self._timeline.first, self.stream):
            self._timeline.rebase(steps)
        if self._anchors and slid:
            self._anchors.refresh(self.stream)

    def _attend(self, job: Job, positions: np.ndarray) -> LanguageOutput:
        """Run a chunk over what memory shows it; again where its own queries say that it should
        have seen something else."""
        while True:
            out = self._language(
                None, [job.rows], positions, self._memory.ingest_table().slots, self.stream
            )
            if not self._memory.chooses:
                return out
            (q,) = self._device.read(self.stream, out.q)
            if not self._memory.saw(q):
                return out

    def _wait_for_question(self, job: Job) -> None:
        tokens = self._model.unit_tokens
        for u in range(job.chunk.units):
            frames = job.chunk.frames[2 * u : 2 * u + 2]
            rows = self._device.empty((tokens, self._model.width), job.rows.dtype)
            self._device.copy(rows, job.rows[u * tokens : (u + 1) * tokens], self.stream)
            self.latest.append(
                LatestUnit(
                    frames[0].time, frames[1].time, job.chunk.first_unit + u, job.chunk.index, rows
                )
            )

    def _keep_in_range(self, newest: Fraction) -> None:
        """Re-base time when the newest unit would leave the range that the model was trained in."""
        excess = self._timeline.excess(newest)
        if not excess:
            return
        if isinstance(self._memory.system.overflow, Refuse):
            raise MemoryBudgetError(
                f"at {float(newest):.0f} s the stream leaves the {self._model.max_position} "
                "positions that the model was trained with, "
                "and this system forgets nothing: take a bounded one with --system vicostream"
            )
        first = self._timeline.first
        oldest = self._memory.oldest_unit()
        # What long-term memory holds is older than the window: all of it would fall to the floor.
        age = (
            0
            if oldest is None or self._memory.long_term
            else int(self._memory.first_cell(oldest)[0]) - first
        )
        steps = max(excess, age, self._timeline.range // 2)
        self._memory.rebase(steps, first, self.stream)
        self._timeline.rebase(steps)


def make_stages(
    device: Device,
    engines: EngineSet,
    memory: Memory,
    timeline: Timeline,
    run: LanguageRun,
    threads: int,
) -> tuple[Preprocess, Stage, Stage, Prefill]:
    """The four stages, each on a stream of its own. threads: of preprocessing."""
    model = engines.manifest.model
    return (
        Preprocess(
            device.stream("preprocess"),
            device.preprocessor(model.image_height, model.image_width, threads),
        ),
        *_make_vision(device, engines, memory.system.drop),
        Prefill(device, device.stream("prefill"), run, memory, timeline, model),
    )


def _make_vision(device: Device, engines: EngineSet, drop: Drop) -> tuple[Stage, Stage]:
    """From frames to the tokens that go on: dropped after the encoder, or pruned before it."""
    vision, tokens = device.stream("vision"), device.stream("tokens")
    if isinstance(drop, MotionPruning):
        return PrunedVision(device, vision, engines, drop), PrunedTokens(
            device, tokens, engines.manifest.model.width
        )
    return Vision(vision, engines.vision), TokenControl(tokens, engines.tokens, drop, device)
