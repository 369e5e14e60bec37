"""A file object as FFmpeg is to see it."""

from __future__ import annotations

from typing import Any

MAX_BYTES_WITHOUT_PICTURE = 512 << 20  # bytes
NO = -1  # what FFmpeg takes for a place that cannot be gone to


class ByteFile:
    """Reads on behalf of a demuxer, which a damaged file may lead to places that there are not, and
    an endless one round for ever.

    It ends after `MAX_BYTES_WITHOUT_PICTURE` bytes, counted anew from each `see_picture`.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_BYTES_WITHOUT_PICTURE
        if file.seekable():
            # a demuxer takes what has them for seekable
            self.seek = self._seek
            self.tell = file.tell

    @property
    def spent(self) -> bool:
        """Whether it was ended for lack of pictures."""
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
            return NO
