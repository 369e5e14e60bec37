"""Resizes frames for the engine with NVIDIA DALI, on the CPU or on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any, Literal

import numpy as np

from vicort.runtime.devices.surface import Surface
from vicort.runtime.errors import DeviceError, VicortError

# frames in one run of the pipeline; smaller batches cost nothing extra
MAX_BATCH = 64

ResizeOn = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Box:
    """The part of the engine's frame that a letterboxed frame covers, in pixels."""

    top: int
    left: int
    height: int
    width: int


def letterbox(height: int, width: int, into_height: int, into_width: int) -> Box:
    """The largest centred box of the aspect height : width; sides round half up, an odd rest goes
    to the bottom and to the right."""
    if height * into_width <= width * into_height:  # as wide as the engine's frame
        box_height, box_width = max(1, _rounded(height * into_width, width)), into_width
    else:
        box_height, box_width = into_height, max(1, _rounded(width * into_height, height))
    return Box(
        (into_height - box_height) // 2, (into_width - box_width) // 2, box_height, box_width
    )


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


class Preprocessor:
    """Resizes with a cubic filter and antialiasing, as Hugging Face's PIL processors do. Where the
    size of the output is fixed, the aspect is kept and the rest is padded with black.

    On a GPU all work is enqueued on the caller's stream without a host wait. Not thread-safe. It
    releases the GIL while it runs.
    """

    def __init__(
        self,
        height: int | None = None,
        width: int | None = None,
        device: ResizeOn = "cpu",
        threads: int = 1,
    ) -> None:
        """height, width: of all output frames, in pixels; None: each call's output says its own
        size, and frames are stretched to it. threads: CPU threads.

        Raises VicortError if DALI is not installed, or cannot use the GPU.
        """
        self._height = height
        self._width = width
        self._device = device
        self._threads = threads
        self._images = _built(image_graph(height, width, device), device, threads)
        self._surfaces: Any = None  # built on first use

    def __call__(
        self, frames: Sequence[np.ndarray | Surface], out: Any, stream: Any = None
    ) -> None:
        """frames: F arrays [h,w,3] uint8 RGB, or surfaces in the memory of this device, of any
        size.

        out: [F,height,width,3] uint8, written in place: a NumPy array, or on a GPU a `DeviceArray`,
        which is filled in the order of `stream`, a `CudaStream` whose work calls this. The caller
        may release the frames when this returns.
        """
        size = (self._height or out.shape[1], self._width or out.shape[2])
        if tuple(out.shape) != (len(frames), *size, 3):
            raise ValueError(
                f"{len(frames)} frames into {out.shape}: not {(len(frames), *size, 3)}"
            )
        start = 0
        for kind, group in groupby(frames, type):
            same = list(group)
            for first in range(0, len(same), MAX_BATCH):
                batch = same[first : first + MAX_BATCH]
                self._run(kind, batch, out[start : start + len(batch)], stream)
                start += len(batch)

    def _run(self, kind: type, batch: list[Any], out: Any, stream: Any) -> None:
        if (
            kind is not Surface
            and self._device == "cpu"
            and all(frame.shape == out.shape[1:] for frame in batch)
        ):
            np.stack(batch, out=out)  # the filter would return the same bits
            return
        boxes = [self._box(frame.shape[0], frame.shape[1], out) for frame in batch]
        starts = [np.array((-box.top, -box.left), np.int32) for box in boxes]
        if kind is Surface:
            if self._device == "cpu" and not all(
                isinstance(surface.luma, np.ndarray) for surface in batch
            ):
                raise VicortError(
                    "frames in the GPU's memory cannot be resized on the CPU: decode there too, "
                    "with `--decode cpu`"
                )
            pipeline, inputs = self._surface_pipeline(), _surface_inputs(batch, boxes)
        else:
            sizes = [np.array((box.height, box.width), np.float32) for box in boxes]
            pipeline, inputs = (
                self._images,
                {"frames": [np.ascontiguousarray(frame) for frame in batch], "sizes": sizes},
            )
        inputs |= {"starts": starts}
        if self._height is None:
            inputs |= {"shapes": [np.array(out.shape[1:3], np.int32)] * len(batch)}
        if self._device == "cpu":
            for name, values in inputs.items():
                pipeline.feed_input(name, values, cuda_stream=None)
            (letterboxed,) = pipeline.run()
            np.copyto(out, np.asarray(letterboxed.as_cpu().as_tensor()))
            return
        try:
            letterboxed = _run_on_gpu(pipeline, inputs, out, stream)
        except RuntimeError as error:
            stream.device.memory()  # raises why, if the GPU is lost
            raise DeviceError(
                f"NVIDIA DALI cannot resize on the GPU ({_cause(error)}): see `nvidia-smi`, then "
                "run again"
            ) from error
        stream.notify(_keep_alive, letterboxed, batch)

    def _box(self, height: int, width: int, out: Any) -> Box:
        """The part of the output that a frame of height x width pixels covers."""
        into = out.shape[1:3]
        return Box(0, 0, *into) if self._height is None else letterbox(height, width, *into)

    def _surface_pipeline(self) -> Any:
        if self._surfaces is None:
            self._surfaces = _built(
                surface_graph(self._height, self._width, self._device), self._device, self._threads
            )
        return self._surfaces


