"""What a Matroska or WebM file cuts off its pictures (the elements PixelCrop…): PyAV does not show
it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vicort.runtime.sources.pixels import NO_CROP, Crop

# elements, with the marker bit of their length (RFC 9559)
SEGMENT, CLUSTER, TRACKS, TRACK = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
VIDEO, WIDTH, HEIGHT = 0xE0, 0xB0, 0xBA  # of the tracks, only those of video have a VIDEO
BOTTOM, TOP, LEFT, RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
MOST_ELEMENTS = 4096  # that are looked at in one element

Element = tuple[int, int, int]  # kind, and the start and end of its content


def matroska_crop(path: Path, place: int) -> Crop:
    """The crop of a track's pictures; none if the file does not say one, or is damaged there.

    place: of the track among those of video, from 0.
    """
    try:
        with path.open("rb") as file:
            return _of_track(file, place)
    except (OSError, ValueError):
        return NO_CROP


def _of_track(file: BinaryIO, place: int) -> Crop:
    found = [(0, 0, file.seek(0, 2))]
    for kind in (SEGMENT, TRACKS, TRACK, VIDEO):
        found = [child for element in found for child in _children(file, element, kind)]
    return _of_video(file, found[place]) if place < len(found) else NO_CROP


def _of_video(file: BinaryIO, video: Element) -> Crop:
    sizes = dict.fromkeys((WIDTH, HEIGHT, TOP, BOTTOM, LEFT, RIGHT), 0)
    sizes |= {each[0]: _number(file, each) for each in _children(file, video, *sizes)}
    crop = Crop(sizes[TOP], sizes[BOTTOM], sizes[LEFT], sizes[RIGHT])
    fits = crop.top + crop.bottom < sizes[HEIGHT] and crop.left + crop.right < sizes[WIDTH]
    return crop if fits and crop != NO_CROP else NO_CROP


def _children(file: BinaryIO, parent: Element, *kinds: int) -> Iterator[Element]:
    """The elements of these kinds in another one, before the first pictures. Raises ValueError."""
    _, start, end = parent
    for _ in range(MOST_ELEMENTS):
        if start >= end:
            return
        kind, start = _variable(file, start, keep_marker=True)
        size, start = _variable(file, start)
        after = min(start + size, end)
        if kind == CLUSTER:
            return
        if kind in kinds:
            yield kind, start, after
        start = after


def _variable(file: BinaryIO, start: int, *, keep_marker: bool = False) -> tuple[int, int]:
    """A number of variable length, and where it ends: as many zero bits as bytes follow the first
    one, a marker bit, the value. All bits set = unknown, which reaches beyond any file."""
    first = _read(file, start, 1)[0]
    length = 9 - first.bit_length()
    if length > 8:
        raise ValueError("no length")
    value = int.from_bytes(_read(file, start, length), "big")
    if keep_marker:
        return value, start + length
    rest = value & (1 << 7 * length) - 1
    return (1 << 62 if rest == (1 << 7 * length) - 1 else rest), start + length


def _number(file: BinaryIO, element: Element) -> int:
    _, start, end = element
    if end - start > 8:
        raise ValueError("no number")
    return int.from_bytes(_read(file, start, end - start), "big")


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    """Raises ValueError at the end of the file."""
    file.seek(start)
    found = file.read(size)
    if len(found) < size:
        raise ValueError("cut off")
    return found
