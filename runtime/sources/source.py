"""What every source of frames is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import TracebackType
from typing import Self

from vicort.runtime.core import Frame

Wants = Callable[[Fraction], bool]  # whether a frame of that time, in seconds, is wanted
Warn = Callable[[str], None]  # takes one line


class Source(ABC):
    """An iterable of frames, read once, in order of their rising times."""

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
        self.live = live  # frames come when they come, and wait for nobody
        self.frames_total = frames_total  # an estimate; None = unknown
        self.duration = duration  # seconds, an estimate; None = unknown
        self.warnings: list[str] = []  # what was repaired or left out, a line each
        self._warn = warn or (lambda line: None)

    def warn(self, line: str) -> None:
        """Keep a warning, and pass it on as it comes."""
        self.warnings.append(line)
        self._warn(line)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    @abstractmethod
    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        """The frames that are wanted; without `wants`, all of them.

        `wants` is asked once a frame, in order; what it does not want is counted, but never
        converted to pixels. Raises SourceError if there is no picture in it, and TruncatedSource
        after the last frame of one that breaks off.
        """

    def stop(self) -> None:  # noqa: B027 (what ends by itself needs no more)
        """End a source that would go on for ever; from any thread."""

    def close(self) -> None:  # noqa: B027 (nothing to close is a fine default)
        """Let go of files and connections; closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
