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

    def __init__(self, file: Any) -> None:
        self._file = file
        self._interruption: BaseException | None = None
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
            if self._interruption:
                raise self._interruption

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

    def again(self, opened: Any) -> InterruptibleFile:
        """Another file, whose interruptions are those of this one."""
        other = InterruptibleFile(opened)
        other._call = self._call  # type: ignore[method-assign]
        return other

    def _call(self, act: Callable[..., Any], *given: Any) -> Any:
        if self._interruption:
            raise InterruptedError from self._interruption
        try:
            return act(*given)
        except Exception:
            raise
        except BaseException as error:
            self._interruption = error
            raise InterruptedError from error
