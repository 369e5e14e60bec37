"""Answers questions of other processes on a Unix socket, with JSON lines in both directions."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vicort.runtime.answering import MAX_NAME
from vicort.runtime.cli.question_router import QuestionRouter
from vicort.runtime.cli.socket_client import MAX_TIMED, SocketClient
from vicort.runtime.errors import ConfigError, VicortError

logger = logging.getLogger(__name__)

MAX_CLIENTS = 64
SPARED_SECONDS = 10.0  # without a question, before a client makes room for another one
RETRY_SECONDS = 0.1  # after a client that could not be accepted
MAX_PATH_BYTES = 107  # of the path of a Unix socket


class QuestionSocket:
    """Each line from a client is a question in the format of a questions file; without a time it is
    asked now. Each answer is sent back as one line that holds its event.

    A question that cannot be asked returns {"event": "error", "message": "…"}, with its id if it
    has one. Only the current user may connect (mode 0600). Bounds and turns of clients are those of
    `SocketClient`; of more than MAX_CLIENTS the one that is idle for longest is disconnected.
    """

    def __init__(self, path: Path, router: QuestionRouter) -> None:
        """Raises ConfigError if no socket can be created at this path."""
        self._path = path
        self._router = router
        self._clients: set[SocketClient] = set()
        self._closing = threading.Event()
        self._told: set[int] = set()  # errors of accept that were reported
        self._lock = threading.Lock()
        self._server = _bound(path)
        threading.Thread(target=self._accept, name="socket", daemon=True).start()

    def close(self) -> None:
        """Stop serving. Answers that are not sent yet are discarded."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()
        self._path.unlink(missing_ok=True)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        """Accept clients until the socket is closed. Whatever fails, the next one is accepted."""
        while not self._closing.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError as error:
                # Out of file descriptors or memory, or the client has left: its turn may come.
                if not self._closing.wait(RETRY_SECONDS) and error.errno not in self._told:
                    self._told.add(error.errno or 0)
                    logger.warning("a client could not be accepted (%s)", error.strerror)
                continue
            self._welcome(SocketClient(connection))

    def _welcome(self, client: SocketClient) -> None:
        with self._lock:
            full = len(self._clients) >= MAX_CLIENTS and not self._dismiss_idle()
            if not full:
                self._clients.add(client)
        if full:
            client.fail(f"{MAX_CLIENTS} clients are connected: try again later")
            client.close()
            return
        try:
            threading.Thread(target=self._serve, args=(client,), name="client", daemon=True).start()
        except RuntimeError:  # no more threads
            self._part(client)

    def _dismiss_idle(self) -> bool:
        """Disconnect the client that is idle for longest. Returns whether there was one."""
        idle = max(self._clients, key=lambda client: client.idle_for)
        if idle.idle_for < SPARED_SECONDS:
            return False
        self._clients.discard(idle)
        idle.fail(f"{MAX_CLIENTS} clients are connected, and this one asked nothing: connect again")
        idle.close()
        return True

    def _serve(self, client: SocketClient) -> None:
        try:
            for number, line in enumerate(client.lines(), 1):
                if line.strip():
                    self._ask(client, line, f"line {number}")
            client.wait_answered()  # the client may have closed its sending side only
        finally:
            self._part(client)

    def _part(self, client: SocketClient) -> None:
        client.close()
        with self._lock:
            self._clients.discard(client)

    def _ask(self, client: SocketClient, line: str, line_name: str) -> None:
        names, has_time = _id_of(line), _has_time(line)
        if has_time and not client.takes_timed:
            client.fail(
                f"{line_name}: {MAX_TIMED} questions of this client wait for their time: send more "
                "when some are answered",
                names,
            )
            return
        try:
            answers = self._router.ask(line, line_name)
        except VicortError as error:
            client.fail(str(error), names)
            return
        several = len(self._router) > 1
        for source, answer in answers.items():
            client.expect(answer, has_time, names, {"source": source} if several else {})


def _bound(path: Path) -> socket.socket:
    """A listening socket that only the current user may open. A dead socket at this path is
    replaced. Raises ConfigError."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"--serve-socket {path} is longer than {MAX_PATH_BYTES} bytes: give a shorter path"
        )
    _remove_dead(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # restricts the socket from its creation on
    try:
        server.bind(str(path))
        server.listen()
    except OSError as error:
        server.close()
        raise ConfigError(
            f"--serve-socket {path} cannot be created ({error.strerror}): give the path of a new "
            "file in a folder that you may write to"
        ) from error
    finally:
        os.umask(mask)
    return server


def _remove_dead(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"--serve-socket {path} is a file, not a socket: give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(
                f"--serve-socket {path} cannot be used ({error.strerror}): give another path"
            ) from error
    raise ConfigError(f"--serve-socket {path} is served by another process: give another path")


def _object(line: str) -> dict[str, Any]:
    """The JSON object of a line; empty if it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _id_of(line: str) -> dict[str, str]:
    name = _object(line).get("id")
    return {"id": name} if isinstance(name, str) and len(name) <= MAX_NAME else {}


def _has_time(line: str) -> bool:
    return _object(line).get("at") is not None
