"""What a file is that is not what its name says: a Git LFS pointer, an encrypted file, …"""

from __future__ import annotations

from pathlib import Path

BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS and not the file itself: run `git lfs pull`",
    ),
    (b"GGUF", "a GGUF file, of llama.cpp: name the checkpoint that it was made from"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch writes: save the model in safetensors files"),
    (b"Salted__", "encrypted by OpenSSL: decrypt it first"),
    (b"age-encryption.org", "encrypted by age: decrypt it first"),
    (b"-----BEGIN", "encrypted or signed: decrypt it first"),
    (b"\x8c\x0d\x04", "encrypted by GnuPG: decrypt it first"),
    (b"\x85\x01", "encrypted by GnuPG: decrypt it first"),
    (b"\x84\x8c", "encrypted by GnuPG: decrypt it first"),
    (b"<!DOCTYPE", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: unpack it first"),
)
READ = 64  # bytes


def misfit(path: Path) -> str:
    """What the file is instead, and what to do; "" = nothing is amiss at its beginning. Raises
    OSError."""
    with path.open("rb") as file:
        begin = file.read(READ)
    if not begin:
        return "empty: download it again"
    if not begin.strip(b"\0"):
        return "filled with zeros, as a download that broke off: download it again"
    return next((what for start, what in BEGINNINGS if begin.lower().startswith(start.lower())), "")
