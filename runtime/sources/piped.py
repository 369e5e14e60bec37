"""A file object for FFmpeg that limits what a damaged or endless file can do."""

from __future__ import annotations

from typing import Any

MAX_BYTES_WITHOUT_PICTURE = 512 << 20  # bytes
SEEK_FAILED = -1  # FFmpeg's return value for a failed seek


class ByteFile:
    """Rejects seeks outside the file, and ends after MAX_BYTES_WITHOUT_PICTURE bytes without a
    picture. Each `see_picture` resets that count."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_BYTES_WITHOUT_PICTURE
        if file.seekable():
            # PyAV treats a file object with these methods as seekable
            self.seek = self._seek
            self.tell = file.tell

    @property
    def spent(self) -> bool:
        """Whether the file was ended because no picture came."""
        return self._left <= 0

    def read(self, size: int) -> bytes:
        data = self._file.read(max(0, min(size, self._left))) or b""
        self._left -= len(data)
        return data

    def see_picture(self) -> None:
        self._left = MAX_BYTES_WITHOUT_PICTURE

    def _seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return SEEK_FAILED
