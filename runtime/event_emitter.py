"""How the caller of a session learns what happens in it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

from vicort.runtime.callback_threads import CallbackThreads
from vicort.runtime.core import Answer, ChunkEvent, Event
from vicort.runtime.stages.job import Job
from vicort.runtime.stream_statistics import StreamStatistics

logger = logging.getLogger(__name__)

MAX_KINDS = 100  # kinds of errors that are told apart


class EventEmitter:
    """Calls the caller's function with one event at a time, and counts chunks and answers.

    The pipeline refers to this object and not to the session: so a session that is closed is freed
    with the last reference to it, without the garbage collector.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None] | None,
        statistics: StreamStatistics,
        callbacks: CallbackThreads,
    ) -> None:
        self._on_event = on_event or (lambda event: None)
        self._statistics = statistics
        self._callbacks = callbacks
        self._failures: Counter[str] = Counter()  # by kind of error
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Call the caller's function. What it raises is reported, and the stream goes on; only on
        the main thread are KeyboardInterrupt and SystemExit passed on."""
        with self._lock, self._callbacks.running():
            try:
                self._on_event(event)
            except BaseException as error:
                main = threading.current_thread() is threading.main_thread()
                if main and not isinstance(error, Exception):
                    raise
                self._report(error)

    def _report(self, error: BaseException) -> None:
        kind = type(error).__name__
        if kind not in self._failures and len(self._failures) >= MAX_KINDS:
            kind = "other errors"
        self._failures[kind] += 1
        self._statistics.event_failures += 1
        if self._failures[kind] == 1:
            logger.warning(
                "on_event raised %s (%s): the stream goes on, and more of this kind are only "
                "counted",
                kind,
                " ".join(str(error).split())[:200],
            )

    def chunk_left(self, job: Job) -> None:
        """Called when a chunk has left the pipeline."""
        if job.chunk.forked:
            return
        self._statistics.chunk_left()
        chunk = job.chunk
        event = ChunkEvent(
            index=chunk.index,
            frames=len(chunk.frames) - chunk.repeated,
            start=chunk.start,
            end=chunk.end,
            tokens=chunk.units * chunk.grid.tokens,
            kept=job.kept,
            wall_ms=(self._statistics.last_ns - job.entered) / 1e6,
        )
        logger.debug(
            "chunk %d: %g to %g s, %d of %d tokens kept, in memory after %.1f ms",
            event.index,
            event.start,
            event.end,
            event.kept,
            event.tokens,
            event.wall_ms,
        )
        self.emit(event)

    def answered(self, answer: Answer) -> None:
        """Called when an answer is complete, before its asker has it."""
        if answer.asked:
            self._statistics.answered(answer.ttft_ms)
        self.emit(answer)
