"""What the fuzz run starts from, a small good file of every codec and format at hand, and the ways
in which it is spoiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from support.hostile import gif, mp4, png, profile_chunk, text_chunks
from support.hostile_files import (
    animated_png,
    audio_video_interleave,
    changing_sizes,
    flash_metadata,
    fragments,
    many_scans,
    matroska,
    nested_boxes,
    run_length_bitmap,
    transport_stream,
)
from support.manifests import manifest
from support.scheduling import scheduling_kept

from vicort.runtime.policies.system import known_systems

Kind = Literal["video", "stdin", "image", "system", "manifest", "questions", "prompt", "packets"]
TEXTS: tuple[Kind, ...] = ("system", "manifest", "questions", "prompt")
SIZE = (96, 64)  # width, height: small, so that many files pass in a second
SIZES = {
    "h261": (176, 144),
    "h263": (176, 144),
    "dvvideo": (720, 576),
    "roqvideo": (128, 64),
    "dnxhd": (256, 128),
}  # of codecs that have no others
PICTURES = 14
OPTIONS = {
    "libx265": {"x265-params": "log-level=none:pools=1"},
    "libsvtav1": {"svtav1-params": "preset=12:lp=1"},
    "dnxhd": {"profile": "dnxhr_lb"},
}
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
    ("snow", "yuv420p", "nut"),
    ("rawvideo", "yuv420p", "yuv4mpegpipe"),
    ("rawvideo", "bgr24", "avi"),
    ("libx265", "yuv420p", "hevc"),
    ("libx264rgb", "rgb24", "nut"),
    ("libsvtav1", "yuv420p", "obu"),
    ("libvpx", "yuv420p", "ogg"),
    ("mpeg4", "yuv420p", "m4v"),
    ("mpeg2video", "yuv420p", "mxf"),
    ("h261", "yuv420p", "h261"),
    ("h263", "yuv420p", "3gp"),
    ("h263p", "yuv420p", "avi"),
    ("msmpeg4v2", "yuv420p", "avi"),
    ("wmv1", "yuv420p", "asf"),
    ("wmv2", "yuv420p", "asf"),
    ("rv10", "yuv420p", "rm"),
    ("rv20", "yuv420p", "rm"),
    ("flv", "yuv420p", "swf"),
    ("dvvideo", "yuv420p", "dv"),
    ("dnxhd", "yuv422p", "mov"),
    ("cfhd", "yuv422p10le", "mov"),
    ("jpeg2000", "yuv420p", "mov"),
    ("jpegls", "bgr24", "nut"),
    ("ljpeg", "bgr24", "nut"),
    ("speedhq", "yuv420p", "nut"),
    ("cinepak", "rgb24", "mov"),
    ("svq1", "yuv410p", "mov"),
    ("rpza", "rgb555le", "mov"),
    ("roqvideo", "yuvj444p", "roq"),
    ("msvideo1", "rgb555le", "avi"),
    ("amv", "yuvj420p", "nut"),
    ("asv1", "yuv420p", "avi"),
    ("asv2", "yuv420p", "avi"),
    ("utvideo", "yuv420p", "avi"),
    ("magicyuv", "gbrp", "avi"),
    ("ffvhuff", "yuv420p", "avi"),
    ("flashsv", "bgr24", "flv"),
    ("zmbv", "rgb555le", "avi"),
    ("zlib", "bgr24", "avi"),
    ("dxv", "rgba", "mov"),
    ("exr", "gbrpf32le", "mov"),
    ("dpx", "rgb24", "nut"),
    ("targa", "bgr24", "mov"),
    ("sgi", "rgb24", "mov"),
    ("tiff", "rgb24", "mov"),
    ("v210", "yuv422p10le", "mov"),
    ("r210", "gbrp10le", "mov"),
)
# whose packets are tried without them too
WITH_PACKETS = ("mp4", "mpegts", "webm", "matroska", "avi", "mov")
IMAGES = (
    ("png", "rgb24", ".png"),
    ("mjpeg", "yuvj420p", ".jpg"),
    ("bmp", "bgr24", ".bmp"),
    ("tiff", "rgb24", ".tif"),
    ("libwebp", "yuv420p", ".webp"),
    ("ppm", "rgb24", ".ppm"),
    ("pgm", "gray", ".pgm"),
)
ODD = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    100_000,
    1_000_000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
# by which containers name codecs, in groups of one length: four letters, and Matroska's
CODES = tuple(
    tuple(code.encode() for code in group.split())
    for group in (
        "avc1 hvc1 hev1 av01 vp08 vp09 mp4v H264 HEVC AV01 VP80 VP90 XVID DIV3 MP42 MP43 WMV1 "
        "WMV2 WMV3 WVC1 WVP2 MSS1 MSS2 MTS2 H261 H263 "
        "s263 mpg1 mpg2 m2v1 MJPG mjpa mjpb AVRn jpeg mjp2 MJ2C png. tiff SVQ1 SVQ3 cvid rpza "
        "smc. rle. 8BPS icod apcn apch ap4h CFHD AVdn "
        "Hap1 HapY dvc. dvcp dv5n VP31 theo VP40 VP50 VP60 VP61 VP62 VP70 IV31 IV32 IV41 IV50 "
        "TM20 UCOD tscc tsc2 CSCD ZMBV ZLIB MSZH FPS1 "
        "LAGS ULRG ULY2 ULY0 M8RG M8Y0 HFYU FFVH FFV1 snow drac BBCD VMnc KMVC WNV1 LOCO ASV1 "
        "ASV2 VCR1 CLJR XIXL FRWU AMVF CRAM MSVC CLLC "
        "G2M3 G2M4 AASC SPV1 VQC1 DXD3 DXDI MWSC WCMV RSCC SCPR MAGY SHQ0 SHQ4 FMVC IMM4 MVHA "
        "HQX1 CHQX XFMV RV10 RV20 RV30 RV40 RV60 vvc1 "
        "v210 v410 r210 R10k Y41P NV12 YV12 UYVY b64a ",
        "V_VP8 V_VP9 V_AV1",
        "V_FFV1 V_SNOW V_UNCO",
        "V_MPEG1 V_MPEG2 V_MJPEG",
        "V_THEORA V_PRORES",
        "V_MPEG4/ISO/AVC V_MPEG4/ISO/ASP V_MPEGH/ISO/EVC",
        "V_REAL/RV10 V_REAL/RV20 V_REAL/RV30 V_REAL/RV40",
    )
)
HEAD = 1_024  # bytes at either end in which most header fields lie
QUESTIONS = (
    '{"at": 1.5, "question": "what color was the circle?", "id": "a"}\n{"question": "what is '
    'there now?"}\n'
)


@dataclass(frozen=True)
class Good:
    """A file that is as it should be."""

    name: str
    kind: Kind
    content: bytes


def good_files(folder: Path, engines: Path | None = None) -> tuple[list[Good], list[str]]:
    """All that this PyAV can write, and the codecs that it cannot. `folder` is written in. engines:
    the set whose manifest is among them."""
    files, lacking = _texts(engines), []
    for codec, pixel_format, container in VIDEOS:
        path = folder / f"{codec}.{container}"
        try:
            _write(path, codec, pixel_format, container, PICTURES)
        except ValueError:  # no such codec in this build, or it does not take what it is given
            lacking.append(codec)
            continue
        files += [Good(path.name, kind, path.read_bytes()) for kind in ("video", "stdin")]
        if container in WITH_PACKETS:
            files.append(_packets(path))
    for codec, pixel_format, suffix in IMAGES:
        path = folder / f"image{suffix}"
        try:
            _write(path, codec, pixel_format, "image2", 1)
        except ValueError:
            lacking.append(codec)
            continue
        files.append(Good(path.name, "image", path.read_bytes()))
    return [*files, *_hostile()], lacking


def _hostile() -> list[Good]:
    """Files that ask for much memory or time as they are."""
    videos = {
        "table.mp4": mp4(80_000_000),
        "small-table.mp4": mp4(2_000_000, tracks=3),
        "edits.mp4": mp4(1_000, size=1, edits=2_000),
        "few-edits.mp4": mp4(100, size=1, edits=30),
        "screen.gif": gif(4_096, 4_096, 6),
        "small-screen.gif": gif(512, 512, 400),
        "screen.apng": animated_png(2_048, 2_048, 8),
        "small-screen.apng": animated_png(64, 64, 100),
        "fragments.mp4": fragments(2**31 - 1),
        "small-fragments.mp4": fragments(300_000, 10),
        "boxes.mp4": nested_boxes(2_000),
        "attached.mkv": matroska(attachment=(1 << 31) - 1_000),
        "tags.mkv": matroska(tags=1_000),
        "subtitles.mkv": matroska(subtitles=5_000),
        "programs.ts": transport_stream(200, 33),
        "deep.flv": flash_metadata(2_000),
        "wide.flv": flash_metadata(6, 3),
        "streams.avi": audio_video_interleave(100, chunks=100, length=2**31),
        "empty.avi": audio_video_interleave(1, chunks=5_000, length=5_000),
        "sizes.h264": changing_sizes((1_024, 1_024), 4),
    }
    images = {
        "text.png": png(8, 8, text_chunks(64, 4)),
        "profile.png": png(8, 8, profile_chunk(128)),
        "black.png": png(4_096, 4_096),
        "run-length.bmp": run_length_bitmap(4_096, 4_096),
        "scans.jpg": many_scans(4_096, 4_096, 200),
    }
    return [
        *(Good(name, "video", content) for name, content in videos.items()),
        *(Good(name, "image", content) for name, content in images.items()),
    ]


def spoiled(content: bytes, rng: np.random.Generator, kind: Kind) -> tuple[bytes, str]:
    """The file with one to four faults, and their names."""
    names = []
    ways = [*WAYS, bombed] if kind in TEXTS else list(WAYS)
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


def recoded(content: bytes, rng: np.random.Generator) -> bytes:
    """One codec's data under another's name, also of decoders that nothing here writes for; where
    none is named, a header field changed."""
    named = [(code, group) for group in CODES for code in group if code in content]
    if not named:
        return header_changed(content, rng)
    code, group = named[int(rng.integers(len(named)))]
    return content.replace(code, group[int(rng.integers(len(group)))].replace(b".", b" "))


def bombed(content: bytes, rng: np.random.Generator) -> bytes:
    """A value of a text file becomes something huge, deep, odd or active."""
    words = [
        b"9" * 5_000,
        b"1e999999999",
        b"-1",
        b".inf",
        b".nan",
        b"NaN",
        b"1e400",
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"2001-99-99",
    ]
    words += [
        b"!!python/object/apply:os.system [exit 1]",
        b"!!binary x",
        b"&a [*a, *a]",
        b'"\\ud800"',
        b"\xff\xfe",
        b"\x00",
        b'"../../x"',
    ]
    parts = content.split(b":")
    place = int(rng.integers(len(parts)))
    rest = (
        parts[place].partition(b"\n")[2]
        if b"\n" in parts[place]
        else parts[place].partition(b",")[2]
    )
    parts[place] = (
        b" "
        + words[int(rng.integers(len(words)))]
        + (b"\n" if b"\n" in parts[place] else b",")
        + rest
    )
    return b":".join(parts)


WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flipped,
    truncated,
    cut_out,
    doubled,
    overwritten,
    header_changed,
    recoded,
)


def split_packets(content: bytes) -> list[bytes]:
    """Extradata and packets, from as many bytes as there are behind each length of four."""
    pieces = []
    while len(content) >= 4:
        end = 4 + int.from_bytes(content[:4], "big")
        pieces.append(content[4:end])
        content = content[end:]
    return pieces


def _packets(path: Path) -> Good:
    """A video's, without their container; the name begins with the codec's."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        pieces = [
            context.extradata or b"",
            *(bytes(packet) for packet in container.demux(video=0) if packet.size),
        ]
        name = f"{context.codec.canonical_name}.{path.name}.packets"
    return Good(
        name, "packets", b"".join(len(piece).to_bytes(4, "big") + piece for piece in pieces)
    )


