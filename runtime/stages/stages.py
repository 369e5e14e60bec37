"""The first three stages of a chunk: preprocess -> vision -> tokens; prefill.py has the fourth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk, TokenMode
from vicort.runtime.devices.device import Array, Device, Preprocessing, Stream, StreamEvent
from vicort.runtime.engines.engine import Engine
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.drop import Drop
from vicort.runtime.stages.job import Job
from vicort.runtime.stages.unit_encoder import UnitEncoder


class Preprocess:
    """Frames of any size -> frames of the size of the chunk's grid."""

    name = "preprocess"

    def __init__(self, stream: Stream, preprocessor: Preprocessing) -> None:
        self.stream = stream
        self._preprocessor = preprocessor

    def run_in_stream(self, job: Job) -> None:
        new = job.chunk.frames[UNIT_FRAMES * job.chunk.encoded :]
        if images := [frame.image for frame in new]:
            frames = job.buffers.frames_of(job.chunk)[: len(images)]
            self._preprocessor(images, frames, self.stream)
        job.chunk = replace(
            job.chunk, frames=tuple(frame.without_image() for frame in job.chunk.frames)
        )

    def resize(self, images: Sequence[np.ndarray], out: Array) -> StreamEvent:
        """Resize F images into out [F,height,width,3], after the chunks before."""
        return self.stream.run(self._preprocessor, images, out, self.stream)


class Vision:
    """Frames -> visual tokens, P for each temporal unit."""

    name = "vision"

    def __init__(
        self,
        stream: Stream,
        encoder: UnitEncoder,
        device: Device,
        model: ModelSpec,
        cut_in: bool,
    ) -> None:
        """cut_in: whether questions may cut in: then each unit of a chunk is a run of its own, on
        devices that do not put urgent work first by themselves."""
        units = model.chunk_frames // UNIT_FRAMES
        self._feature_values = units * model.unit_tokens * model.width  # of the largest chunk
        self.stream = stream
        self._encoder = encoder
        self._device = device
        self._urgency = device.urgency
        self._cut_in = cut_in and device.urgency.holds_back
        self._forked: Array | None = None  # see `_forked_units`

    def run_in_stream(self, job: Job) -> None:
        chunk, buffers = job.chunk, job.buffers
        frames, features = buffers.frames_of(chunk), buffers.features_of(chunk)
        new = chunk.units - chunk.encoded
        # at the start of both, because engines take addresses of a certain alignment
        self._encode(frames[: UNIT_FRAMES * new], features[:new], chunk.grid)
        if chunk.forked or chunk.encoded:
            units = self._forked_units(features)
            self._device.copy(units[chunk.encoded :], features[:new], self.stream)
        if chunk.encoded:
            self._device.copy(features, units, self.stream)

    def _encode(self, frames: Array, features: Array, grid: Grid) -> None:
        units = features.shape[0]
        step = 1 if self._cut_in else max(units, 1)
        for unit in range(0, units, step):
            if unit:
                self._urgency.wait_for_urgent_work()
            own = frames[UNIT_FRAMES * unit : UNIT_FRAMES * (unit + step)]
            self._encoder.encode(own, features[unit : unit + step], grid, self.stream)

    def _forked_units(self, features: Array) -> Array:
        """[U,P,width], as `features`: units of the chunk that is being filled, which stay here from
        the first fork that encodes them until the chunk is full."""
        if self._forked is None:
            self._forked = self._device.empty((self._feature_values,), features.dtype)
        return self._forked[: math.prod(features.shape)].reshape(features.shape)


class TokenControl:
    """Selects the visual tokens that are kept; their mean is the chunk's digest."""

    name = "tokens"

    def __init__(
        self,
        stream: Stream,
        engine: Engine,
        drop: Drop,
        device: Device,
        model: ModelSpec,
        feature_dtype: np.dtype,
    ) -> None:
        self.stream = stream
        self._engine = engine
        self._drop = drop
        self._device = device
        # the newest unit that became part of the stream, and its grid; None: there is none
        self._before = device.empty((model.unit_tokens * model.width,), feature_dtype)
        self._grid: Grid | None = None

    def run_in_stream(self, job: Job) -> None:
        buffers, device = job.buffers, self._device
        features = buffers.features_of(job.chunk)
        units, tokens, width = features.shape
        threshold, positions = self._drop.rule(units, tokens)
        before = self._before[: tokens * width]
        device.upload(buffers.threshold, np.array([threshold], np.float32), self.stream)
        device.upload(buffers.positions, np.array([positions], np.int32), self.stream)
        device.upload(buffers.mode, np.array([self._mode(job.chunk)], np.int32), self.stream)
        bindings = {
            "features": features,
            "threshold": buffers.threshold,
            "positions": buffers.positions,
            "before": before.reshape((tokens, width)),
            "mode": buffers.mode,
            "kept": buffers.kept[: units * tokens],
            "count": buffers.count,
            "compact": buffers.compact[: units * tokens],
            "mean": buffers.mean,
        }
        self._engine.enqueue(bindings, self.stream)
        if self._drop.from_before and not job.chunk.forked:
            last = features[units - 1 :]
            device.copy(before.reshape((1, tokens, width)), last, self.stream)
            self._grid = job.chunk.grid
        # The only time that the host waits between stages: the count decides what is prefilled.
        count, kept, job.mean = device.read(self.stream, buffers.count, buffers.kept, buffers.mean)
        job.kept = int(count[0])
        job.rows = buffers.compact[: job.kept]
        job.indices = kept[: job.kept]

    def _mode(self, chunk: Chunk) -> TokenMode:
        if not self._drop.from_before:
            return TokenMode.WITHIN_CHUNK
        return TokenMode.FROM_BEFORE if chunk.grid == self._grid else TokenMode.FROM_FIRST
