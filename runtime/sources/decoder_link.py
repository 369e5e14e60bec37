"""Messages between this process and a decoder process: JSON over a Unix socket, with files beside
it. Nothing in a message is run or unpickled."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 1 << 17  # bytes
MAX_FILES = 4  # passed with one message
ENDED = "it has ended"
FILE_BYTES = 4  # of a file's number
FILES_SPACE = socket.CMSG_LEN(MAX_FILES * FILE_BYTES)


class LinkClosed(Exception):
    """The other end has gone, or sent what is no message."""


class FilesLost(LinkClosed):
    """A message came without all of its files: this process has too many open."""

    def __init__(self, files: Sequence[int]) -> None:
        """files: the first of them, which came; whoever catches this closes them."""
        super().__init__("this process may not open more files: raise the limit, `ulimit -n`")
        self.files = files


class Link:
    """One end of a connection. Each message is a list that begins with its kind."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._arrival = select.poll()
        self._arrival.register(end, select.POLLIN)
        end.setblocking(True)  # a program may have set another default for new sockets
        self._buffer = bytearray(MAX_MESSAGE)  # of the message that is received
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE)

    @classmethod
    def pair(cls) -> tuple[Link, socket.socket]:
        """A new connection: this end, and the socket of the other end."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there.setblocking(True)
        return cls(here), there

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, *message: Any, files: Sequence[int] = ()) -> None:
        """Raises LinkClosed."""
        data = json.dumps(message, separators=(",", ":")).encode()
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(files))] if files else []
        try:
            self._end.sendmsg([data], beside, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise LinkClosed(_reason(error)) from error

    def ready(self, seconds: float) -> bool:
        """Wait until a message or the end of the connection has come; False after `seconds`."""
        return bool(self._arrival.poll(max(0.0, seconds) * 1000))

    def receive(self) -> tuple[list[Any], list[int]]:
        """The next message, and the files that came with it. Raises LinkClosed or FilesLost."""
        try:
            size, beside, flags, _ = self._end.recvmsg_into(
                [self._buffer], FILES_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise LinkClosed(_reason(error)) from error
        files = _unpacked(beside)
        if size and flags & socket.MSG_CTRUNC:
            raise FilesLost(files)
        try:
            if not size:
                raise ValueError(ENDED)
            if flags & socket.MSG_TRUNC:
                raise ValueError(f"a message of more than {MAX_MESSAGE} bytes")
            message = json.loads(self._buffer[:size].decode())
            if not isinstance(message, list) or not message or not isinstance(message[0], str):
                raise ValueError("no list with a kind")
        except (ValueError, RecursionError) as error:
            for file in files:
                os.close(file)
            raise LinkClosed(str(error)) from error
        return message, files

    def hang_up(self) -> None:
        """End the connection: a thread that waits for a message wakes up. From any thread."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end has gone already
            return

    def close(self) -> None:
        self._end.close()


def _packed(files: Sequence[int]) -> bytes:
    return b"".join(file.to_bytes(FILE_BYTES, sys.byteorder) for file in files)


def _unpacked(beside: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The files among what came beside a message."""
    return [
        int.from_bytes(data[start : start + FILE_BYTES], sys.byteorder)
        for level, kind, data in beside
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for start in range(0, len(data) - FILE_BYTES + 1, FILE_BYTES)
    ]


def _reason(error: OSError) -> str:
    return ENDED if isinstance(error, ConnectionError) else error.strerror or str(error)
