"""Tells systemd that a run is ready and how it goes on, where it asks for that (`Type=notify`)."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from fractions import Fraction

EVERY = 10.0  # seconds between two lines of status


class ServiceStatus:
    """The lines that `systemctl status` shows. Thread-safe; does nothing without an address."""

    def __init__(self, address: str | None, warn: Callable[[str], None]) -> None:
        """address: of a datagram socket, a path or @NAME, as systemd gives it in NOTIFY_SOCKET.
        warn: called once if nothing can be sent there."""
        self._address = address
        self._warn = warn
        self._lock = threading.Lock()
        self._next = 0.0  # monotonic seconds
        self._frames = 0

    @classmethod
    def of_environment(cls, warn: Callable[[str], None]) -> ServiceStatus:
        return cls(os.environ.get("NOTIFY_SOCKET"), warn)

    def ready(self) -> None:
        """The engines are loaded and a source is watched. May be said again."""
        self._send("READY=1")

    def frame(self, at: Fraction, source: str) -> None:
        """A frame was given to a session. at: its stream time; source: a label, "" if only one."""
        with self._lock:
            self._frames += 1
            now = time.monotonic()
            if self._address is None or now < self._next:
                return
            self._next = now + EVERY
            where = f" of {source}" if source else ""
            line = f"{self._frames} frames taken; the newest{where} is of {float(at):.1f} s"
        self._send(f"STATUS={line}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        place = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode(), socket.MSG_DONTWAIT, place)
        except OSError as error:
            self._address = None
            self._warn(
                f"NOTIFY_SOCKET cannot be written ({error.strerror or error}): the service manager "
                "is told nothing more"
            )
