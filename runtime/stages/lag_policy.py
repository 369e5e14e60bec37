"""What happens to chunks that come faster than the pipeline takes them."""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol, get_args

from vicort.runtime.core import Chunk
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown
from vicort.runtime.stages.pipeline import Pipeline

MAX_WAITING = 2  # chunks that may wait for a free buffer before the oldest is dropped

OnLag = Literal["wait", "drop-oldest"]


class LagPolicy(Protocol):
    dropped: int  # frames

    def wait_for_room(self) -> None:
        """Wait until a chunk could enter the pipeline at once, if the policy is to wait."""
        ...

    def enter(self, chunk: Chunk) -> None:
        """Put a chunk into the pipeline, or keep it until the pipeline has room."""
        ...

    def flush(self) -> None:
        """Put every chunk that is kept into the pipeline."""
        ...


class WaitForRoom:
    """The source waits."""

    dropped = 0

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def wait_for_room(self) -> None:
        self._pipeline.wait_for_room()

    def enter(self, chunk: Chunk) -> None:
        self._pipeline.enter(chunk)

    def flush(self) -> None:
        pass


class DropOldestChunk:
    """The oldest chunk that has not entered the pipeline is dropped."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.dropped = 0
        self._pipeline = pipeline
        self._waiting: deque[Chunk] = deque()

    def wait_for_room(self) -> None:
        pass

    def enter(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        while self._waiting and self._pipeline.try_enter(self._waiting[0]):
            self._waiting.popleft()
        if len(self._waiting) > MAX_WAITING:
            lost = self._waiting.popleft()
            self.dropped += len(lost.frames) - lost.repeated

    def flush(self) -> None:
        while self._waiting:
            self._pipeline.enter(self._waiting.popleft())


def lag_policy(on_lag: OnLag, pipeline: Pipeline) -> LagPolicy:
    """Raises ConfigError for another name."""
    if not isinstance(on_lag, str) or on_lag not in get_args(OnLag):
        raise ConfigError(f"on_lag {shown(on_lag)}: give one of {', '.join(get_args(OnLag))}")
    return WaitForRoom(pipeline) if on_lag == "wait" else DropOldestChunk(pipeline)
