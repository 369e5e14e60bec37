"""The interface of all video sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from fractions import Fraction
from types import TracebackType
from typing import Self

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError


class Wanted(IntEnum):
    """Whether a frame is wanted."""

    NO = 0
    YES = 1
    BOTH = 2  # and the one before it, too, which was not wanted when it came


# whether the frame at a time in seconds is wanted; a bool means NO or YES
Wants = Callable[[Fraction], Wanted | bool]
Warn = Callable[[str], None]  # reports a warning of one line


@dataclass(frozen=True)
class Ending:
    """What the screen shows at the end of a source."""

    frame: Frame | None  # the last one, if it was not wanted
    time: Fraction  # seconds: until when its last picture stays


class Source(ABC):
    """An iterable of frames with rising times. It can be read once."""

    keeps_wall_clock = False  # whether its times go on as the wall clock does, from `began` on

    def __init__(
        self,
        name: str,
        *,
        live: bool = False,
        frames_total: int | None = None,
        duration: Fraction | None = None,
        warn: Warn | None = None,
    ) -> None:
        self.name = name
        self.live = live  # frames arrive at their own pace
        self.frames_total = frames_total  # an estimate; None = unknown
        self.duration = duration  # seconds, an estimate; None = unknown
        self.ending: Ending | None = None  # after the last frame; None = unknown
        # when time 0 was, of a source that keeps the wall clock; None before its first frame
        self.began: datetime | None = None
        self.warnings: list[str] = []  # repairs and skipped data, one line each
        self._warn = warn or (lambda line: None)

    def warn(self, line: str) -> None:
        """Store a warning and report it."""
        self.warnings.append(line)
        self._warn(line)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Within this context, a SourceError about a frame also names this source."""
        try:
            yield
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}", error.brief) from error

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    @abstractmethod
    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        """Yield the wanted frames; all frames without `wants`.

        `wants` is called once per frame, in order. Unwanted frames are counted but not converted to
        pixels. Where a frame and the one before it are wanted, a source that still has the one
        before yields it first.

        Raises SourceError if no picture can be decoded, and TruncatedSource after the last frame of
        a truncated source.
        """

    def expect(self, rate: float | None) -> None:  # noqa: B027 (a hint)
        """Say at which rate frames will be wanted, in frames a second, None = all of them. It makes
        reading faster and changes no frame. Call before the first frame."""

    def stop(self) -> None:  # noqa: B027 (finite sources need no stop)
        """End an endless source. May be called from any thread."""

    def close(self) -> None:  # noqa: B027 (some sources have nothing to close)
        """Close files and connections. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
