"""What an MP4 or QuickTime file cuts off its pictures (the box `clap`): PyAV does not show it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vicort.runtime.sources.heif_items import crop_of
from vicort.runtime.sources.pixels import NO_CROP, Crop

MOST_BOXES = 4096  # that are looked at in one box
ENTRY = 86  # bytes of a visual sample entry before the boxes in it


def clean_aperture(path: Path, track: int) -> Crop:
    """The crop of a track's pictures; none if the file does not say one, or is damaged there."""
    try:
        with path.open("rb") as file:
            return _of_track(file, track)
    except (OSError, ValueError, struct.error, ZeroDivisionError):
        return NO_CROP


def _of_track(file: BinaryIO, track: int) -> Crop:
    file.seek(0, 2)
    for moov in _boxes(file, b"moov", 0, file.tell()):
        for trak in _boxes(file, b"trak", *moov):
            heads = [_read(file, start, 24) for start, _ in _boxes(file, b"tkhd", *trak)]
            if not heads or _track_id(heads[0]) != track:
                continue
            inner = [trak]
            for kind in (b"mdia", b"minf", b"stbl", b"stsd"):
                inner = [box for outer in inner for box in _boxes(file, kind, *outer)]
            for start, end in inner:
                return _of_entry(file, start + 8, end)
    return NO_CROP


def _of_entry(file: BinaryIO, start: int, end: int) -> Crop:
    """start, end: of the sample entries; the first one counts."""
    width, height = struct.unpack(">HH", _read(file, start + 32, 4))
    size = int.from_bytes(_read(file, start, 4), "big")
    for inside, _ in _boxes(file, b"clap", start + ENTRY, min(start + size, end)):
        return crop_of(_read(file, inside, 32), width, height)
    return NO_CROP


def _track_id(head: bytes) -> int:
    """head: of the box `tkhd`, whose times have 8 bytes each in version 1, else 4."""
    at = 4 + (16 if head[0] == 1 else 8)
    return int.from_bytes(head[at : at + 4], "big")


def _boxes(file: BinaryIO, kind: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of the content of each box of that kind between two places of the file."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        size, found = struct.unpack(">I4s", _read(file, start, 8))
        head = 8
        if size == 1:
            size, head = int.from_bytes(_read(file, start + 8, 8), "big"), 16
        after = end if size == 0 else start + size
        if after < start + head:
            return
        if found == kind:
            yield start + head, min(after, end)
        start = after


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
