"""More small files that ask for much memory or time, one function for each container or format."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from support.hostile import box, chunk

TS_PACKET = 188


# ---- pictures ----


def animated_png(width: int, height: int, pictures: int) -> bytes:
    """A large black screen, of which each picture changes one pixel."""
    line = zlib.compressobj(9)
    row = bytes(1 + width)
    screen = b"".join(line.compress(row) for _ in range(height)) + line.flush()
    dot = zlib.compress(bytes(2))
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", pictures, 0)),
        _frame_control(0, width, height),
        chunk(b"IDAT", screen),
    ]
    for i in range(1, pictures):
        parts.append(_frame_control(2 * i - 1, 1, 1))
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * i) + dot))
    return b"".join([*parts, chunk(b"IEND", b"")])


def _frame_control(number: int, width: int, height: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 2, 0, 0))


def run_length_bitmap(width: int, height: int) -> bytes:
    """A BMP whose compressed data end at once."""
    data = b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    palette = bytes(1024)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIII", b"BM", start + len(data), 0, start) + header + palette + data


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of that many scans, each of which goes over all of it."""
    quantisation = b"\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\1" * 64
    table = b"\1" + bytes(15) + b"\0"  # one code of one bit: nothing follows
    huffman = b"".join(
        b"\xff\xc4" + struct.pack(">H", 20) + bytes([kind]) + table for kind in (0x00, 0x10)
    )
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    first = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0" + b"\0\0\0" + bytes(8)
    later = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0" + b"\1\x3f\0" + bytes(8)
    return b"\xff\xd8" + quantisation + huffman + frame + first + later * scans + b"\xff\xd9"


# ---- containers ----


def matroska(*, attachment: int = 0, tags: int = 0, subtitles: int = 0) -> bytes:
    """A track of one picture. attachment: bytes that a file beside it declares. tags: that many
    names and values. subtitles: that many empty ones before the picture."""
    video = _ebml(
        0xAE,
        _ebml(0xD7, b"\1"), _ebml(0x73C5, b"\1"), _ebml(0x83, b"\1"), _ebml(0x86, b"V_MJPEG"),
        _ebml(0xE0, _ebml(0xB0, b"\x40"), _ebml(0xBA, b"\x40")),
    )  # fmt: skip
    text = _ebml(
        0xAE, _ebml(0xD7, b"\2"), _ebml(0x73C5, b"\2"), _ebml(0x83, b"\x11"),
        _ebml(0x86, b"S_TEXT/UTF8"),
    )  # fmt: skip
    tag = _ebml(0x67C8, _ebml(0x45A3, b"KEY"), _ebml(0x4487, b"value"))
    picture = _encoded("mjpeg", "yuvj420p", "mjpeg", 64, 64, 1)
    blocks = _ebml(0xA3, b"\x82\0\0\x80") * subtitles + _ebml(0xA3, b"\x81\0\0\x80" + picture)
    parts = [
        _ebml(0x1549A966, _ebml(0x2AD7B1, b"\x0f\x42\x40")),
        _ebml(0x1654AE6B, video, *([text] if subtitles else [])),
        _ebml(0x1254C367, _ebml(0x7373, tag * tags)) if tags else b"",
        _ebml(0x1F43B675, _ebml(0xE7, b"\0"), blocks),
    ]
    if attachment:
        file = _ebml(0x466E, b"a") + _ebml(0x4660, b"font/ttf") + _ebml(0x46AE, b"\1")
        data = b"\x46\x5c" + (1 << 56 | attachment).to_bytes(8, "big")
        parts.insert(2, _ebml(0x1941A469, _ebml(0x61A7, file + data)))
    head = _ebml(0x1A45DFA3, _ebml(0x4282, b"matroska"), _ebml(0x4287, b"\4"))
    return head + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"".join(parts)


def transport_stream(programs: int, streams: int) -> bytes:
    """That many programs of so many video streams each, and not a picture."""
    entries = b"".join(struct.pack(">HH", i + 1, 0xE000 | _map_pid(i)) for i in range(programs))
    packets = []
    for start in range(0, len(entries), 160):
        section = struct.pack(">HBBB", 1, 0xC1, 0, 0) + entries[start : start + 160]
        packets.append(_section(0, 0, section))
    for i in range(programs):
        described = b"".join(
            struct.pack(">BHH", 0x1B, 0xE000 | (0x1000 + (i * streams + k) % 0xF00), 0xF000)
            for k in range(min(streams, 33))
        )
        content = struct.pack(">HBBBHH", i + 1, 0xC1, 0, 0, 0xE1FF, 0xF000) + described
        packets.append(_section(_map_pid(i), 2, content))
    return b"".join(packets) * 3


