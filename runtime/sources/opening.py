"""From what the user types to a source."""

from __future__ import annotations

import glob
import re
import stat
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from vicort.runtime.errors import SourceError
from vicort.runtime.sampler import as_rate
from vicort.runtime.sources.container import TIMEOUT, ContainerSource, reason
from vicort.runtime.sources.images import SUFFIXES, ImageSource, is_image
from vicort.runtime.sources.pattern import SCHEME, PatternSource
from vicort.runtime.sources.source import Source, Warn

SCHEMES = {"rtsp": {"rtsp_transport": "tcp"}, "rtsps": {"rtsp_transport": "tcp"}, "http": {}, "https": {}}  # FFmpeg's options for each
FORMS = "a file, rtsp://…, http(s)://…, /dev/videoN, a folder or glob of images, - (stdin), or testsrc:"
PIPED = "pipe a video that reads from front to back: MPEG-TS, Matroska, or an MP4 written with `-movflags +faststart`"
Decode = Literal["auto", "cpu", "gpu"]
IMAGE_FPS = 2  # images a second: the rate at which the model takes frames, so that it sees every one


def open_source(
    spec: str,
    *,
    stream: int | None = None,
    live: bool | None = None,
    image_fps: float | Fraction = IMAGE_FPS,
    warn: Warn | None = None,
    threads: int = 1,
    decode: Decode = "cpu",
) -> Source:
    """Open a source of frames: a file, a URL (RTSP, HTTP, HLS), a camera, a folder or glob of images, - for stdin, or testsrc:.

    stream: index of the video stream in its container; None = the first that is no cover picture.
    live: whether frames come when they come; None = cameras, RTSP, and whatever has no length but stdin and files.
    image_fps: images a second of a folder or glob. warn: gets each warning as it comes. threads: to decode with.
    decode: video on the CPU, into arrays, or on the GPU, into surfaces of its memory; auto = there if it can, else here with a warning.
    Raises SourceError if there is no such source, no video in it, or none that the GPU can decode where it must.
    """
    source = _open(spec, live, image_fps, {"stream": stream, "warn": warn, "threads": threads})
    if decode != "cpu" and isinstance(source, ContainerSource):
        try:
            _decode_on_gpu(source, decode)
        except SourceError:
            source.close()
            raise
    return source


def _decode_on_gpu(source: ContainerSource, decode: Decode) -> None:
    from vicort.runtime.sources.nvdec import NvdecDecoder, NvdecUnavailable

    try:
        source.decode_with(NvdecDecoder(source))
    except NvdecUnavailable as error:
        if decode == "gpu":
            raise SourceError(f"{source.name} cannot be decoded on the GPU: {error}, or say `--decode cpu`") from error
        source.warn(f"{source.name} is decoded on the CPU: {error}")


def _open(spec: str, live: bool | None, image_fps: float | Fraction, options: dict[str, Any]) -> Source:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec)
    if not spec:
        raise SourceError(f"the source is empty: give {FORMS}")
    if spec.startswith(SCHEME):
        return PatternSource(spec)
    if spec == "-":
        pipe = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)  # raw: gives what is there, without waiting for a full buffer
        return ContainerSource(pipe, "stdin", live=bool(live), advice=PIPED, **options)
    if scheme:
        return _open_url(spec, scheme[1].lower(), live, options)
    path = Path(spec)
    if path.exists() and stat.S_ISCHR(path.stat().st_mode):
        return ContainerSource(spec, spec, format="v4l2", live=live is not False, timeout=TIMEOUT, **options)
    if images := _images(spec, path):
        return ImageSource(images, spec, fps=as_rate(image_fps), warn=options["warn"])
    return _open_file(spec, path, bool(live), options)


def _open_url(url: str, scheme: str, live: bool | None, options: dict[str, Any]) -> Source:
    name = re.sub(r"(?<=://)[^/@]*@", "", url)  # passwords stay out of messages
    if scheme not in SCHEMES:
        raise SourceError(f"{name} has the unknown scheme {scheme}://: give {FORMS}")
    if live is None and scheme.startswith("rtsp"):
        live = True
    return ContainerSource(url, name, live=live, timeout=TIMEOUT, options=SCHEMES[scheme], **options)


def _images(spec: str, path: Path) -> list[Path]:
    """The images that a folder, a glob or an image's own name stands for; none if it is something else.

    Raises SourceError for a folder or a glob that holds none.
    """
    if path.is_file():
        return [path] if is_image(path) else []
    if not path.is_dir() and not glob.has_magic(spec):
        return []
    found = list(path.iterdir()) if path.is_dir() else [Path(match) for match in glob.glob(spec, recursive=True)]
    images = [item for item in found if is_image(item)]
    if not images:
        raise SourceError(f"{spec} holds no images ({len(found)} entries): give one with {', '.join(SUFFIXES)} files, or name a video file")
    return images


def _open_file(spec: str, path: Path, live: bool, options: dict[str, Any]) -> Source:
    if not path.exists():
        raise SourceError(f"no such file {spec}: give {FORMS}")
    start = _first_bytes(spec, path) if path.is_file() else b""
    try:
        return ContainerSource(f"file:{spec}", spec, live=live, **options)  # the prefix keeps a colon in the name from being a protocol
    except SourceError as error:
        if start[4:8] == b"ftyp" and isinstance(error.__cause__, av.InvalidDataError):
            raise SourceError(
                f"{spec} is an MP4 cut off before its index (moov): fetch it again, or record with `-movflags +faststart`"
            ) from error.__cause__
        raise


def _first_bytes(spec: str, path: Path) -> bytes:
    """What tells one format from another; raises SourceError if there is nothing, or it may not be read."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise SourceError(f"{spec} cannot be read ({reason(error)}): check its permissions") from error
    if not start:
        raise SourceError(f"{spec} is empty (0 bytes): fetch or record it again")
    return start
