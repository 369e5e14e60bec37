"""Frames of any size and aspect -> letterboxed frames of the engine's size, with NVIDIA DALI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from vicort.runtime.errors import VicortError

BATCH = 64  # most frames in one run of the pipeline; a bound only, smaller batches cost nothing extra


@dataclass(frozen=True)
class Box:
    """Where a letterboxed frame lies in the engine's frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def letterbox(height: int, width: int, into_height: int, into_width: int) -> Box:
    """The largest centred box of the aspect height : width; sides round half up, an odd rest goes to the bottom and to the right."""
    if height * into_width <= width * into_height:  # as wide as the engine's frame
        box_height, box_width = max(1, _rounded(height * into_width, width)), into_width
    else:
        box_height, box_width = into_height, max(1, _rounded(width * into_height, height))
    return Box((into_height - box_height) // 2, (into_width - box_width) // 2, box_height, box_width)


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


class Preprocessor:
    """Resizes with a cubic filter and antialiasing, as Hugging Face's PIL processors do, onto black bars.

    Not for two threads at once; while it runs, other Python threads do too.
    """

    def __init__(self, height: int, width: int, device: Literal["cpu", "gpu"] = "cpu", threads: int = 1) -> None:
        """height, width: of the frames that come out, in pixels. Raises VicortError if DALI is not installed."""
        self._height, self._width = height, width
        self._pipeline = _build(height, width, device, threads)

    def __call__(self, frames: Sequence[np.ndarray], out: np.ndarray, stream: object = None) -> None:
        """frames: F arrays [h, w, 3] uint8 RGB, each of any size; out: [F, height, width, 3] uint8, written."""
        if out.shape != (len(frames), self._height, self._width, 3):
            raise ValueError(f"{len(frames)} frames into {out.shape}: not {(len(frames), self._height, self._width, 3)}")
        if all(frame.shape == out.shape[1:] for frame in frames):  # nothing to resize: the filter would return them bit by bit
            np.stack(frames, out=out)
            return
        for start in range(0, len(frames), BATCH):
            batch = slice(start, start + BATCH)
            self._run(frames[batch], out[batch])

    def _run(self, frames: Sequence[np.ndarray], out: np.ndarray) -> None:
        boxes = [letterbox(frame.shape[0], frame.shape[1], self._height, self._width) for frame in frames]
        self._pipeline.feed_input("frames", [np.ascontiguousarray(frame) for frame in frames])
        self._pipeline.feed_input("sizes", [np.array((box.height, box.width), np.float32) for box in boxes])
        self._pipeline.feed_input("starts", [np.array((-box.top, -box.left), np.int32) for box in boxes])
        (letterboxed,) = self._pipeline.run()
        np.copyto(out, np.asarray(letterboxed.as_cpu().as_tensor()))


def _build(height: int, width: int, device: str, threads: int) -> Any:
    """The pipeline, the same for CPU and GPU. Nothing in it runs ahead: one run is one batch, in and out."""
    dali, fn, types = _import_dali()

    @dali.pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None if device == "cpu" else 0)
    def pipeline() -> Any:
        # no_copy: the frames are only read, and live until the run that reads them is over
        frames = fn.external_source(name="frames", device="cpu", dtype=types.UINT8, ndim=3, layout="HWC", batch=True, no_copy=True)
        sizes = fn.external_source(name="sizes", device="cpu", dtype=types.FLOAT, ndim=1)  # [2] height, width of the box
        starts = fn.external_source(name="starts", device="cpu", dtype=types.INT32, ndim=1)  # [2] top, left of the output in it: 0 or less
        frames = frames.gpu() if device == "gpu" else frames
        boxes = fn.resize(frames, size=sizes, interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.slice(boxes, start=starts, shape=(height, width), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)

    built = pipeline(exec_pipelined=False, exec_async=False, exec_dynamic=False, prefetch_queue_depth=1)
    built.build()
    return built


def _import_dali() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Only when a preprocessor is made: the import takes a while, and most of vicort can do without."""
    try:
        from nvidia import dali
        from nvidia.dali import fn, types
    except ImportError as error:
        raise VicortError(f"NVIDIA DALI cannot be loaded ({error}): install it with `pip install nvidia-dali-cuda130`") from error
    return dali, fn, types
