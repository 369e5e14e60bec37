"""A limit on the whole time of a request. Libraries limit each wait for a byte, so that a server
that sends one now and then would hold a thread for ever."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any


class CutOff:
    """A context after whose time the connection that was passed to `connected` is shut down. The
    call that uses it then fails."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(max(0.0, seconds), self.cut)
        self._timer.daemon = True
        self.happened = False

    def __enter__(self) -> CutOff:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None

    def left(self) -> float:
        """Seconds, at least a thousandth."""
        return max(0.001, self._until - time.monotonic())

    def connected(self, connection: socket.socket) -> None:
        # a descriptor of its own, which stays valid when TLS takes the socket over
        own = connection.dup()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = own
        if self.happened:
            self.cut()

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """For `trace` of httpx's extensions."""
        if name == "connection.connect_tcp.complete":
            self.connected(info["return_value"].get_extra_info("socket"))

    def cut(self) -> None:
        """From any thread."""
        with self._lock:
            self.happened = True
            if self._socket:
                with suppress(OSError):  # it is closed
                    self._socket.shutdown(socket.SHUT_RDWR)
