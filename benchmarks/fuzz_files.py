"""What the fuzz run starts from, a small good file of every codec and format at hand, and the ways in which it is spoiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from vicort.runtime.manifest import SCHEMA_VERSION
from vicort.runtime.system import known_systems

Kind = Literal["video", "stdin", "image", "system", "manifest", "questions"]
SIZE = (96, 64)  # width, height: small, so that many files pass in a second
PICTURES = 14
QUIET = {"libx265": {"x265-params": "log-level=none:pools=1"}, "libsvtav1": {"svtav1-params": "preset=12:lp=1"}}
VIDEOS = (  # codec, pixel format, container
    ("libx264", "yuv420p", "mp4"),
    ("libx264", "yuv420p", "mpegts"),
    ("libx264", "yuv444p", "matroska"),
    ("libx264", "yuv420p", "flv"),
    ("libx264", "yuv420p", "h264"),
    ("libx265", "yuv420p", "mp4"),
    ("libx265", "yuv420p10le", "matroska"),
    ("libsvtav1", "yuv420p", "mp4"),
    ("libsvtav1", "yuv420p10le", "ivf"),
    ("libvpx-vp9", "yuv420p", "webm"),
    ("libvpx", "yuv420p", "matroska"),
    ("mpeg4", "yuv420p", "avi"),
    ("mpeg4", "yuv420p", "3gp"),
    ("msmpeg4v3", "yuv420p", "asf"),
    ("mpeg2video", "yuv420p", "mpegts"),
    ("mpeg1video", "yuv420p", "mpeg"),
    ("mjpeg", "yuvj420p", "avi"),
    ("mjpeg", "yuvj422p", "mpjpeg"),
    ("ffv1", "yuv420p", "matroska"),
    ("huffyuv", "yuv422p", "avi"),
    ("prores", "yuv422p10le", "mov"),
    ("qtrle", "rgb24", "mov"),
    ("flv", "yuv420p", "flv"),
    ("gif", "rgb8", "gif"),
    ("apng", "rgb24", "apng"),
    ("png", "rgb24", "mov"),
    ("vc2", "yuv420p", "matroska"),
    ("snow", "yuv420p", "nut"),
    ("rawvideo", "yuv420p", "yuv4mpegpipe"),
    ("rawvideo", "bgr24", "avi"),
)
IMAGES = (
    ("png", "rgb24", ".png"),
    ("mjpeg", "yuvj420p", ".jpg"),
    ("bmp", "bgr24", ".bmp"),
    ("tiff", "rgb24", ".tif"),
    ("libwebp", "yuv420p", ".webp"),
    ("ppm", "rgb24", ".ppm"),
    ("pgm", "gray", ".pgm"),
)
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 100_000, 1_000_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
HEAD = 1_024  # bytes at either end in which most header fields lie
QUESTIONS = '{"at": 1.5, "question": "what color was the circle?", "id": "a"}\n{"question": "what is there now?"}\n'


@dataclass(frozen=True)
class Good:
    """A file that is as it should be."""

    name: str
    kind: Kind
    content: bytes


def good_files(folder: Path) -> tuple[list[Good], list[str]]:
    """All that this PyAV can write, and the codecs that it cannot. `folder` is written in."""
    files, lacking = _texts(), []
    for codec, pixel_format, container in VIDEOS:
        path = folder / f"{codec}.{container}"
        try:
            _write(path, codec, pixel_format, container, PICTURES)
        except ValueError:  # no such codec in this build
            lacking.append(codec)
            continue
        files += [Good(path.name, kind, path.read_bytes()) for kind in ("video", "stdin")]
    for codec, pixel_format, suffix in IMAGES:
        path = folder / f"image{suffix}"
        try:
            _write(path, codec, pixel_format, "image2", 1)
        except ValueError:
            lacking.append(codec)
            continue
        files.append(Good(path.name, "image", path.read_bytes()))
    return files, lacking


def spoiled(content: bytes, rng: np.random.Generator, kind: Kind) -> tuple[bytes, str]:
    """The file with one to four faults, and their names."""
    names = []
    ways = [*WAYS, bombed] if kind in ("system", "manifest", "questions") else list(WAYS)
    for _ in range(int(rng.integers(1, 5))):
        way = ways[int(rng.integers(len(ways)))]
        content = way(content, rng) if content else content
        names.append(way.__name__)
    return content, "+".join(names)


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bits, up to one in a thousand."""
    data = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(data), max(1, int(len(data) * rng.random() ** 3 / 125)))
    data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return data.tobytes()


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content) + 1))]


