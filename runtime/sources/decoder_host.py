"""Starts decoder processes: one server, which is a fresh Python with the video libraries, forks a
process for each source. The program itself never forks."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vicort.runtime.errors import SourceError
from vicort.runtime.sources.decoder_link import Link, LinkClosed

logger = logging.getLogger(__name__)

SERVER = "vicort.runtime.sources.decoder_server"
# starts a program with these arguments, environment and files, and does not wait for it
Starter = Callable[[Sequence[str], dict[str, str], Sequence[int]], Callable[[], object]]


def start_child(
    command: Sequence[str], environment: dict[str, str], files: Sequence[int]
) -> Callable[[], object]:
    """Start a child process in a session of its own, so that Ctrl-C does not reach it. Returns what
    waits for its end."""
    child = subprocess.Popen(
        command,
        env=environment,
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    return child.wait


class Lifeline:
    """This end of a pipe: when it is closed, the process at the other end is ended."""

    def __init__(self) -> None:
        """`there` is the other end, to be passed on and closed by the caller."""
        self.there, here = os.pipe2(os.O_CLOEXEC)
        self._closed = weakref.finalize(self, os.close, here)
        self._closed.atexit = False  # the kernel does that

    def close(self) -> None:
        self._closed()


class DecoderHost:
    """The server of decoder processes of this process. Any thread may use it.

    It ends with this process, whatever ends that.
    """

    def __init__(self, starter: Starter = start_child) -> None:
        self.starter = starter
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._lifeline: Lifeline | None = None  # of the server and its processes
        self._owner = 0  # process id: a forked child has a server of its own
        self._wait: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Start the server if it does not run yet, and do not wait for it."""
        with self._lock:
            self._running()

    def open(self, request: dict[str, Any], files: Sequence[int]) -> tuple[Link, Lifeline]:
        """A new decoder process for a source: the link to it, and its lifeline.

        Raises SourceError if the server cannot be started.
        """
        here, there = Link.pair()
        lifeline = Lifeline()
        try:
            with self._lock:
                for last in (False, True):
                    try:
                        given = (there.fileno(), lifeline.there, *files)
                        self._running().send("open", request, files=given)
                        break
                    except LinkClosed as error:
                        gone = isinstance(error.__cause__, (BrokenPipeError, ConnectionError))
                        if gone:  # it was ended from outside: start another
                            self._end()
                        if last or not gone:  # its other processes go on
                            raise _not_started(error) from error
        except BaseException:
            here.close()
            lifeline.close()
            raise
        finally:
            there.close()
            os.close(lifeline.there)
        return here, lifeline

    def close(self) -> None:
        """End the server and all its processes."""
        with self._lock:
            self._end()

    def _running(self) -> Link:
        if self._link and self._owner == os.getpid():
            return self._link
        began = time.perf_counter()
        here, there = Link.pair()
        lifeline = Lifeline()
        try:
            self._wait = self.starter(*_command(there, lifeline.there))
        except OSError as error:
            here.close()
            lifeline.close()
            raise _not_started(error) from error
        finally:
            there.close()
            os.close(lifeline.there)
        self._link, self._lifeline, self._owner = here, lifeline, os.getpid()
        logger.info("started the decoder server in %.2f s", time.perf_counter() - began)
        return here

    def _end(self) -> None:
        link, self._link = self._link, None
        if link and self._lifeline and self._owner == os.getpid():
            link.close()
            self._lifeline.close()
            self._wait()


def _command(there: socket.socket, ends: int) -> tuple[list[str], dict[str, str], list[int]]:
    files = [there.fileno(), ends]
    # -P: no module is taken from the folder that the program runs in
    command = [sys.executable, "-P", "-m", SERVER, *map(str, files)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry)),
        "OPENBLAS_NUM_THREADS": "1",  # a process that forks has one thread
        "PYTHONUTF8": "1" if sys.flags.utf8_mode else "0",
    }
    return command, environment, files


def _not_started(error: BaseException) -> SourceError:
    return SourceError(
        f"the process that decodes cannot be started ({error}): see what "
        f"`{sys.executable or 'python'} -m {SERVER}` says, or decode in this process with "
        "--in-process",
        "the decoder process cannot be started",
    )


HOST = DecoderHost()
