"""Names of FFmpeg's demuxers, for sources whose bytes do not say what they are."""

from __future__ import annotations

import av

from vicort.runtime.argument_kinds import check_kind
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

# formats whose bytes hold neither the size nor the kind of their pixels
INCOMPLETE = ("rawvideo", "bitpacked", "v210", "v210x")
NO_FILE = 1  # FFmpeg's flag of devices and networks: AVFMT_NOFILE


def check_input_format(name: str) -> None:
    """Raises ConfigError unless FFmpeg has a demuxer of that name that reads bytes alone."""
    check_kind(name, str, "input_format", "FFmpeg's name of a format, or None")
    try:
        known = av.ContainerFormat(name, "r")
    except ValueError:
        raise ConfigError(
            f"--input-format {shown(name)} is no format that FFmpeg reads: give one that "
            "`ffmpeg -demuxers` lists, such as mjpeg, h264, hevc, mpegts or matroska"
        ) from None
    if name in INCOMPLETE:
        raise ConfigError(
            f"--input-format {name} does not say how large its pictures are: write the video as "
            "YUV4MPEG, such as with `ffmpeg -f rawvideo -video_size 640x480 -i … -f yuv4mpegpipe`"
        )
    if known.flags & NO_FILE:
        raise ConfigError(
            f"--input-format {name} reads no bytes of a file, stdin or an http(s) URL: name the "
            "source itself, such as /dev/video0 or rtsp://…"
        )
