"""Appends each message to a file as a line of JSON."""

from __future__ import annotations

import fcntl
import os
import time
from typing import BinaryIO

from vicort.runtime.alerts.channel import NotDelivered
from vicort.runtime.alerts.message import Message, json_bytes
from vicort.runtime.alerts.targets import JsonlTarget
from vicort.runtime.errors import ConfigError
from vicort.runtime.written_files import appended


class JsonlChannel:
    """A line is on the disk when `deliver` returns. A line that was cut by a loss of power or a
    full disk is ended or taken back, so that every other line stays whole."""

    timeout = 30.0

    def __init__(self, target: JsonlTarget) -> None:
        self._path = target.jsonl

    def check(self, seconds: float) -> None:
        try:
            with appended(self._path, "jsonl"):
                pass
        except ConfigError as error:
            raise NotDelivered(str(error)) from error

    def deliver(self, message: Message, seconds: float) -> None:
        line = json_bytes(message.document()) + b"\n"
        try:
            with appended(self._path, "jsonl") as file:
                _lock(file, time.monotonic() + seconds)
                _append(file, line)
        except ConfigError as error:
            raise NotDelivered(str(error)) from error

    def keep(self, seconds: float) -> None:
        pass

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def _lock(file: BinaryIO, deadline: float) -> None:
    """Against other alerts and processes that append to the same file."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise NotDelivered("another program holds its lock") from error
            time.sleep(0.01)


def _append(file: BinaryIO, line: bytes) -> None:
    number = file.fileno()
    size = os.fstat(number).st_size
    if size and not _ends_with_line(number, size):
        line = b"\n" + line
    try:
        written = 0
        while written < len(line):
            written += os.write(number, line[written:])
        os.fsync(number)
    except OSError:
        os.ftruncate(number, size)
        raise


def _ends_with_line(number: int, size: int) -> bool:
    """The file is open for writing alone."""
    with open(f"/proc/self/fd/{number}", "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
