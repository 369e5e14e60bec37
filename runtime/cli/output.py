"""Writes the events of a run to stdout, and its warnings and progress to stderr."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from vicort.runtime.cli.writers import Writer
from vicort.runtime.core import ChunkEvent, Event, MemoryEvent, WarningEvent
from vicort.runtime.errors import VicortError
from vicort.runtime.redact import redact
from vicort.runtime.safe_text import printable
from vicort.runtime.sources import Source

if TYPE_CHECKING:
    from tqdm import tqdm


class Output:
    """Writes events and tokens from any thread.

    A write error, such as a closed pipe, is kept until the main loop calls `check`.
    """

    def __init__(self, writer: Writer, errors: TextIO, *, stats: bool) -> None:
        """stats: also write the budget of memory, and an event for each chunk."""
        self._writer = writer
        self._errors = errors
        self._stats = stats
        self._lock = threading.Lock()
        self._bar: tqdm | None = None
        self._failure: OSError | None = None
        self._closed = False

    def event(self, event: Event, source: str = "") -> None:
        """source: label of the source, "" if there is only one."""
        if self._stats or not isinstance(event, ChunkEvent | MemoryEvent):
            with self._lock:
                self._write(lambda: self._writer.write(event, source))

    def last_event(self, event: Event) -> None:
        """Write an event of the run as a whole, also after `close`."""
        with self._lock:
            self._write(lambda: self._writer.write(event, ""), at_end=True)

    def token(self, answer_id: str, question: str, text: str) -> None:
        with self._lock:
            self._write(lambda: self._writer.token(answer_id, question, text))

    def warn(self, line: str, source: str = "") -> None:
        """Write a warning to stderr, and as an event where the format has one. source: as in
        `event`."""
        message = redact(printable(line))
        with self._lock:
            self._say(f"warning: {message}")
            if self._writer.shows_warnings:
                self._write(lambda: self._writer.write(WarningEvent(message), source))

    def tell(self, line: str) -> None:
        """Write a line for people to stderr, where the format is not for programs."""
        if not self._writer.shows_warnings:
            with self._lock:
                self._say(redact(printable(line)))

    @contextmanager
    def progress_of(self, source: Source, shown: bool = True, title: str = "") -> Iterator[None]:
        """Write the header of the format. Show a progress bar in this context if stderr is a
        terminal. title: of the bar; "" = the name of the source."""
        with self._lock:
            self._write(self._writer.start)
        if shown and self._errors.isatty():
            from tqdm import tqdm  # late: only on terminals

            self._bar = tqdm(
                total=source.frames_total,
                unit=" frames",
                desc=printable(title or source.name),
                file=self._errors,
                leave=False,
            )
        try:
            yield
        finally:
            if self._bar is not None:
                with self._lock:
                    self._bar.disable = self._writer.mid_line  # then nothing is drawn to be removed
                    self._bar.close()
                    self._bar = None

    def progress(self, frames: int) -> None:
        """frames: number of frames of the source that have been read."""
        with self._lock:
            if self._bar is not None and not self._writer.mid_line:
                self._bar.update(frames - self._bar.n)

    def close(self) -> None:
        """Ignore all later events, but for `last_event`."""
        with self._lock:
            self._closed = True

    def check(self) -> None:
        """Raises BrokenPipeError if the reader closed the pipe, VicortError for other write
        errors."""
        if isinstance(self._failure, BrokenPipeError):
            raise self._failure
        if self._failure is not None:
            raise VicortError(
                f"events cannot be written ({self._failure.strerror}): free some disk space, or "
                "redirect them elsewhere"
            ) from self._failure

    def _say(self, line: str) -> None:
        self._clear_bar()
        broken_line = "\n" * (self._writer.mid_line and self._errors.isatty())
        with suppress(OSError):  # nobody reads stderr, and events may still be read
            print(f"{broken_line}vicort-run: {line}", file=self._errors, flush=True)

    def _write(self, write: Callable[[], None], at_end: bool = False) -> None:
        if (self._closed and not at_end) or self._failure is not None:
            return
        self._clear_bar()
        try:
            write()
        except OSError as error:
            self._failure = error

    def _clear_bar(self) -> None:
        # amid an answer no bar is drawn, and clearing would move the cursor back over its text
        if self._bar is not None and not self._writer.mid_line:
            self._bar.clear()
