"""What an AVIF or HEIF file says of its main picture, and PyAV does not show: its tiles, its
transparency, and how it is cropped and turned (ISO 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from vicort.runtime.sources.pixels import NO_CROP, Crop

MAX_META = 4 << 20  # bytes that describe the pictures
ALPHA_KINDS = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")


@dataclass(frozen=True)
class TileGrid:
    rows: int
    columns: int
    width: int  # of the whole, in pixels: tiles may reach beyond it
    height: int
    tiles: tuple[int, ...]  # ids of their items, row by row


@dataclass(frozen=True)
class HeifItem:
    """A picture of the file. Its crop counts before its turns."""

    id: int
    grid: TileGrid | None  # None = it is coded as one
    crop: Crop
    turns: tuple[tuple[str, int], ...] = ()  # ("irot", quarter turns to the left), ("imir", axis)


@dataclass(frozen=True)
class MainPicture:
    colours: HeifItem
    alpha: HeifItem | None


@dataclass
class _Meta:
    """The boxes of `meta` that are needed."""

    primary: int = 0
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)  # kind and content
    of_item: dict[int, list[int]] = field(default_factory=dict)  # places in `properties`
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    kinds: dict[int, bytes] = field(default_factory=dict)  # of items
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # method, offset, size
    data: bytes = b""  # of items that lie in `idat`


def main_picture(path: Path) -> MainPicture | None:
    """None if the file has no such picture, or is damaged there."""
    try:
        with path.open("rb") as file:
            content = _meta_box(file.read(MAX_META))
        meta = _read_meta(content)
        colours = _item(path, meta, meta.primary)
        alpha = next(
            (
                _item(path, meta, item)
                for kind, item, of in meta.references
                if kind == b"auxl" and meta.primary in of and _is_alpha(meta, item)
            ),
            None,
        )
    except (OSError, ValueError, LookupError, StopIteration, ZeroDivisionError, struct.error):
        return None
    return MainPicture(colours, alpha)


def _meta_box(content: bytes) -> bytes:
    for kind, inner in _boxes(content):
        if kind == b"meta":
            return inner[4:]
    raise ValueError("no meta box")


def _read_meta(content: bytes) -> _Meta:
    meta = _Meta()
    for kind, inner in _boxes(content):
        if kind == b"pitm":
            meta.primary = int.from_bytes(inner[4 : 8 if inner[0] else 6], "big")
        elif kind == b"iinf":
            meta.kinds.update(_kinds(inner))
        elif kind == b"iloc":
            meta.places.update(_places(inner))
        elif kind == b"iref":
            meta.references.extend(_references(inner))
        elif kind == b"idat":
            meta.data = inner
        elif kind == b"iprp":
            for part, each in _boxes(inner):
                if part == b"ipco":
                    meta.properties.extend(_boxes(each))
                elif part == b"ipma":
                    meta.of_item.update(_associations(each))
    return meta


def _item(path: Path, meta: _Meta, item: int) -> HeifItem:
    properties = [meta.properties[place] for place in meta.of_item.get(item, [])]
    sizes = [struct.unpack(">II", value[4:12]) for kind, value in properties if kind == b"ispe"]
    crop, turns = NO_CROP, []
    for kind, value in properties:
        if kind == b"clap" and sizes:
            crop = crop_of(value, *sizes[0])
        elif kind == b"irot":
            turns.append(("irot", value[0] & 3))
        elif kind == b"imir":
            turns.append(("imir", value[0] & 1))
    grid = _grid(path, meta, item) if meta.kinds.get(item) == b"grid" else None
    return HeifItem(item, grid, crop, tuple(turns))


def _grid(path: Path, meta: _Meta, item: int) -> TileGrid:
    method, offset, size = meta.places[item]
    if method == 1:
        data = meta.data[offset : offset + size]
    else:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(min(size, 16))
    wide = data[1] & 1
    width, height = struct.unpack(">II" if wide else ">HH", data[4 : 12 if wide else 8])
    tiles = next(to for kind, of, to in meta.references if kind == b"dimg" and of == item)
    rows, columns = data[2] + 1, data[3] + 1
    if len(tiles) != rows * columns:
        raise ValueError("another number of tiles")
    return TileGrid(rows, columns, width, height, tuple(tiles))


def crop_of(value: bytes, width: int, height: int) -> Crop:
    """The crop that the content of a box `clap` asks for in a picture of this size; none if it does
    not lie in the picture."""
    numbers = struct.unpack(">IIIIiIiI", value[:32])
    wide, high, right, down = (
        Fraction(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)
    )
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    if left >= 0 and top >= 0 and 1 <= wide <= width - left and 1 <= high <= height - top:
        return Crop(
            int(top), height - int(top) - int(high), int(left), width - int(left) - int(wide)
        )
    return NO_CROP


def _is_alpha(meta: _Meta, item: int) -> bool:
    properties = [meta.properties[place] for place in meta.of_item.get(item, [])]
    return any(
        kind == b"auxC" and value[4:].split(b"\0")[0] in ALPHA_KINDS for kind, value in properties
    )


def _kinds(inner: bytes) -> Iterator[tuple[int, bytes]]:
    for kind, entry in _boxes(inner[8 if inner[0] else 6 :]):
        if kind == b"infe" and entry[0] >= 2:
            wide = 4 if entry[0] >= 3 else 2
            yield int.from_bytes(entry[4 : 4 + wide], "big"), entry[6 + wide : 10 + wide]


def _places(inner: bytes) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Of each item: where its data lie (0 = in the file, 1 = in `idat`), offset and size."""
    version = inner[0]
    offsets, lengths, bases = inner[4] >> 4, inner[4] & 15, inner[5] >> 4
    indices = inner[5] & 15 if version else 0
    reader = _Reader(inner, 6)
    ids = 4 if version >= 2 else 2
    for _ in range(reader.take(ids)):
        item = reader.take(ids)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base, extents = reader.take(bases), []
        for _ in range(reader.take(2)):
            reader.take(indices)
            extents.append((reader.take(offsets), reader.take(lengths)))
        if extents:
            yield item, (method, base + extents[0][0], extents[0][1])


def _references(inner: bytes) -> Iterator[tuple[bytes, int, list[int]]]:
    size = 4 if inner[0] else 2
    for kind, entry in _boxes(inner[4:]):
        reader = _Reader(entry, 0)
        item = reader.take(size)
        yield kind, item, [reader.take(size) for _ in range(reader.take(2))]


def _associations(inner: bytes) -> Iterator[tuple[int, list[int]]]:
    ids, wide = (4 if inner[0] else 2), inner[3] & 1
    reader = _Reader(inner, 4)
    for _ in range(reader.take(4)):
        item = reader.take(ids)
        found = [reader.take(2 if wide else 1) for _ in range(reader.take(1))]
        yield item, [(each & (0x7FFF if wide else 0x7F)) - 1 for each in found if each]


class _Reader:
    """Big-endian numbers one after another."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self._at = at

    def take(self, size: int) -> int:
        """Raises ValueError at the end."""
        self._at += size
        if self._at > len(self._content):
            raise ValueError("the box is cut off")
        return int.from_bytes(self._content[self._at - size : self._at], "big")


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        head = 8
        if size == 1 and at + 16 <= len(content):
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        size = size or len(content) - at
        if size < head:
            return
        yield kind, content[at + head : at + size]
        at += size