def _texts(engines: Path | None) -> list[Good]:
    from importlib import resources

    systems = resources.files("vicort.configs") / "systems"
    files = [
        Good(f"{name}.yaml", "system", (systems / f"{name}.yaml").read_bytes())
        for name in known_systems()
    ]
    files += [Good(name, "prompt", content) for name, content in prompt_files().items()]
    return [
        *files,
        Good("questions.jsonl", "questions", QUESTIONS.encode()),
        Good(
            "manifest.json",
            "manifest",
            (engines / "manifest.json").read_bytes() if engines else _manifest(),
        ),
    ]


def prompt_files() -> dict[str, bytes]:
    """The embedded model's tokenizer, and its chat template."""
    from importlib import resources

    checkpoint = resources.files("vicort.export") / "tiny" / "checkpoint"
    return {
        name: (checkpoint / name).read_bytes() for name in ("tokenizer.json", "chat_template.jinja")
    }


def _manifest() -> bytes:
    """One of an engine set without files."""
    tensor = {"name": "tokens", "dtype": "int32", "shape": ["rows"]}
    graph = {
        "file": "llm.onnx",
        "inputs": [tensor],
        "outputs": [tensor],
        "dimensions": {"rows": {"min": 1, "opt": 8, "max": 64}},
    }
    content = manifest(graphs={"llm": graph}, files={})
    return json.dumps(content, indent=1).encode()


def _write(path: Path, codec: str, pixel_format: str, container: str, count: int) -> None:
    """Raises ValueError if this PyAV has no such encoder."""
    av.Codec(codec, "w")
    options = {"update": "1"} if container == "image2" else {}
    with scheduling_kept(), av.open(str(path), "w", format=container, options=options) as output:
        track = output.add_stream(codec, rate=25, options={"strict": "-2"} | OPTIONS.get(codec, {}))
        width, height = SIZES.get(codec, SIZE)
        track.width, track.height, track.pix_fmt = width, height, pixel_format
        track.time_base = track.codec_context.time_base = Fraction(1, 25)
        track.thread_count = 1
        rows, columns = np.mgrid[:height, :width]
        for i in range(count):
            picture = np.stack([rows * 3 + i * 9, columns * 2, rows + columns - i * 5], -1).astype(
                np.uint8
            )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixel_format
            )
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode())