def flash_metadata(depth: int, width: int = 1) -> bytes:
    """A FLV of one picture, after objects in objects as its metadata."""
    name = b"\0\1a"
    inner = b"\2\0\1x"
    for _ in range(depth):
        inner = b"\3" + (name + inner) * width + b"\0\0\x09"
    body = b"\2\0\x0aonMetaData" + inner
    tag = (
        b"\x12" + len(body).to_bytes(3, "big") + bytes(7) + body + struct.pack(">I", len(body) + 11)
    )
    good = _encoded("flv", "yuv420p", "flv", 64, 64, 1)
    return good[:13] + tag + good[13:]


def audio_video_interleave(streams: int, *, chunks: int = 0, length: int = 0) -> bytes:
    """An AVI of so many video streams of 64x64 at a high rate, with empty pictures; length: of the
    index, in pictures, that its header declares."""
    picture = struct.pack("<IiiHH4sIiiII", 40, 64, 64, 1, 24, b"MJPG", 0, 0, 0, 0, 0)
    head = struct.pack(
        "<4s4sIHHIIIIIIII8s", b"vids", b"MJPG", 0, 0, 0, 0, 1, 1_000, 0, length, 0, 0, 0, bytes(8)
    )
    listed = _riff(b"LIST", b"strl" + _riff(b"strh", head) + _riff(b"strf", picture))
    main = struct.pack("<14I", 1_000, 0, 0, 16, length, 0, streams, 0, 64, 64, 0, 0, 0, 0)
    headers = _riff(b"LIST", b"hdrl" + _riff(b"avih", main) + listed * streams)
    movie = _riff(b"LIST", b"movi" + _riff(b"00dc", b"") * chunks)
    return _riff(b"RIFF", b"AVI " + headers + movie)


def fragments(samples: int, count: int = 1) -> bytes:
    """A fragmented MP4 of one picture, and fragments that declare so many samples each, for which
    they have no table."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    good = _encoded("mjpeg", "yuvj420p", "mp4", 64, 64, 1, container_options=options)
    start, end = good.index(b"moof") - 4, good.index(b"mfra") - 4
    run = good.index(b"trun") + 4
    declared = good[start:run] + struct.pack(">II", 0, samples) + good[run + 8 : end]
    return good[:end] + declared * count


def nested_boxes(depth: int) -> bytes:
    """MP4 boxes in boxes."""
    inner = b""
    for _ in range(depth):
        inner = box(b"moov", inner)
    return box(b"ftyp", b"isom\0\0\2\0isom") + inner


# ---- streams ----


def changing_sizes(large: tuple[int, int], changes: int) -> bytes:
    """H.264 whose pictures are small and large in turn, all black."""
    pair = [
        _encoded("libx264", "yuv420p", "h264", *size, 1, {"preset": "ultrafast"})
        for size in ((64, 64), large)
    ]
    return b"".join(pair) * changes


def deep_playlist(name: str, entries: int) -> bytes:
    """A playlist whose segments are itself."""
    segment = f"#EXTINF:1,\n{name}\n" * entries
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{segment}#EXT-X-ENDLIST\n".encode()


def _encoded(
    codec: str,
    pixel_format: str,
    container: str,
    width: int,
    height: int,
    count: int,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Black pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        track = output.add_stream(codec, rate=25, options=options or {})
        track.width, track.height, track.pix_fmt, track.thread_count = (
            width,
            height,
            pixel_format,
            1,
        )
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    return file.getvalue()


def _ebml(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return name + (1 << 28 | len(body)).to_bytes(4, "big") + body


def _riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _map_pid(program: int) -> int:
    return 0x20 + program % 0xF00


def _section(pid: int, table: int, content: bytes) -> bytes:
    """One packet of MPEG-TS with a section of a table."""
    section = struct.pack(">BH", table, 0xB000 | (len(content) + 4)) + content
    section += struct.pack(">I", _checksum(section))
    packet = b"\x47" + struct.pack(">HB", 0x4000 | pid, 0x10) + b"\0" + section
    return packet[:TS_PACKET].ljust(TS_PACKET, b"\xff")


def _checksum(data: bytes) -> int:
    """CRC-32 as MPEG has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = ((value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value