def cut_out(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    return content[:start] + content[end:]


def doubled(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    return content[:end] + content[start:]


def overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    """A range of noise."""
    start = int(rng.integers(len(content)))
    length = min(len(content) - start, int(rng.integers(1, 256)))
    return content[:start] + rng.bytes(length) + content[start + length :]


def header_changed(content: bytes, rng: np.random.Generator) -> bytes:
    """A field near the start or the end, 1 to 8 bytes in either order, holds an odd number."""
    width = int(rng.choice([1, 2, 4, 8]))
    reach = min(HEAD, len(content))
    start = int(rng.integers(reach))
    start = start if rng.random() < 0.6 else len(content) - 1 - start
    value = int(ODD[int(rng.integers(len(ODD)))]) & ((1 << 8 * width) - 1)
    order: Literal["big", "little"] = "big" if rng.random() < 0.7 else "little"
    return content[:start] + value.to_bytes(width, order) + content[start + width :]


def bombed(content: bytes, rng: np.random.Generator) -> bytes:
    """A value of a text file becomes something huge, deep, odd or active."""
    words = [b"9" * 5_000, b"1e999999999", b"-1", b".inf", b".nan", b"NaN", b"1e400", b"[" * 20_000, b'{"a":' * 20_000, b"2001-99-99"]
    words += [b"!!python/object/apply:os.system [exit 1]", b"!!binary x", b"&a [*a, *a]", b'"\\ud800"', b"\xff\xfe", b"\x00", b'"../../x"']
    parts = content.split(b":")
    place = int(rng.integers(len(parts)))
    rest = parts[place].partition(b"\n")[2] if b"\n" in parts[place] else parts[place].partition(b",")[2]
    parts[place] = b" " + words[int(rng.integers(len(words)))] + (b"\n" if b"\n" in parts[place] else b",") + rest
    return b":".join(parts)


WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (flipped, truncated, cut_out, doubled, overwritten, header_changed)


def _texts() -> list[Good]:
    from importlib import resources

    systems = resources.files("vicort.configs") / "systems"
    files = [Good(f"{name}.yaml", "system", (systems / f"{name}.yaml").read_bytes()) for name in known_systems()]
    return [*files, Good("questions.jsonl", "questions", QUESTIONS.encode()), Good("manifest.json", "manifest", _manifest())]


def _manifest() -> bytes:
    """One of an engine set without files."""
    tensor = {"name": "tokens", "dtype": "int32", "shape": ["rows"]}
    graph = {"file": "llm.onnx", "inputs": [tensor], "outputs": [tensor], "dimensions": {"rows": {"min": 1, "opt": 8, "max": 64}}}
    numbers = "layers width query_heads kv_heads head_dim vocabulary image_height image_width grid_height grid_width fps tokens_per_second"
    model = dict.fromkeys(f"{numbers} chunk_frames page_tokens max_rows observed_rows max_position rotary_theta video_token".split(), 8)
    content = {
        "schema_version": SCHEMA_VERSION,
        "backend": "openvino",
        "precision": "fp32",
        "model": {"name": "m", "eos_tokens": [1], "rotary_sections": [1, 1, 2], **model},
        "graphs": {"llm": graph},
        "embedding": {"file": "embedding.bin", "offset": 0, "dtype": "float32", "rows": 8, "width": 8},
        "checkpoint": "",
        "target": "",
        "versions": {},
        "build_command": "vicort-build tiny",
        "files": {},
    }
    return json.dumps(content, indent=1).encode()


def _write(path: Path, codec: str, pixel_format: str, container: str, count: int) -> None:
    """Raises ValueError if this PyAV has no such encoder."""
    av.Codec(codec, "w")
    options = {"update": "1"} if container == "image2" else {}
    with av.open(str(path), "w", format=container, options=options) as output:
        track = output.add_stream(codec, rate=25, options={"strict": "-2"} | QUIET.get(codec, {}))
        track.width, track.height, track.pix_fmt = *SIZE, pixel_format
        track.time_base = track.codec_context.time_base = Fraction(1, 25)
        track.thread_count = 1
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        for i in range(count):
            picture = np.stack([rows * 3 + i * 9, columns * 2, rows + columns - i * 5], -1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode())
