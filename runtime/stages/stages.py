"""The stages of a chunk's journey, each a verb on a `Job`:

preprocess -> vision -> tokens -> prefill
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.policies.drop import Drop, MotionPruning
from vicort.runtime.stages.job import Job, Stage
from vicort.runtime.stages.prefill import Prefill
from vicort.runtime.stages.pruned_vision import PrunedTokens, PrunedVision


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
