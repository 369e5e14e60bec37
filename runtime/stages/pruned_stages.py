"""The vision and token stages of a system that prunes before the vision encoder.

Patches that did not move are never encoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk
from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import Manifest
from vicort.runtime.policies.drop import MotionPruning
from vicort.runtime.stages.grid_inputs import GridInputs
from vicort.runtime.stages.job import Job, frames_view
from vicort.runtime.stages.pruning import Kept, Pruner
from vicort.runtime.stages.unit_encoder import UnitEncoder

# Fixed cost of a run of the graph, in tokens, measured at the tiny size, where it matters.
RUN_TOKENS = 8
# Sizes that a pruned unit is padded to: a quarter of its tokens, half, three quarters, all.
BUCKETS = 4


class PrunedVision:
    """Frames -> encoded tokens, and their indices.

    Whole units go through the whole graph, as one batch; other units go through the pruned graph,
    as one batch for each bucket. Engines need time for each new shape, so there are few buckets.
    """

    name = "vision"

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engines: EngineSet,
        policy: MotionPruning,
        encoder: UnitEncoder,
    ) -> None:
        """encoder: of whole units. Raises ConfigError for an engine set without the pruned
        graph."""
        model = engines.manifest.model
        check_pruned_graph(engines.manifest, engines.folder)
        self.stream, self._device = stream, device
        self._whole, self._pruned = encoder, engines.engine("vision_pruned")
        self._pruner = Pruner(policy, model)
        self._grids = GridInputs(device, model)
        self._width, self._token_pixels = model.width, model.token_pixels
        units = model.chunk_frames // UNIT_FRAMES
        self._frames = device.empty((model.chunk_frames * model.max_pixels * 3,), np.uint8)
        self._kept = device.empty((units * model.unit_tokens,), np.int32)
        self._features = device.empty((units * model.unit_tokens, model.width), engines.dtype)

    def run_in_stream(self, job: Job) -> None:
        frames, tokens = job.buffers.frames_of(job.chunk), job.chunk.grid.tokens
        (images,) = self._device.read(self.stream, frames)
        units = self._units(job.chunk, images)
        kept = [unit.tokens for unit in units]
        told = any(
            frame.motion is not None and frame.motion.cells is not None
            for frame in job.chunk.frames
        )
        job.notes["motion"] = "vectors" if told else "frames compared"
        job.anchors = tuple(number for number, unit in enumerate(units) if unit.anchor)
        job.indices = np.concatenate(
            [unit * tokens + places for unit, places in enumerate(kept)]
        ).astype(np.int32)
        job.kept = len(job.indices)
        job.rows = job.buffers.compact[: job.kept]
        buckets = merge_buckets([bucket(len(places), tokens) for places in kept], tokens)
        for size in sorted({*buckets} - {0}):
            self._encode(
                job.chunk.grid,
                frames,
                kept,
                [unit for unit, own in enumerate(buckets) if own == size],
                size,
                job.rows,
            )

    def _units(self, chunk: Chunk, images: np.ndarray) -> list[Kept]:
        pruner = self._pruner.fork() if chunk.forked else self._pruner
        return pruner(chunk, images)

    def _encode(
        self,
        grid: Grid,
        frames: Array,
        kept: Sequence[np.ndarray],
        units: list[int],
        size: int,
        rows: Array,
    ) -> None:
        """Encode the units of one bucket, and write them to their rows of the chunk's tokens."""
        device, stream = self._device, self.stream
        if len(units) < len(kept):
            chosen = frames_view(self._frames, UNIT_FRAMES * len(units), grid, self._token_pixels)
            for place, unit in enumerate(units):
                source = frames[UNIT_FRAMES * unit : UNIT_FRAMES * (unit + 1)]
                device.copy(chosen[UNIT_FRAMES * place : UNIT_FRAMES * (place + 1)], source, stream)
            frames = chosen
        count = min(size, grid.tokens)
        flat = self._features[: len(units) * count]
        features = flat.reshape((len(units), count, self._width))
        if size > grid.tokens:
            self._whole.encode(frames, features, grid, stream)
        else:
            table = np.full((len(units), count), -1, np.int32)
            for place, unit in enumerate(units):
                table[place, : len(kept[unit])] = kept[unit]
            placed = self._kept[: table.size].reshape(table.shape)
            device.upload(placed, table, stream)
            inputs = {"frames": self._grids.frames(frames), "kept": placed}
            inputs |= self._grids.pruned(grid, stream)
            self._pruned.enqueue(inputs | {"features": features}, stream)
        ends = np.cumsum([len(tokens) for tokens in kept])
        for place, unit in enumerate(units):
            n = len(kept[unit])
            device.copy(
                rows[int(ends[unit]) - n : int(ends[unit])],
                flat[place * count : place * count + n],
                stream,
            )


class PrunedTokens:
    """The chunk's digest: the mean of everything that was encoded."""

    name = "tokens"

    def __init__(self, device: Device, stream: Stream, width: int) -> None:
        self._device = device
        self.stream = stream
        self._width = width

    def run_in_stream(self, job: Job) -> None:
        if not job.kept:
            job.mean = np.zeros(self._width, np.float32)
            return
        (rows,) = self._device.read(self.stream, job.rows)
        job.mean = rows.mean(axis=0, dtype=np.float32)


def check_pruned_graph(manifest: Manifest, folder: Path) -> None:
    """Raises ConfigError for an engine set without the pruned graph."""
    if "vision_pruned" in manifest.graphs:
        return
    why = (
        "TensorRT sets hold none, take one of backend openvino"
        if manifest.backend == "tensorrt"
        else f"rebuild with `{manifest.build_command}`"
    )
    raise ConfigError(
        f"drop policy 'motion' needs the vision_pruned graph, which {folder} lacks: {why}"
    )


def bucket(kept: int, tokens: int) -> int:
    """The size that a unit with `kept` of its tokens is padded to.

    0 where nothing is encoded, tokens + 1 for a whole unit.
    """
    if kept in (0, tokens):
        return tokens + 1 if kept else 0
    return next(
        size
        for part in range(1, BUCKETS + 1)
        if (size := math.ceil(tokens * part / BUCKETS)) >= kept
    )


def merge_buckets(buckets: Sequence[int], tokens: int) -> list[int]:
    """Merge a bucket into the next larger one where the padding costs less than a separate run."""
    sizes = sorted({*buckets} - {0, tokens + 1})
    merged = list(buckets)
    for size, larger in pairwise(sizes):
        if merged.count(size) * (larger - size) <= RUN_TOKENS:
            merged = [larger if own == size else own for own in merged]
    return merged
