"""Keeps FFmpeg from taking a user's password to another RTSP server.

FFmpeg drops the credentials of an HTTP URL when it is led to another server, but not those of an
RTSP URL. It says where it is led before it goes there, and here that line ends the attempt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import av.logging

from vicort.runtime.errors import SourceError
from vicort.runtime.redact import redact_url

LOGGER = "libav"  # PyAV's
LED = re.compile(r"Redirecting to (\S+)")
PORTS = {"rtsp": 554, "rtsps": 322}


def has_credentials(url: str) -> bool:
    return "@" in url.partition("://")[2].partition("/")[0]


class RedirectGuard(logging.Handler):
    """Calls `refuse` when FFmpeg is about to leave the server of a URL."""

    def __init__(self, url: str, refuse: Callable[[SourceError], object]) -> None:
        super().__init__(logging.DEBUG)
        self._name = redact_url(url)
        self._server = _server(url)
        self._refuse = refuse

    def emit(self, record: logging.LogRecord) -> None:
        if (led := LED.search(record.getMessage())) and _server(led[1]) != self._server:
            other = redact_url(led[1])
            self._refuse(
                SourceError(
                    f"{self._name} leads to {other}, which does not get its password: give that "
                    "URL, if you trust it",
                    f"it leads to {other}",
                )
            )


@contextmanager
def guarded(url: str, refuse: Callable[[SourceError], object]) -> Iterator[None]:
    """Within this context FFmpeg reports where it is led. `refuse` must not return."""
    if not (url.lower().startswith("rtsp") and has_credentials(url)):
        yield
        return
    guard, logger = RedirectGuard(url, refuse), logging.getLogger(LOGGER)
    before = av.logging.get_level(), logger.level, logger.propagate
    av.logging.set_level(av.logging.INFO)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(guard)
    try:
        yield
    finally:
        logger.removeHandler(guard)
        av.logging.set_level(before[0])
        logger.setLevel(before[1])
        logger.propagate = before[2]


def _server(url: str) -> tuple[str | None, int | None]:
    """Host and port. Raises nothing: another text is another server."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or PORTS.get(parts.scheme.lower())
    except ValueError:
        return None, None
