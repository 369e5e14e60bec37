"""A chunk on its way through the stages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vicort.runtime.core import Chunk
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.manifest import ModelSpec


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
