"""Opens the source that a specification names."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import av

from vicort.runtime.argument_kinds import checked_whole
from vicort.runtime.errors import ConfigError, SourceError
from vicort.runtime.redact import redact_url
from vicort.runtime.safe_text import printable
from vicort.runtime.sources.animated_webp import AnimatedWebpSource
from vicort.runtime.sources.animation import is_animated_webp, is_animation
from vicort.runtime.sources.container import ContainerSource, reason
from vicort.runtime.sources.image_glob import matches
from vicort.runtime.sources.images import (
    SUFFIXES,
    ImageSource,
    is_image,
    name_of,
    others_left_out,
)
from vicort.runtime.sources.inherited_file import inherited_file
from vicort.runtime.sources.input_format import check_input_format
from vicort.runtime.sources.isolated import IsolatedSource, Silence
from vicort.runtime.sources.isolated_sound import isolated_sound
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import LiveSource, OnState, Patience
from vicort.runtime.sources.pattern import SCHEME, PatternSource
from vicort.runtime.sources.piped import ByteFile
from vicort.runtime.sources.sampler import as_rate
from vicort.runtime.sources.snapshots import SnapshotSource, shows_pictures
from vicort.runtime.sources.sound import Sound, sound_of
from vicort.runtime.sources.source import Source, Warn
from vicort.runtime.sources.source_arguments import (
    check_callbacks_and_flags,
    check_choices,
    checked_limits,
    checked_patience,
    checked_spec,
    checked_stream,
)
from vicort.runtime.sources.url_credentials import check_credentials, credentials_advice

logger = logging.getLogger(__name__)

SCHEMES = ("rtsp", "rtsps", "http", "https")
# protocols that a playlist may use: not the files of this machine
HTTP_ONLY = "http,https,tcp,tls,crypto,httpproxy,hls,data"
# prefixes of camera names, also of cameras that are not plugged in
CAMERAS = ("/dev/video", "/dev/v4l/")
FORMS = (
    "a file, rtsp://…, http(s)://…, /dev/videoN, a folder or glob of images, - (stdin), or testsrc:"
)
PIPED = (
    "pipe a video that reads from front to back: MPEG-TS, Matroska, or an MP4 written with "
    "`-movflags +faststart`"
)
STDIN = "-"
PASSED = "/proc/self/fd/0"  # a file that was passed to a decoder process
NAMES_IN_STDIN = "-images"  # of a request to a decoder process
MAX_THREADS = 1024  # that decode; 0 = as many as FFmpeg likes
MAX_ENTRIES = 1_000_000  # of a folder or a glob
GRACE = 10.0  # seconds for a decoder process to notice a time-out itself
MJPEG = "mjpeg"
MJPEG_ADVICE = f", or give `--input-format {MJPEG}` if it is a camera that sends JPEG pictures"
UNKNOWN_FORMAT = "Invalid data found when processing input"  # FFmpeg's words
WALL_SECONDS = 6  # by the clock for each second of processor time that a file may take
WAIT_LONGER = "wait longer with `--open-timeout` and `--read-timeout`"
Decode = Literal["auto", "cpu", "gpu"]
Transport = Literal["tcp", "udp"]
# images per second: the rate at which the model samples frames, so that it gets every image
IMAGE_FPS = 2


def open_source(
    spec: str | Path | Sequence[str | Path],
    *,
    stream: int | None = None,
    live: bool | None = None,
    image_fps: float | Fraction = IMAGE_FPS,
    warn: Warn | None = None,
    threads: int = 1,
    decode: Decode = "cpu",
    rtsp_transport: Transport = "tcp",
    patience: Patience | None = None,
    limits: Limits | None = None,
    on_state: OnState | None = None,
    motion: bool = False,
    at_once: bool = True,
    isolate: bool = True,
    input_format: str | None = None,
) -> Source:
    """Open a source of frames: a file, a URL (RTSP, HTTP, HLS), a camera, a folder or glob of
    images, - for stdin, or testsrc:.

    spec: a list names image files, which are shown in natural order.
    stream: index of the video stream in its container; None = the first that is not a cover
        picture.
    live: whether the source is live; None = cameras, RTSP, and URLs without a length are.
    image_fps: images per second of a folder or glob; requests a second of an http(s) URL that
        serves one picture for each, with live=True.
    warn: callback for each warning.
    threads: number of decoding threads.
    decode: decode on the CPU into arrays, or on the GPU into surfaces; auto = on the GPU if
        possible, otherwise on the CPU with a warning.
    rtsp_transport: transport of RTSP packets.
    patience: timeouts and retries of network sources.
    limits: on the size and rate of frames.
    on_state: callback for each change of state of a live URL or camera, which is reopened whenever
        it ends.
    motion: whether frames that are decoded on the CPU carry the motion of their codec.
    at_once: True = open the source now, and fail if that fails. False = RTSP, cameras and URLs with
        live=True are opened when their frames are read, with retries.
    isolate: open and decode in a process of its own, within the limits of memory and time. False =
        in this process, for sources that are trusted. Decoding on the GPU, and testsrc:, always are
        in this process.
    input_format: FFmpeg's name of the format of a file, stdin or an http(s) URL; None = found out
        from its bytes.

    Raises ConfigError for a value of a wrong kind and for an input_format that cannot be used, and
    SourceError if the source does not exist, has no video, exceeds the limits, or cannot be decoded
    on the GPU with decode="gpu".
    """
    spec = checked_spec(spec)
    check_callbacks_and_flags(live, motion, at_once, isolate, warn, on_state)
    check_choices(decode, rtsp_transport, get_args(Decode), get_args(Transport))
    patience, limits = checked_patience(patience), checked_limits(limits)
    options: dict[str, Any] = {
        "stream": checked_stream(stream),
        "live": live,
        "image_fps": as_rate(image_fps),
        "threads": checked_whole(threads, "threads", 0, MAX_THREADS),
        "rtsp_transport": rtsp_transport,
        "motion": motion,
        "input_format": input_format,
    }
    if input_format is not None:
        check_input_format(input_format)
        _check_has_format(spec)

    def once() -> Source:
        if isolate and decode == "cpu" and spec and not _is_pattern(spec):
            return _isolated(spec, options, patience, limits, warn)
        opened = open_here(spec, patience=patience, limits=limits, warn=warn, **options)
        return _decoding(opened, decode)

    if not isinstance(spec, str):
        return once()
    as_live = partial(
        LiveSource, redact_url(spec), once, patience=patience, on_state=on_state, warn=warn
    )
    if not at_once and _is_known_live(spec, live):
        return as_live()
    began = time.perf_counter()
    source = once()
    logger.info("opened %s in %.2f s", source.name, time.perf_counter() - began)
    if source.live and _can_reopen(spec):
        return as_live(first=source)
    return source


def open_sound(
    spec: str | Sequence[str],
    *,
    warn: Warn,
    stream: int | None = None,
    patience: Patience | None = None,
    limits: Limits | None = None,
    isolate: bool = True,
    input_format: str | None = None,
) -> Sound | None:
    """The sound that belongs to the video of a file or an http(s) URL, still encoded; None if there
    is none, and with a warning if it cannot be read. Arguments as in `open_source`.

    Raises SourceError if the process that reads it cannot be started, and without `isolate` if the
    source cannot be opened.
    """
    if not isinstance(spec, str) or _is_pattern(spec):
        return None
    patience, limits = patience or Patience(), limits or Limits()
    options: dict[str, Any] = {
        "stream": stream,
        "live": False,
        "image_fps": Fraction(IMAGE_FPS),
        "threads": 1,
        "rtsp_transport": "tcp",
        "motion": False,
        "input_format": input_format,
    }
    if not isolate:
        source = open_here(spec, patience=patience, limits=limits, warn=warn, **options)
        if sound := sound_of(source):
            return sound
        source.close()
        return None
    files = _files_of(spec, _scheme(spec))
    request = _request(spec, options, patience, files)
    silence = _silence(spec, patience.timeouts(spec), limits)
    return isolated_sound(
        redact_url(spec), request, files, limits=limits, seconds=silence.opening, warn=warn
    )


def open_here(
    spec: str | Sequence[str],
    *,
    live: bool | None,
    image_fps: Fraction,
    rtsp_transport: Transport,
    patience: Patience,
    motion: bool,
    input_format: str | None,
    passed: bool = False,
    **options: Any,
) -> Source:
    """Open a source in this process, and a live one for one connection. Arguments as in
    `open_source`; options: stream, warn, threads, limits. passed: whether the file of that name was
    passed to this process as its stdin. Raises SourceError."""
    if input_format is not None:
        options["format"] = input_format
    if isinstance(spec, str):
        path = PASSED if passed else spec
        opened = _open(spec, path, live, image_fps, rtsp_transport, patience, options)
    else:
        opened = _image_source([Path(each) for each in spec], name_of(spec), image_fps, options)
    if motion and isinstance(opened, ContainerSource):
        opened.report_motion()
    return opened


def _is_pattern(spec: str | Sequence[str]) -> bool:
    return isinstance(spec, str) and spec.startswith(SCHEME)


def _check_has_format(spec: str | Sequence[str]) -> None:
    """Raises ConfigError unless the source is bytes of one format."""
    scheme = _scheme(spec) if isinstance(spec, str) else None
    if isinstance(spec, str) and (
        spec == STDIN or (scheme or "").startswith("http") or (scheme is None and _is_one(spec))
    ):
        return
    raise ConfigError(
        f"--input-format is for a file, stdin or an http(s) URL, and {redact_url(name_of(spec))} "
        "is none of them: leave it out"
    )


def _is_one(spec: str) -> bool:
    """Whether a name is that of a file, which may be missing, not of a device or of images."""
    path = Path(spec)
    if _is_pattern(spec) or _is_camera(spec) or spec.startswith(CAMERAS) or path.is_dir():
        return False
    return path.exists() or not glob.has_magic(spec)


def _isolated(
    spec: str | Sequence[str],
    options: dict[str, Any],
    patience: Patience,
    limits: Limits,
    warn: Warn | None,
) -> IsolatedSource:
    """Raises SourceError."""
    if not isinstance(spec, str):
        return _isolated_images(spec, options, limits, warn)
    scheme = _scheme(spec)
    timeouts = patience.timeouts(spec)
    rate = options["image_fps"]
    snapshots = options["live"] and (scheme or "").startswith("http")
    files = _files_of(spec, scheme)
    return IsolatedSource(
        "stdin" if spec == STDIN else redact_url(spec),
        _request(spec, options, patience, files),
        files=files,
        limits=limits,
        silence=_silence(spec, timeouts, limits, between=1 / rate if snapshots else Fraction(0)),
        warn=warn,
    )


def _request(
    spec: str, options: dict[str, Any], patience: Patience, files: Sequence[int]
) -> dict[str, Any]:
    """What a decoder process is asked for. files: that it gets."""
    rate, scheme = options["image_fps"], _scheme(spec)
    return options | {
        "spec": spec,
        "passed": bool(files) and spec != STDIN,
        "image_fps": [rate.numerator, rate.denominator],
        "timeouts": patience.timeouts(spec),
        "network": scheme is not None,
        "devices": _is_camera(spec),
        # a slow or live source has its pictures judged when they come
        "ahead": not options["live"] and Path(spec).is_file(),
        "sound": False,
    }


def _files_of(spec: str, scheme: str | None) -> list[int]:
    """The open file that a source names, which a decoder process does not have. Raises
    SourceError."""
    if spec == STDIN:
        return [_stdin_file()]
    number = None if scheme else inherited_file(spec)
    if number is None:
        return []
    try:
        os.fstat(number)
    except (OSError, OverflowError) as error:
        raise _missing(spec) from error
    return [number]


def _isolated_images(
    names: Sequence[str], options: dict[str, Any], limits: Limits, warn: Warn | None
) -> IsolatedSource:
    """Raises SourceError."""
    rate, timeouts = options["image_fps"], Patience().timeouts(names[0])
    request = options | {
        "spec": NAMES_IN_STDIN,
        "passed": False,
        "image_fps": [rate.numerator, rate.denominator],
        "timeouts": timeouts,
        "network": False,
        "devices": False,
        "ahead": False,
        "sound": False,
    }
    file = os.memfd_create("vicort-names", os.MFD_CLOEXEC)  # a message may be too short for them
    try:
        with open(file, "wb", closefd=False) as content:
            content.write(b"\0".join(os.fsencode(name) for name in names))
        os.lseek(file, 0, os.SEEK_SET)
        return IsolatedSource(
            name_of(names),
            request,
            files=[file],
            limits=limits,
            silence=_silence(names[0], timeouts, limits),
            warn=warn,
        )
    finally:
        os.close(file)


def names_in_stdin() -> list[str]:
    """The names of images that `_isolated_images` wrote."""
    return [os.fsdecode(name) for name in sys.stdin.buffer.read().split(b"\0")]


def _silence(
    spec: str, timeouts: tuple[float, float], limits: Limits, *, between: Fraction = Fraction(0)
) -> Silence:
    """How long the decoder process of a source may say nothing. between: seconds from one request
    of a picture to the next one, which opens a connection."""
    opening, reading = timeouts
    if _scheme(spec) is not None or _is_camera(spec):  # twice, as it opens and then probes
        twice = 2 * (max(timeouts) if between else reading)
        return Silence(2 * opening + GRACE, twice + float(between) + GRACE, WAIT_LONGER)
    if spec == STDIN:
        return Silence(None, None, "")
    if _is_pipe(spec):
        return Silence(opening, reading, f"write a video to it, or {WAIT_LONGER}")
    wall = WALL_SECONDS * limits.seconds
    return Silence(wall, wall, "allow more with `--max-decode-time`")


def _is_pipe(spec: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(spec).stat().st_mode)
    except (OSError, ValueError):
        return False


def _stdin_file() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise SourceError("stdin is closed: give a file or a URL") from error


def _can_reopen(spec: str) -> bool:
    """Whether the source can be reopened and then continues: URLs and cameras."""
    return _scheme(spec) is not None or _is_camera(spec)


def _is_known_live(spec: str, live: bool | None) -> bool:
    """Whether the source is live, decided without opening it."""
    scheme = _scheme(spec)
    if scheme is None:
        return live is not False and (_is_camera(spec) or spec.startswith(CAMERAS))
    return scheme in SCHEMES and (scheme.startswith("rtsp") if live is None else live)


def _decoding(source: Source, decode: Decode) -> Source:
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
            raise SourceError(
                f"{source.name} cannot be decoded on the GPU: {error}, or use `--decode cpu`"
            ) from error
        source.warn(f"{source.name} is decoded on the CPU: {error}")


def _open(
    spec: str,
    file: str,
    live: bool | None,
    image_fps: float | Fraction,
    transport: Transport,
    patience: Patience,
    options: dict[str, Any],
) -> Source:
    if not spec:
        raise SourceError(f"the source is empty: give {FORMS}")
    if spec.startswith(SCHEME):
        return PatternSource(spec)
    if spec == STDIN:
        # raw: returns the available bytes without waiting for a full buffer
        pipe = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return ContainerSource(
            ByteFile(pipe),
            "stdin",
            live=bool(live),
            advice=PIPED,
            options={"protocol_whitelist": "none"},
            **options,
        )
    if scheme := _scheme(spec):
        return _open_url(spec, scheme, live, image_fps, transport, patience, options)
    path = Path(file)
    if _is_camera(file):
        return ContainerSource(
            file,
            spec,
            format="v4l2",
            live=live is not False,
            timeout=patience.timeouts(spec),
            **options,
        )
    if "format" not in options and (images := _images(spec, path)):
        return _image_source(images, spec, image_fps, options)
    if "format" not in options and path.is_file() and is_animated_webp(path):
        return AnimatedWebpSource(path, spec, warn=options["warn"], limits=options["limits"])
    return _open_file(spec, file, bool(live), options)


def _image_source(
    paths: list[Path], spec: str, image_fps: float | Fraction, options: dict[str, Any]
) -> ImageSource:
    """spec: a folder, a glob, or the name of a list of images."""
    images = [path for path in paths if is_image(path)]
    source = ImageSource(
        images, spec, fps=as_rate(image_fps), warn=options["warn"], limits=options["limits"]
    )
    if others := others_left_out(paths):
        source.warn(f"{spec}: {others}")
    return source


def _scheme(spec: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec)
    return match[1].lower() if match else None


def _is_camera(spec: str) -> bool:
    path = Path(spec)
    return spec not in ("", "-") and path.exists() and stat.S_ISCHR(path.stat().st_mode)


def _open_url(
    url: str,
    scheme: str,
    live: bool | None,
    image_fps: float | Fraction,
    transport: Transport,
    patience: Patience,
    options: dict[str, Any],
) -> Source:
    name = redact_url(url)
    if scheme not in SCHEMES:
        raise SourceError(f"{name} has the unknown scheme {scheme}://: give {FORMS}")
    check_credentials(url, name)
    advice = credentials_advice(url)
    rtsp = scheme.startswith("rtsp")
    if live is None and rtsp:
        live = True
    timeouts = patience.timeouts(url)
    connect = partial(
        ContainerSource,
        url,
        name,
        live=live,
        timeout=timeouts,
        picture_timeout=timeouts[1],
        options={"rtsp_transport": transport} if rtsp else {"protocol_whitelist": HTTP_ONLY},
        **options,
    )
    advice = f"see what it is with `ffprobe {name}`" + (f", and {advice}" if advice else "")
    try:
        source = connect(advice=advice)
    except SourceError as error:
        if rtsp or error.brief != UNKNOWN_FORMAT or "format" in options:
            raise
        if pictures := _mjpeg(connect):
            return pictures
        raise SourceError(f"{error}{MJPEG_ADVICE}", error.brief) from None
    if "format" in options and _shows_nothing(source):
        source.close()
        raise SourceError(
            f"{name} contains no picture in the format {options['format']}: leave "
            f"`--input-format` out, or {advice}",
            "no picture in this format",
        )
    if shows_pictures(source):
        return _pictures_of_url(source, partial(connect, advice=advice), live, image_fps)
    return source


def _pictures_of_url(
    first: ContainerSource,
    connect: Callable[..., ContainerSource],
    live: bool | None,
    image_fps: float | Fraction,
) -> Source:
    """A URL that answers with still pictures: asked again and again if it is live, otherwise what
    its first answer shows."""
    if not live and first.video.container.size > 0:
        first.live = False
        return first
    first.live = True  # an answer of unknown length ends with what FFmpeg calls an error
    return SnapshotSource(
        first,
        (lambda warn: connect(warn=warn)) if live else None,
        as_rate(image_fps),
        warn=first.warn,
    )


def _mjpeg(connect: Callable[..., ContainerSource]) -> ContainerSource | None:
    """What a URL serves, if it is JPEG pictures in a row, with or without lines between them; None
    if it is not. FFmpeg itself takes them only after a first line that is a boundary."""
    try:
        source = connect(format=MJPEG)
    except SourceError:
        return None
    if not _shows_nothing(source):
        return source
    source.close()
    return None


def _shows_nothing(source: ContainerSource) -> bool:
    """Whether FFmpeg found no picture while it probed a format in which each one stands alone."""
    return source.video.codec_context.codec.intra_only and not source.video.width


def _images(spec: str, path: Path) -> list[Path]:
    """What a folder or a glob contains, or a single image file; nothing for any other source.

    Raises SourceError for a folder or a glob without images.
    """
    if path.is_file():
        return [path] if is_image(path) and not is_animation(path) else []
    if not path.is_dir() and not glob.has_magic(spec):
        return []
    entries = path.iterdir() if path.is_dir() else matches(spec)
    found = list(islice(entries, MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        raise SourceError(
            f"{spec} has more than {MAX_ENTRIES} entries: divide them into several folders"
        )
    if not any(is_image(item) for item in found):
        raise SourceError(
            f"{spec} contains no images ({len(found)} entries): give one with "
            f"{', '.join(SUFFIXES)} files, or name a video file"
        )
    return found


def _missing(spec: str) -> SourceError:
    return SourceError(f"no such file {printable(redact_url(spec))}: give {FORMS}", "no such file")


def _open_file(spec: str, file: str, live: bool, options: dict[str, Any]) -> Source:
    path = Path(file)
    if not path.exists():
        raise _missing(spec)
    if path.is_socket() or path.is_block_device():
        kind = "socket" if path.is_socket() else "block device"
        raise SourceError(f"{spec} is a {kind}, which is not read: give {FORMS}", f"it is a {kind}")
    start = _first_bytes(spec, path) if path.is_file() else b""
    try:
        # with the prefix, FFmpeg does not read a colon in the name as a protocol
        source = ContainerSource(f"file:{file}", spec, live=live, **options)
    except SourceError as error:
        if start[4:8] == b"ftyp" and isinstance(error.__cause__, av.InvalidDataError):
            raise SourceError(
                f"{spec} is an MP4 cut off before its index (moov): fetch it again, or record "
                "with `-movflags +faststart`"
            ) from error.__cause__
        raise
    if path.is_file() and is_animation(path) and _has_moving_alpha(source):
        source.warn(f"{spec}: the transparency of an animated AVIF or HEIF is not shown")
    return source


def _has_moving_alpha(source: ContainerSource) -> bool:
    """Whether another track of a sequence of images tells how transparent its pictures are."""
    video = source.video
    return any(
        other is not video and other.frames == video.frames and _is_grey(other)
        for other in video.container.streams.video
    )


def _is_grey(stream: av.VideoStream) -> bool:
    context = stream.codec_context
    return context is not None and (context.pix_fmt or "").startswith("gray")


def _first_bytes(spec: str, path: Path) -> bytes:
    """The bytes that identify a format. Raises SourceError if the file is empty or unreadable."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise SourceError(
            f"{spec} cannot be read ({reason(error)}): check its permissions"
        ) from error
    if not start:
        raise SourceError(f"{spec} is empty (0 bytes): fetch or record it again")
    return start