def _run_on_gpu(pipeline: Any, inputs: dict[str, list[Any]], out: Any, stream: Any) -> Any:
    """What the pipeline returns, of which a copy to `out` is under way. DALI orders its own streams
    before this one on the device."""
    for name, values in inputs.items():
        on_gpu = name in PLANES
        pipeline.feed_input(name, values, cuda_stream=stream.handle if on_gpu else None)
    (letterboxed,) = pipeline.run(stream.handle)
    letterboxed.copy_to_external(
        ctypes.c_void_p(out.pointer), ctypes.c_void_p(stream.handle), non_blocking=True
    )
    return letterboxed


def _cause(error: RuntimeError) -> str:
    """Of DALI's text the first line, which says what failed."""
    return str(error).splitlines()[0][:160]


def _keep_alive(*args: object) -> None:
    """Stream callback that keeps its arguments alive until the device has read them."""


PLANES = ("luma", "chroma")  # the inputs in device memory


def _surface_inputs(batch: list[Surface], boxes: list[Box]) -> dict[str, list[Any]]:
    """The inputs of `surface_graph`, except `starts`."""
    lying = [surface.quarters % 2 == 1 for surface in batch]
    return {
        "luma": [surface.luma for surface in batch],
        "chroma": [surface.chroma for surface in batch],
        "sizes": [
            np.array((b.width, b.height) if turned else (b.height, b.width), np.float32)
            for b, turned in zip(boxes, lying, strict=True)
        ],
        "colours": [surface.to_rgb for surface in batch],
        "angles": [np.array(90 * (surface.quarters % 4), np.float32) for surface in batch],
        "mirrored": [np.array(surface.mirrored, np.int32) for surface in batch],
    }


