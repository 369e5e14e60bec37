"""A chunk on its way through the stages."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk
from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import ModelSpec


class Buffers:
    """Device memory for one chunk in flight, allocated once, for the largest grid.

    `frames_of` and `features_of` are views of it for one grid.
    """

    def __init__(self, device: Device, model: ModelSpec, feature_dtype: np.dtype) -> None:
        units = model.chunk_frames // UNIT_FRAMES
        tokens = units * model.unit_tokens
        self._token_pixels, self._width = model.token_pixels, model.width
        self.frames = device.empty((model.chunk_frames * model.max_pixels * 3,), np.uint8)
        self.features = device.empty((tokens * model.width,), feature_dtype)
        self.threshold = device.empty((1,), np.float32)
        self.positions = device.empty((1,), np.int32)
        self.mode = device.empty((1,), np.int32)
        self.kept = device.empty((tokens,), np.int32)
        self.count = device.empty((1,), np.int32)
        self.compact = device.empty((tokens, model.width), feature_dtype)
        self.mean = device.empty((model.width,), np.float32)

    def frames_of(self, chunk: Chunk) -> Array:
        """[F,height,width,3] uint8: the frames of a chunk, resized to its grid."""
        return frames_view(self.frames, len(chunk.frames), chunk.grid, self._token_pixels)

    def features_of(self, chunk: Chunk) -> Array:
        """[U,P,width]: the visual tokens of a chunk."""
        shape = (chunk.units, chunk.grid.tokens, self._width)
        return self.features[: math.prod(shape)].reshape(shape)


def frames_view(flat: Array, count: int, grid: Grid, token_pixels: int) -> Array:
    """[count,height,width,3] of the first bytes of `flat`."""
    shape = (count, *grid.pixels(token_pixels), 3)
    return flat[: math.prod(shape)].reshape(shape)


@dataclass
class Job:
    """A chunk and what the stages have made of it so far."""

    chunk: Chunk
    buffers: Buffers
    entered: int = field(default_factory=time.perf_counter_ns)  # when it entered the pipeline
    notes: dict[str, Any] = field(default_factory=dict)  # shown in the trace, in later spans
    anchors: tuple[int, ...] = ()  # set by PrunedVision: units of the chunk with an I frame
    kept: int = 0  # set by TokenControl: rows of `rows` and `indices`
    rows: Array = field(init=False)  # set by TokenControl: [kept, width], input of the LLM
    indices: np.ndarray = field(init=False)  # set by TokenControl: [kept] u * P + p, ascending
    mean: np.ndarray = field(init=False)  # set by TokenControl: [width] float32, the digest


class Stage(Protocol):
    name: str
    stream: Stream

    def run_in_stream(self, job: Job) -> None:
        """Enqueue the stage's work. Other streams wait for it before they use its results."""
        ...
