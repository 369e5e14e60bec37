"""Ends a command soon after Ctrl-C or SIGTERM, also where a library does not return from a call."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from vicort.runtime.entry_points import BEFORE_LEAVING, EXIT_CODES, Terminated
from vicort.runtime.errors import VicortError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

LIMIT = 1.5  # seconds from the signal to the end
AGAIN_S = 0.01  # seconds until an interruption that Python dropped is raised again


class TimelyEnd:
    """A context in which the process ends LIMIT seconds after the first signal at the latest, with
    EXIT_CODES, and after what is in BEFORE_LEAVING.

    Python handles a signal on its main thread and between two calls, and what loads an engine or
    opens a silent address may take a minute. Where it comes during a finalizer or a callback of
    the garbage collector, Python prints the interruption and drops it: here it is raised again.
    On another thread than the main one this context does nothing.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._writing = -1

    def __enter__(self) -> TimelyEnd:
        if threading.current_thread() is threading.main_thread():
            reading, self._writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._writing, False)
            self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._raise_again
            threading.Thread(
                target=self._watch, args=(reading,), name="timely end", daemon=True
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writing >= 0:
            self._ended.set()
            signal.set_wakeup_fd(self._before)
            sys.unraisablehook = self._hook
            os.close(self._writing)

    def _raise_again(self, dropped: UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._hook(dropped)
            return
        number = signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT
        # by another thread and later: here it would be dropped once more
        main = threading.main_thread().ident
        again = threading.Timer(AGAIN_S, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()

    def _watch(self, reading: int) -> None:
        number = 0
        while number not in EXIT_CODES:
            if not (byte := os.read(reading, 1)):
                break
            number = byte[0]
        if number in EXIT_CODES and not self._ended.wait(LIMIT):
            for act in list(BEFORE_LEAVING):
                with suppress(OSError, VicortError):
                    act()
            os._exit(EXIT_CODES[number])
        os.close(reading)  # only now: Python would report a second signal that it cannot write
