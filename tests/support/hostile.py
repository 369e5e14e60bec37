"""Small files that ask for much memory or time."""

import struct
import zlib


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, *parts: bytes) -> bytes:
    return box(kind, bytes(4), *parts)


def mp4(samples: int, *, size: int = 0, tracks: int = 1, edits: int = 0) -> bytes:
    """Tracks of that many samples of `size` bytes, declared in tables of constant length, each with
    `edits` edits that play the whole track."""
    duration = min(2**31 - 1, samples * 1_000)
    boxes = [_track(number + 1, samples, size, edits, duration) for number in range(tracks)]
    movie = full_box(b"mvhd", struct.pack(">IIII", 0, 0, 1_000, 1_000), bytes(80))
    return b"".join(
        (
            box(b"ftyp", b"isom\0\0\2\0isom"),
            box(b"mdat", bytes(64)),
            box(b"moov", movie, *boxes),
        )
    )


def _track(number: int, samples: int, size: int, edits: int, duration: int) -> bytes:
    matrix = struct.pack(">9I", 65_536, 0, 0, 0, 65_536, 0, 0, 0, 1 << 30)
    header = full_box(
        b"tkhd",
        struct.pack(">IIIII", 0, 0, number, 0, duration),
        bytes(16),
        matrix,
        struct.pack(">II", 64 << 16, 64 << 16),
    )
    edit = struct.pack(">III", duration, 0, 65_536)
    listed = full_box(b"elst", struct.pack(">I", edits), edit * edits)
    entry = box(
        b"mjpg",
        struct.pack(">6xH16xHH", 1, 64, 64),
        struct.pack(">II4xH32xHh", 72 << 16, 72 << 16, 1, 24, -1),
    )
    table = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), entry),
        full_box(b"stts", struct.pack(">III", 1, samples, 1_000)),
        full_box(b"stsc", struct.pack(">IIII", 1, 1, samples, 1)),
        full_box(b"stsz", struct.pack(">II", size, samples)),
        full_box(b"stco", struct.pack(">II", 1, 40)),
    )
    data = box(b"dinf", full_box(b"dref", struct.pack(">I", 1), box(b"url ", b"\0\0\0\1")))
    media = box(
        b"mdia",
        full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1_000, duration, 0, 0)),
        full_box(b"hdlr", struct.pack(">I", 0), b"vide", bytes(12), b"v\0"),
        box(b"minf", full_box(b"vmhd", bytes(8)), data, table),
    )
    return box(b"trak", header, *([box(b"edts", listed)] if edits else []), media)


def gif(width: int, height: int, pictures: int, centiseconds: int = 50) -> bytes:
    """Pictures of one pixel each on a large screen."""
    head = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    control = b"\x21\xf9\x04\x04" + struct.pack("<H", centiseconds) + bytes(2)
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + (control + picture) * pictures + b"\x3b"


def png(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A black picture of one bit a pixel, with other chunks before its pixels."""
    rows = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    pixels = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunks,
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def text_chunks(megabytes: int, count: int) -> bytes:
    """Compressed text of that length."""
    packed = zlib.compressobj(9)
    block = b"A" * (1 << 20)
    data = b"".join(packed.compress(block) for _ in range(megabytes)) + packed.flush()
    return b"".join(chunk(b"zTXt", b"key%d\0\0" % number + data) for number in range(count))


def profile_chunk(megabytes: int) -> bytes:
    """A compressed colour profile of that length."""
    packed = zlib.compressobj(9)
    block = bytes(1 << 20)
    data = b"".join(packed.compress(block) for _ in range(megabytes)) + packed.flush()
    return chunk(b"iCCP", b"icc\0\0" + data)
