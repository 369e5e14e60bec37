"""Video on a GPU: DALI's resizing and NVDEC's decoding, compared with the CPU's."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vicort.benchmarks.common.spread import seconds_of, spread
from vicort.benchmarks.common.workload import Workload
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed
from vicort.runtime.core import Frame
from vicort.runtime.devices.cuda import CudaDevice
from vicort.runtime.devices.device import Device
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.errors import VicortError
from vicort.runtime.sources import Source, open_source
from vicort.runtime.sources.nvdec import NvdecUnavailable, load_module

SIZES = ((320, 180), (1280, 720), (1920, 1080))  # width, height
INTO = (252, 448)  # height, width of the engine's frames
FRAMES = 16  # a chunk's
ALLOWED_ERROR = {"mean": 0.5, "within_2": 0.99}  # of 255: two implementations of one filter
# the colours are converted by another method: FFmpeg's is up to 3 steps darker
ALLOWED_DECODED_ERROR = {"mean": 3.0, "within_2": 0.5}
CLIP_FRAMES = 120
REPEATS = 9


def preprocess(lab: Lab) -> dict[str, Any]:
    """The same images resized on the CPU and on the GPU, and how long a chunk takes."""
    device = cuda_device(lab)
    found: dict[str, Any] = {
        "gpu": lab.gpu.name,
        "into": INTO,
        "frames": FRAMES,
        "allowed": ALLOWED_ERROR,
        "sizes": {},
    }
    try:
        for width, height in SIZES:
            images = list(Workload(width, height).images[:FRAMES])
            found["sizes"][f"{width}x{height}"] = compared = compare_preprocessing(device, images)
            check_error(
                compared["error"], ALLOWED_ERROR, f"{width}x{height} resized on the GPU", found
            )
    finally:
        device.close()
    return found


def cuda_device(lab: Lab) -> CudaDevice:
    return CudaDevice(lab.gpu, kernels=None)  # type: ignore[arg-type]  # it has no pool here


def gpu_preprocessor() -> Preprocessor:
    try:
        return Preprocessor(*INTO, device="gpu")
    except VicortError as error:
        raise Skip(str(error)) from error


def compare_preprocessing(device: CudaDevice, images: list[np.ndarray]) -> dict[str, Any]:
    on_cpu, on_gpu = Preprocessor(*INTO), gpu_preprocessor()
    wanted = np.empty((len(images), *INTO, 3), np.uint8)
    cpu = seconds_of(lambda: on_cpu(images, wanted), 1, REPEATS)
    stream, out = device.stream("preprocess"), device.empty(wanted.shape, np.uint8)

    def once() -> float:
        start = time.perf_counter()
        on_gpu(images, out, stream)
        enqueued = time.perf_counter() - start
        stream.finish()
        return enqueued

    def work() -> tuple[list[float], list[float], np.ndarray]:
        enqueued: list[float] = []
        whole = seconds_of(lambda: enqueued.append(once()), 2, REPEATS)
        return whole, enqueued[2:], np.array(device.read(stream, out)[0])

    whole, enqueued, got = stream.run(work).done()
    return {
        "error": error_of(got, wanted),
        "cpu_ms": spread([1e3 * value for value in cpu]),
        "gpu_ms": spread([1e3 * value for value in whole]),
        # until the call returns; the rest runs without the host
        "host_part_ms": spread([1e3 * value for value in enqueued]),
    }


def error_of(got: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    error = np.abs(got.astype(np.int16) - wanted)
    return {
        "mean": round(float(error.mean()), 4),
        "within_2": round(float((error <= 2).mean()), 5),
        "max": float(error.max()),
    }


def check_error(
    error: dict[str, float], allowed: dict[str, float], what: str, found: dict[str, Any]
) -> None:
    if error["mean"] > allowed["mean"] or error["within_2"] < allowed["within_2"]:
        raise StepFailed(f"{what} is {error} off the CPU's, {allowed} is allowed", found)


# ---- decoding


def nvdec(lab: Lab) -> dict[str, Any]:
    """The same clip decoded by NVDEC and by FFmpeg: frames, times, pixels after resizing, and
    frames a second."""
    lab.gpu  # noqa: B018 (skips without one)
    try:
        load_module()
    except NvdecUnavailable as error:
        raise Skip(str(error)) from error
    found: dict[str, Any] = {"gpu": lab.gpu.name, "allowed": ALLOWED_DECODED_ERROR, "clips": {}}
    device = cuda_device(lab)
    try:
        for width, height in SIZES:
            path = lab.folder / f"clip-{width}x{height}.mp4"
            if not path.is_file():
                write_clip(path, width, height)
            found["clips"][path.name] = compared = compare_decoding(device, path)
            if compared["different_times"]:
                raise StepFailed(
                    f"NVDEC gives other frames or times of {path.name} than FFmpeg", found
                )
            check_error(
                compared["error"], ALLOWED_DECODED_ERROR, f"{path.name} decoded by NVDEC", found
            )
    finally:
        device.close()
    return found


def write_clip(path: Path, width: int, height: int) -> None:
    """H.264 of BT.709 with B frames, 25 a second."""
    images, temporary = Workload(width, height).images, path.with_suffix(".part.mp4")
    with av.open(str(temporary), "w") as container:
        options = {
            "preset": "veryfast",
            "crf": "23",
            "bf": "2",
            "colorspace": "1",
            "color_primaries": "1",
            "color_trc": "1",
        }
        track = container.add_stream("libx264", rate=25, options=options)
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        for index in range(CLIP_FRAMES):
            frame = av.VideoFrame.from_ndarray(images[index % len(images)], format="rgb24")
            container.mux(track.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(track.encode())
    temporary.rename(path)


def compare_decoding(device: Device, path: Path) -> dict[str, Any]:
    frames, seconds = {}, {}
    for decode in ("cpu", "gpu"):
        with open_source(str(path), decode=decode) as source:
            seconds[decode], frames[decode] = timed(source)
    few = slice(0, None, max(1, len(frames["cpu"]) // FRAMES))
    wanted = resized_on_cpu([frame.image for frame in frames["cpu"][few]])
    got = resized_on_gpu(device, [frame.image for frame in frames["gpu"][few]])
    times: dict[str, list[tuple[Fraction, int]]] = {
        key: [(f.time, f.index) for f in each] for key, each in frames.items()
    }
    return {
        "frames": len(frames["cpu"]),
        "different_times": times["cpu"] != times["gpu"],
        "error": error_of(got, wanted),
        "frames_a_second": {key: round(len(frames[key]) / seconds[key], 1) for key in seconds},
    }


def timed(source: Source) -> tuple[float, list[Frame]]:
    start = time.perf_counter()
    found = list(source)
    return time.perf_counter() - start, found


def resized_on_cpu(images: list[Any]) -> np.ndarray:
    out = np.empty((len(images), *INTO, 3), np.uint8)
    Preprocessor(*INTO)(images, out)
    return out


def resized_on_gpu(device: Device, images: list[Any]) -> np.ndarray:
    preprocessor, stream = gpu_preprocessor(), device.stream("decoded")
    out = device.empty((len(images), *INTO, 3), np.uint8)

    def work() -> np.ndarray:
        preprocessor(images, out, stream)
        return np.array(device.read(stream, out)[0])

    return stream.run(work).done()
