"""Writes AVIF and HEIC files of any structure: tiles, transparency, crops and turns (ISO
23008-12)."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

ALPHA = {
    "avif": b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0",
    "heic": b"urn:mpeg:hevc:2015:auxid:1\0",
}
CODECS = {"avif": ("libsvtav1", b"av01", b"av1C"), "heic": ("libx265", b"hvc1", b"hvcC")}


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, version: int, flags: int, *content: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def coded(image: np.ndarray, suffix: str) -> tuple[bytes, bytes]:
    """The configuration box and the data of a picture [height, width, 3] or [height, width]."""
    name, _, config = CODECS[suffix]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        options = {"crf": "4", "preset": "8" if suffix == "avif" else "ultrafast"}
        if suffix == "heic":
            options |= {"x265-params": "log-level=none:bframes=0:keyint=1"}
        stream = output.add_stream(name, rate=1, options=options)
        height, width = image.shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if suffix == "heic":
            stream.codec_tag = "hvc1"
        form = "gray" if image.ndim == 2 else "rgb24"
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=form)
        if image.ndim == 2:  # as it is, not reduced to a limited range
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = image
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts = 0
        output.mux([*stream.encode(picture), *stream.encode(None)])
    content = file.getvalue()
    at = content.index(config) - 4
    found = content[at : at + int.from_bytes(content[at : at + 4], "big")]
    with av.open(io.BytesIO(content)) as written:
        packet = next(packet for packet in written.demux(video=0) if packet.size)
        return found, bytes(packet)


def clap(width: int, height: int, right: Fraction, down: Fraction) -> bytes:
    """right, down: of its centre from that of the picture."""
    numbers = [width, 1, height, 1, right.numerator, right.denominator]
    return box(b"clap", struct.pack(">IIIIiIiI", *numbers, down.numerator, down.denominator))


@dataclass
class HeifFile:
    """Items in the order in which they are added; the first one is the main picture."""

    suffix: str
    _items: list[tuple[bytes, bytes, list[bytes]]] = field(default_factory=list)
    _references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)

    def reserve(self) -> int:
        self._items.append((b"", b"", []))
        return len(self._items)

    def add_coded(self, image: np.ndarray, *properties: bytes, at: int | None = None) -> int:
        config, data = coded(image, self.suffix)
        return self._put(CODECS[self.suffix][1], data, image.shape, [config, *properties], at)

    def add_grid(
        self, image: np.ndarray, rows: int, columns: int, *properties: bytes, at: int | None = None
    ) -> int:
        """The image is cut into tiles; the last ones reach beyond it, and repeat its edge."""
        height, width = image.shape[:2]
        tall, wide = (
            (-(-side // count) + 1) // 2 * 2 for side, count in ((height, rows), (width, columns))
        )
        padding = [(0, tall * rows - height), (0, wide * columns - width), (0, 0)]
        padded = np.pad(image, padding[: image.ndim], mode="edge")
        data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
        own = self._put(b"grid", data, image.shape, list(properties), at)
        tiles = [
            self.add_coded(
                padded[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            )
            for row in range(rows)
            for column in range(columns)
        ]
        self._references.append((b"dimg", own, tiles))
        return own

    def is_alpha(self, item: int, of: int) -> None:
        self._references.append((b"auxl", item, [of]))
        self._items[item - 1][2].append(full(b"auxC", 0, 0, ALPHA[self.suffix]))

    def _put(
        self,
        kind: bytes,
        data: bytes,
        shape: tuple[int, ...],
        properties: list[bytes],
        at: int | None,
    ) -> int:
        size = full(b"ispe", 0, 0, struct.pack(">II", shape[1], shape[0]))
        depth = full(b"pixi", 0, 0, bytes([1, 8] if len(shape) == 2 else [3, 8, 8, 8]))
        entry = (kind, data, [size, depth, *properties])
        if at is None:
            self._items.append(entry)
            return len(self._items)
        self._items[at - 1] = entry
        return at

    def content(self) -> bytes:
        brand = self.suffix.encode()
        head = box(b"ftyp", brand, bytes(4), b"mif1", brand, b"miaf")
        meta = self._meta(0)
        meta = self._meta(len(head) + len(meta) + 8)
        return head + meta + box(b"mdat", *(data for _, data, _ in self._items))

    def _meta(self, start: int) -> bytes:
        """start: of the items' data in the file."""
        infos, places, boxes, associations, at = [], [], [], [], start
        for number, (kind, data, properties) in enumerate(self._items, 1):
            hidden = 0 if number == 1 else 1
            infos.append(full(b"infe", 2, hidden, struct.pack(">HH4sx", number, 0, kind)))
            places.append(struct.pack(">HHHII", number, 0, 1, at, len(data)))
            at += len(data)
            first = len(boxes) + 1
            boxes += properties
            own = range(first, first + len(properties))
            # a property that changes what is seen is essential
            essential = [
                place | 0x80 * (each[4:8] not in (b"ispe", b"pixi", b"auxC"))
                for place, each in zip(own, properties, strict=True)
            ]
            associations.append(struct.pack(">HB", number, len(own)) + bytes(essential))
        references = [
            box(kind, struct.pack(f">HH{len(to)}H", item, len(to), *to))
            for kind, item, to in self._references
        ]
        count = len(self._items)
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, struct.pack(">I4s12xx", 0, b"pict")),
            full(b"pitm", 0, 0, struct.pack(">H", 1)),
            full(b"iinf", 0, 0, struct.pack(">H", count), *infos),
            *([full(b"iref", 0, 0, *references)] if references else []),
            box(
                b"iprp",
                box(b"ipco", *boxes),
                full(b"ipma", 0, 0, struct.pack(">I", count), *associations),
            ),
            full(b"iloc", 0, 0, struct.pack(">BBH", 0x44, 0, count), *places),
        )
