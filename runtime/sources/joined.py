"""Finds files that were joined with `cat` in formats of which FFmpeg does not read all."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

MAX_BOXES = 100_000
BOX_HEADER = 8  # bytes: length and kind
LONG_HEADER = 16  # the same with a length of eight bytes
EBML_ID, SIZE_ID = b"\x1a\x45\xdf\xa3", 4  # Matroska: a header's id; bytes of an id at the top
# a header of nine bytes with sound, video or both, and the length of the tag before the first
FLV_START = re.compile(rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00")


def joined_files(path: Path, kind: str) -> tuple[int, int]:
    """How many complete files this one consists of, 1 for most, and how many FFmpeg reads of them.

    kind: FFmpeg's name of the format; files other than MP4, FLV and Matroska count as one, and so
    do files that cannot be read again.
    """
    try:
        if "mov" in kind:
            return _boxes(path).count(b"moov"), 1
        if "matroska" in kind:
            return _ebml_headers(path), 2
        return (_flv_starts(path), 1) if kind == "flv" else (1, 1)
    except (OSError, ValueError):
        return 1, 1


def _boxes(path: Path) -> list[bytes]:
    """Kinds of the boxes of an MP4 file, those inside others left out."""
    kinds: list[bytes] = []
    with path.open("rb") as file:
        size, start = path.stat().st_size, 0
        while start + BOX_HEADER <= size and len(kinds) < MAX_BOXES:
            file.seek(start)
            header = file.read(LONG_HEADER)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:], "big")
            kinds.append(kind)
            if length < BOX_HEADER:  # 0: to the end of the file
                break
            start += length
    return kinds


def _ebml_headers(path: Path) -> int:
    count = elements = 0
    with path.open("rb") as file:
        size, start = path.stat().st_size, 0
        while start < size and elements < MAX_BOXES:
            file.seek(start)
            header = file.read(SIZE_ID + 8).ljust(SIZE_ID + 8, b"\0")
            count += header.startswith(EBML_ID)
            elements += 1
            # the number of leading zeros is the number of further bytes
            further = 8 - header[SIZE_ID].bit_length()
            value = int.from_bytes(header[SIZE_ID : SIZE_ID + 1 + further], "big")
            marker = 1 << 7 * (1 + further)
            if further > 7 or value == 2 * marker - 1:  # damaged, or to the end of the file
                break
            start += SIZE_ID + 1 + further + (value - marker)
    return count


def _flv_starts(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return sum(1 for _ in FLV_START.finditer(data))
