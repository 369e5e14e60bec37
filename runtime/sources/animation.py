"""Image files that hold more than one picture, told by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

MOST_CHUNKS = 64  # of a PNG before its first picture
SEQUENCE_BRANDS = (b"avis", b"msf1", b"hevc", b"hevx")  # ISO 23000-22, AVIF
WEBP_ANIMATION = 0x02  # a bit of the chunk VP8X


def is_animation(path: Path) -> bool:
    """Whether a file is a GIF, or an animated PNG, WebP, AVIF or HEIF."""
    if is_animated_webp(path):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _png_is_animated(file)
    except OSError:
        return False
    brands = start[8 : min(64, int.from_bytes(start[:4], "big"))]
    return start.startswith(b"GIF8") or (
        start[4:8] == b"ftyp" and any(brand in brands for brand in SEQUENCE_BRANDS)
    )


def is_animated_webp(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(21)
    except OSError:
        return False
    return (
        (start[:4], start[8:16]) == (b"RIFF", b"WEBPVP8X")
        and len(start) > 20
        and bool(start[20] & WEBP_ANIMATION)
    )


def _png_is_animated(file: BinaryIO) -> bool:
    file.seek(8)
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IDAT":
            return False
        if head[4:] == b"acTL":
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False
