"""stdin, stdout and stderr of the command line tools, whatever the terminal and the caller say."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

READER_GONE = 141  # exit code: 128 + SIGPIPE


@contextmanager
def standard_streams() -> Iterator[list[str]]:
    """Within this context stdout and stderr take any text, and write it as UTF-8. Gives the names
    of those that the caller closed.

    They are open here and lead nowhere, so that neither a file that is opened later nor a library's
    own message takes their number. Raises SystemExit where the reader of a stream has gone.
    """
    closed = _open_missing()
    before = [(stream, stream.encoding, stream.errors) for stream in _own_streams()]
    for stream, _, _ in before:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        yield closed
    except BrokenPipeError:
        for stream, _, _ in before:
            leave_quietly(stream)
        raise SystemExit(READER_GONE) from None
    finally:
        for stream, encoding, errors in before:
            if not stream.closed:
                _restore(stream, encoding, errors)


def leave_quietly(stream: TextIO) -> None:
    """After its reader has gone, or its disk is full: what is still in the stream's buffer goes
    nowhere, so that Python says nothing about it at exit."""
    if type(stream) is io.TextIOWrapper:
        empty = os.open(os.devnull, os.O_WRONLY)
        os.dup2(empty, stream.fileno())
        os.close(empty)


def exit_at_once(code: int) -> None:
    """End this process once what it has written is out, without the ends of its libraries, which
    take seconds on a busy machine. Returns if a stream cannot be written, to end as usual."""
    logging.shutdown()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        return
    os._exit(code)


def _own_streams() -> list[io.TextIOWrapper]:
    """Not what a caller put in their place, such as a StringIO."""
    return [each for each in (sys.stdout, sys.stderr) if type(each) is io.TextIOWrapper]


def _restore(stream: io.TextIOWrapper, encoding: str, errors: str | None) -> None:
    try:
        stream.reconfigure(encoding=encoding, errors=errors)
    except OSError:  # it flushes first: nobody reads, or the disk is full
        leave_quietly(stream)


def _open_missing() -> list[str]:
    closed = []
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        closed.append(name)
        empty = os.open(os.devnull, os.O_RDWR)
        if empty != number:  # the lowest free number is this one, unless somebody took it
            os.dup2(empty, number)
            os.close(empty)
        setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    return closed
