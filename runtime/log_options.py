"""`--verbose` and `--log-level`: what the command line tools show of the library's log.

Modules log to `logging.getLogger(__name__)`, so to loggers below `vicort`, and configure nothing:
that is left to a program, or to `log_to_stderr` in the tools.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vicort.runtime.redact import redact
from vicort.runtime.safe_text import printable, without_controls

LEVELS = ("debug", "info")  # nothing is logged above them
# the time of day as in events: UTC, ISO 8601
FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
CLOCK = "%Y-%m-%dT%H:%M:%S"


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Both set `log_level`, which is None where neither is given."""
    choice = parser.add_argument_group("log").add_mutually_exclusive_group()
    choice.add_argument(
        "--log-level",
        choices=LEVELS,
        help="write the log to stderr from this level on: info tells what is loaded and how long "
        "it takes, budgets, sizes and threads; debug also each chunk's times and what a question "
        "reads (default: no log)",
    )
    choice.add_argument(
        "--verbose",
        dest="log_level",
        action="store_const",
        const="info",
        help="the same as --log-level info",
    )


@contextmanager
def log_to_stderr(level: str | None) -> Iterator[None]:
    """Within this context, write what `vicort` logs to stderr, without the credentials of URLs.

    level: one of LEVELS; None leaves everything as it is.
    """
    if level is None:
        yield
        return
    logger, handler = logging.getLogger("vicort"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting(FORMAT, CLOCK))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Redacting(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return redact(without_controls(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
