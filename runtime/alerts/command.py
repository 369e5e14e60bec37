"""Starts a program for each message, with the JSON on its standard input."""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vicort.runtime.alerts.channel import NotDelivered
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.message import Message, json_bytes
from vicort.runtime.alerts.targets import CommandTarget
from vicort.runtime.safe_text import brief, printable

logger = logging.getLogger(__name__)

# variables that every command gets, where they are set
USUAL = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
NEVER = 65  # EX_DATAERR of sysexits.h: the message is given up
MAX_OUTPUT = 4096  # bytes of the output that are kept
LOOK = 0.02  # seconds between two looks whether it has ended
PIECE = 65_536  # bytes that are read at a time


class CommandChannel:
    """A try has failed if the program cannot be started, ends with another exit code than 0, or
    takes too long; then it and all that it started in its process group are killed."""

    def __init__(self, target: CommandTarget, label: str, credentials: Credentials) -> None:
        """Raises ConfigError if a variable is not set."""
        self._target = target
        self._label = label
        self._credentials = credentials
        given = credentials.environment
        self._environment = {name: given[name] for name in USUAL if name in given} | {
            name: credentials.read(name, "environment", label) for name in target.environment
        }
        self._aborted = threading.Event()

    @property
    def timeout(self) -> float:
        return self._target.timeout

    def check(self, seconds: float) -> None:
        program = self._target.command[0]
        if shutil.which(program, path=self._environment.get("PATH")) is None:
            raise NotDelivered(
                f"{self._credentials.hide(printable(program))} is no program that can be started"
            )

    def deliver(self, message: Message, seconds: float) -> None:
        with _given(message, self._target.picture == "attach") as (stdin, picture):
            self._run(stdin, self._environment | _variables(message, picture), seconds)

    def keep(self, seconds: float) -> None:
        pass

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        pass

    def _run(self, stdin: BinaryIO, environment: dict[str, str], seconds: float) -> None:
        try:
            process = subprocess.Popen(
                self._target.command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise NotDelivered(f"it cannot be started: {error.strerror}") from error
        with process:
            output, in_time = self._wait(process, time.monotonic() + seconds)
            if not in_time:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if output:
            logger.info("%s printed: %s", self._label, self._shown(output))
        if not in_time:
            raise NotDelivered(f"it was killed after {seconds:.3g} s")
        if code := process.returncode:
            how = f"signal {-code} ended it" if code < 0 else f"exit code {code}"
            raise NotDelivered(f"{how}{self._last_line(output)}", final=code == NEVER)

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
        """The first bytes that a program prints, and whether it ended in time. The rest of its
        output is read and dropped. Its own children are not waited for."""
        output, pipe = b"", process.stdout
        if pipe is None:
            raise RuntimeError("the command has no output")
        os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ended = process.poll() is not None
                over = ended or self._aborted.is_set() or time.monotonic() >= deadline
                if selector.get_map():
                    ready = bool(selector.select(0 if over else LOOK))
                    if ready and not (piece := os.read(pipe.fileno(), PIECE)):
                        selector.unregister(pipe)
                    elif ready:
                        output = (output + piece)[:MAX_OUTPUT]
                        if ended and len(output) < MAX_OUTPUT:
                            continue  # what it printed last
                elif not over:
                    time.sleep(LOOK)
                if over:
                    return output, ended

    def _shown(self, output: bytes) -> str:
        return self._credentials.hide(printable(output.decode("utf-8", "replace").strip()))

    def _last_line(self, output: bytes) -> str:
        lines = output.decode("utf-8", "replace").strip().splitlines()
        line = self._credentials.hide(brief(Exception(lines[-1]))) if lines else ""
        return f": {line}" if line else ""


def _variables(message: Message, picture: Path | None) -> dict[str, str]:
    values = {
        "VICORT_KEY": message.key,
        "VICORT_ALERT": message.alert,
        "VICORT_STREAM": message.stream,
        "VICORT_STATE": message.state,
    }
    if picture:
        values["VICORT_PICTURE"] = str(picture)
    return {name: value.replace("\0", "") for name, value in values.items()}


@contextmanager
def _given(message: Message, attach: bool) -> Iterator[tuple[BinaryIO, Path | None]]:
    """A file with the JSON, and the path of one with the picture, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="vicort-alert-") as folder:
        picture = None
        if message.picture and attach:
            picture = Path(folder, "picture.jpg")
            picture.write_bytes(message.picture)
        with tempfile.TemporaryFile(dir=folder) as stdin:
            stdin.write(json_bytes(message.document()) + b"\n")
            stdin.seek(0)
            yield stdin, picture