def image_graph(height: int | None, width: int | None, device: ResizeOn) -> Any:
    """RGB images in host memory -> frames: a DALI pipeline that is not built yet, the same for CPU
    and GPU. Without height and width it takes the size of the frames as input `shapes`."""
    dali, fn, types = import_dali()

    @dali.pipeline_def
    def pipeline() -> Any:
        # On the CPU the frames stay alive until the run that reads them is over. A GPU's copy
        # engine reads them later, so it needs a copy.
        frames = fn.external_source(
            name="frames",
            device="cpu",
            dtype=types.UINT8,
            ndim=3,
            layout="HWC",
            batch=True,
            no_copy=device == "cpu",
        )
        # [2] height, width of the box
        sizes = fn.external_source(name="sizes", device="cpu", dtype=types.FLOAT, ndim=1)
        # [2] top, left of the output within the box: 0 or less
        starts = fn.external_source(name="starts", device="cpu", dtype=types.INT32, ndim=1)
        frames = frames.gpu() if device == "gpu" else frames
        boxes = fn.resize(frames, size=sizes, interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.slice(
            boxes,
            start=starts,
            shape=_shape(height, width),
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=0,
        )

    return pipeline


def surface_graph(height: int | None, width: int | None, device: ResizeOn) -> Any:
    """Surfaces -> frames: a DALI pipeline that is not built yet, the same for CPU and GPU. Its size
    is as in `image_graph`.

    Luma and chroma are resized separately, then converted to RGB and rotated at the small size.
    Resizing and the colour matrix are linear, so their order matters only where values are clipped
    at black and white.
    """
    dali, fn, types = import_dali()

    @dali.pipeline_def
    def pipeline() -> Any:
        luma, chroma = (
            fn.external_source(
                name=name, device=device, dtype=types.UINT8, ndim=3, layout="HWC", batch=True
            )
            for name in PLANES
        )
        # [2] height, width of the box before rotation
        sizes = fn.external_source(name="sizes", device="cpu", dtype=types.FLOAT, ndim=1)
        # [3, 4]
        colours = fn.external_source(name="colours", device="cpu", dtype=types.FLOAT, ndim=2)
        # degrees, counter-clockwise
        angles = fn.external_source(name="angles", device="cpu", dtype=types.FLOAT, ndim=0)
        mirrored = fn.external_source(name="mirrored", device="cpu", dtype=types.INT32, ndim=0)
        starts = fn.external_source(name="starts", device="cpu", dtype=types.INT32, ndim=1)
        planes = [
            fn.resize(plane, size=sizes, interp_type=types.INTERP_CUBIC, antialias=True)
            for plane in (luma, chroma)
        ]
        boxes = fn.coord_transform(fn.cat(*planes, axis=2), MT=colours, dtype=types.UINT8)
        boxes = fn.flip(boxes, horizontal=mirrored, vertical=0)
        boxes = fn.rotate(
            boxes, angle=angles, interp_type=types.INTERP_NN, keep_size=False, fill_value=0
        )
        return fn.slice(
            boxes,
            start=starts,
            shape=_shape(height, width),
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=0,
        )

    return pipeline


def _shape(height: int | None, width: int | None) -> Any:
    """The size of the frames: constant, or [2] of each frame."""
    _, fn, types = import_dali()
    if height is None:
        return fn.external_source(name="shapes", device="cpu", dtype=types.INT32, ndim=1)
    return height, width


def _built(graph: Any, device: ResizeOn, threads: int) -> Any:
    """Build the pipeline without prefetch: one run takes one batch and returns it.

    Only DALI's dynamic executor, the default, returns results on a stream. The simple executor is
    cheaper on the CPU.
    """
    options: dict[str, Any] = {
        "batch_size": MAX_BATCH,
        "num_threads": threads,
        "prefetch_queue_depth": 1,
    }
    if device == "cpu":
        pipeline = graph(
            **options, device_id=None, exec_pipelined=False, exec_async=False, exec_dynamic=False
        )
    else:
        pipeline = graph(**options, device_id=0, exec_dynamic=True)
    try:
        pipeline.build()
    except RuntimeError as error:
        raise VicortError(
            f"NVIDIA DALI cannot use the {device} ({_cause(error)}): see `nvidia-smi`"
        ) from error
    return pipeline


def import_dali() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Late, because the import takes a second and most of vicort does not need it. Raises
    VicortError where it cannot be loaded."""
    try:
        from nvidia import dali
        from nvidia.dali import fn, types
    except ImportError as error:
        raise VicortError(
            f"NVIDIA DALI cannot be loaded ({error}): install it with `pip install "
            "nvidia-dali-cuda130`"
        ) from error
    return dali, fn, types
