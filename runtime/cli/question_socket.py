"""Answers questions of other processes on a Unix socket, with JSON lines in both directions."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vicort.runtime.cli.question_router import QuestionRouter
from vicort.runtime.cli.questions import MAX_LINE
from vicort.runtime.cli.writers import timed
from vicort.runtime.core import Answer
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.safe_text import without_controls

MAX_CLIENTS = 64
MAX_PATH_BYTES = 107  # of the path of a Unix socket


class QuestionSocket:
    """Each line from a client is a question in the format of a questions file; without a time it is
    asked now. Each answer is sent back as one line that holds its event.

    A question that cannot be asked returns {"event": "error", "message": "…"}, with its id if it
    has one. Only the current user may connect (mode 0600).
    """

    def __init__(self, path: Path, router: QuestionRouter) -> None:
        """Raises ConfigError if no socket can be created at this path."""
        self._path = path
        self._router = router
        self._clients: set[_Client] = set()
        self._lock = threading.Lock()
        self._server = _bound(path)
        threading.Thread(target=self._accept, name="socket", daemon=True).start()

    def close(self) -> None:
        """Stop serving. Answers that are not sent yet are discarded."""
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
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            client = _Client(connection)
            with self._lock:
                full = len(self._clients) >= MAX_CLIENTS
                if not full:
                    self._clients.add(client)
            if full:
                client.send(
                    {
                        "event": "error",
                        "message": f"{MAX_CLIENTS} clients are connected: try again later",
                    }
                )
                client.close()
            else:
                threading.Thread(
                    target=self._serve, args=(client,), name="client", daemon=True
                ).start()

    def _serve(self, client: _Client) -> None:
        try:
            for number, line in enumerate(client.lines(), 1):
                if line.strip():
                    self._ask(client, line, f"line {number}")
            client.wait_answered()  # the client may have closed its sending side only
        finally:
            client.close()
            with self._lock:
                self._clients.discard(client)

    def _ask(self, client: _Client, line: str, line_name: str) -> None:
        try:
            answers = self._router.ask(line, line_name)
        except QuestionError as error:
            client.send({"event": "error", **_id_of(line), "message": str(error)})
            return
        several = len(self._router) > 1
        for source, answer in answers.items():
            client.expect(answer, {"source": source} if several else {})


class _Client:
    """One connection. A client that does not read fast enough is disconnected: sending never
    blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = 0  # answers that are not sent yet
        self._changed = threading.Condition()
        self._closed = False

    def lines(self) -> Iterator[str]:
        """Yield lines until the client stops sending, or sends a line that is too long."""
        with contextlib.suppress(OSError), self._connection.makefile("rb") as file:
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    self.send(
                        {
                            "event": "error",
                            "message": (
                                f"the line has more than {MAX_LINE} bytes: send a shorter question"
                            ),
                        }
                    )
                    return
                yield line.decode("utf-8", "replace")

    def expect(self, answer: Future[Answer], extra_fields: dict[str, Any]) -> None:
        with self._changed:
            self._pending += 1
        answer.add_done_callback(lambda done: self._answered(done, extra_fields))

    def _answered(self, answer: Future[Answer], extra_fields: dict[str, Any]) -> None:
        failure = None if answer.cancelled() else answer.exception()
        if failure is not None or answer.cancelled():
            self.send(
                {"event": "error", "message": str(failure or "the run ended before the answer")}
                | extra_fields
            )
        else:
            self.send(timed(answer.result()) | extra_fields)
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()

    def send(self, content: dict[str, Any]) -> None:
        data = (without_controls(json.dumps(content, ensure_ascii=False)) + "\n").encode()
        with self._changed:
            if self._closed:
                return
            try:
                whole = self._connection.send(
                    data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                ) == len(data)
            except OSError:
                whole = False
        if not whole:
            self.close()

    def wait_answered(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._pending)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
            self._changed.notify_all()


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


def _id_of(line: str) -> dict[str, str]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return (
        {"id": content["id"]}
        if isinstance(content, dict) and isinstance(content.get("id"), str)
        else {}
    )
