"""Receivers on loopback: an HTTP server that fails, stalls and restarts, and mosquitto."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

MOSQUITTO = shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None, reason="mosquitto is not installed: apt-get install mosquitto"
)


def until(done: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class Reaction:
    """An answer to one request. stall: seconds before it; drip: it is sent a byte at a time, that
    many seconds apart."""

    code: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    stall: float = 0.0
    drip: float = 0.0
    hangs_up: bool = False


@dataclass
class HookServer:
    """Notes each POST, and answers by `react`, which gets the number of the request from 0."""

    react: Callable[[int], Reaction] = lambda number: Reaction()
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Also after `stop`, on the same port."""
        self._ended = threading.Event()
        self._server = _Server((self.host, self.port), self._handler())
        self.port = self._server.server_address[1]
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    kill = stop

    def url(self, path: str = "/hook") -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{path}"

    def sent_keys(self) -> list[str]:
        return [each.headers["idempotency-key"] for each in self.asked]

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # its sender was killed
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                reaction = server.react(len(server.asked))
                server.asked.append(Request(self.path, headers, body))
                server._ended.wait(reaction.stall)
                if reaction.hangs_up:
                    return
                lines = [f"HTTP/1.1 {reaction.code} x", "Content-Length: 0"]
                lines += [f"{name}: {value}" for name, value in reaction.headers]
                answer = "\r\n".join([*lines, "", ""]).encode()
                if not reaction.drip:
                    self.wfile.write(answer)
                    return
                for byte in answer:
                    self.wfile.write(bytes([byte]))
                    if server._ended.wait(reaction.drip):
                        return

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side has gone


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Broker:
    """mosquitto, which anonymous clients may use unless `lines` say otherwise."""

    def __init__(self, folder: Path, *lines: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self._file = folder / f"mosquitto-{self.port}.conf"
        listener = [f"listener {self.port} 127.0.0.1"]
        self._file.write_text("\n".join([*listener, *(lines or ["allow_anonymous true"]), ""]))
        self.start()

    def start(self) -> None:
        """Also after `stop`, on the same port."""
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self._file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(20)

    kill = stop

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextmanager
def subscriber(port: int, user: tuple[str, str] | None = None) -> Iterator[list[Any]]:
    """The messages of all topics: each has topic, payload, qos, retain."""
    from paho.mqtt import client as paho

    got: list[Any] = []
    ready = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    if user:
        client.username_pw_set(*user)
    client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda client, data, message: got.append(message)
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(20)
    try:
        yield got
    finally:
        client.disconnect()
        client.loop_stop()
