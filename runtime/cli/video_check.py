"""vicort-run's --render: what is refused before the run."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vicort.runtime.errors import ConfigError
from vicort.runtime.redact import redact_url
from vicort.runtime.rendering.lettering import named_typeface
from vicort.runtime.rendering.video_file import FORMATS, check_encoder
from vicort.runtime.safe_text import printable
from vicort.runtime.sources.opening import CAMERAS, STDIN
from vicort.runtime.written_files import check_target

OPTION = "--render"
LIVE = ("rtsp://", "rtsps://")


def check_video_output(
    path: Path,
    sources: Sequence[str | tuple[str, ...]],
    *,
    live: bool,
    font: Path | None,
) -> None:
    """Refuse what could not be written after a run of hours. live: whether the source is said to
    be. Raises ConfigError."""
    name = f"{OPTION} {printable(str(path))}"
    if path.suffix.lower() not in FORMATS:
        *others, last = FORMATS
        raise ConfigError(
            f"{name} is no video file that is written: name one that ends in "
            f"{', '.join(others)} or {last}"
        )
    if len(sources) > 1:
        raise ConfigError(
            f"{name} takes the video of one source, and {len(sources)} are given: run vicort-run "
            "once for each"
        )
    for source in sources:
        if isinstance(source, str):
            _check_source(source, path, live)
    check_target(path, OPTION)
    check_encoder()
    if font is not None:
        named_typeface(font)


def _check_source(source: str, path: Path, live: bool) -> None:
    """Raises ConfigError for a source that cannot be read twice, or is the file to be written."""
    if source == STDIN:
        raise cannot_be_read_twice("stdin")
    if live or source.lower().startswith(LIVE) or source.startswith(CAMERAS):
        raise cannot_be_read_twice(redact_url(source))
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError):  # a URL, a pattern, or a file that is missing
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise cannot_be_read_twice(printable(source))
    if path.exists() and path.samefile(source):
        raise ConfigError(f"{OPTION} {printable(str(path))} is the source: name another file")


def cannot_be_read_twice(name: str) -> ConfigError:
    """The error for a source that ends when it has been read."""
    return ConfigError(
        f"{OPTION} reads the video a second time, and {name} is gone once it was read: record it, "
        f"such as with `ffmpeg -i SOURCE -c copy clip.mkv`, then run vicort-run on the file"
    )
