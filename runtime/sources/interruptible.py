"""Files for PyAV that lose no Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class InterruptibleFile:
    """A binary file that PyAV reads or writes.

    PyAV drops a KeyboardInterrupt that comes while FFmpeg calls the file, and FFmpeg goes on. Here
    it fails this call and all later ones, and is raised again at the end of `interruptible`.
    """

    name = "file"

    def __init__(self, file: Any, interruptions: list[BaseException] | None = None) -> None:
        """interruptions: those of files that fail together, None = of this one alone."""
        self._file = file
        self._interruptions = [] if interruptions is None else interruptions
        # PyAV takes a file object without these as one without seeking
        if file.seekable():
            self.seek: Callable[..., int] = lambda *given: self._call(file.seek, *given)
            self.tell: Callable[[], int] = lambda: self._call(file.tell)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context for calls of PyAV that use the file."""
        try:
            yield
        finally:
            if self._interruptions:
                raise self._interruptions[0]

    @property
    def closed(self) -> bool:
        closed: bool = self._file.closed
        return closed

    def read(self, size: int) -> bytes:
        return self._call(self._file.read, size)

    def write(self, data: bytes) -> int:
        return self._call(self._file.write, data)

    def close(self) -> None:
        self._file.close()

    def joined_by(self, file: Any) -> InterruptibleFile:
        """Another file: an interruption of one fails the calls of both."""
        return InterruptibleFile(file, self._interruptions)

    def _call(self, act: Callable[..., Any], *given: Any) -> Any:
        if self._interruptions:
            raise InterruptedError from self._interruptions[0]
        try:
            return act(*given)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            self._interruptions.append(error)
            raise InterruptedError from error
