"""How the caller of a session learns what happens in it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vicort.runtime.core import ChunkEvent, Event
from vicort.runtime.stages.job import Job
from vicort.runtime.stream_statistics import StreamStatistics

logger = logging.getLogger(__name__)


class EventEmitter:
    """Calls the caller's function with one event at a time, and counts chunks.

    The pipeline refers to this object and not to the session: so a session that is closed is freed
    with the last reference to it, without the garbage collector.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None] | None,
        statistics: StreamStatistics,
    ) -> None:
        self._on_event = on_event or (lambda event: None)
        self._statistics = statistics
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._on_event(event)

    def chunk_left(self, job: Job) -> None:
        """Called when a chunk has left the pipeline."""
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
