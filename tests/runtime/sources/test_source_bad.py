"""Bad input: one clear line that names it, and every good frame before."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import pytest
from support import videos

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources import open_source
from vicort.runtime.sources.limits import Limits


def refused(spec: Path | str, **options) -> str:
    """The one line with which a source is refused, when it is opened or when its first frame is
    asked for."""
    with pytest.raises(SourceError) as caught, open_source(str(spec), **options) as source:
        next(iter(source))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def until_it_breaks(path: Path) -> tuple[list[Frame], str]:
    found: list[Frame] = []
    with open_source(str(path)) as source, pytest.raises(TruncatedSource) as caught:
        found.extend(source)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return found, str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert f"no such file {tmp_path / 'nope.mp4'}: give a file, rtsp" in refused(
        tmp_path / "nope.mp4"
    )


def test_empty_spec() -> None:
    assert "empty: give a file" in refused("")


def test_directory_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    assert "contains no images (1 entries): give one with ." in refused(tmp_path)
    assert "contains no images (0 entries)" in refused(tmp_path / "*.png")


@pytest.mark.parametrize("name", ["text.mp4", "text.txt"])
def test_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("It was a dark and stormy night.\n" * 50)
    assert str(tmp_path / name) in refused(tmp_path / name)


def test_audio_only(tmp_path: Path) -> None:
    videos.write_audio(tmp_path / "a.m4a")
    assert "contains no video stream (streams: 0 audio)" in refused(tmp_path / "a.m4a")


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp3"), "w") as output:
        audio, cover = (
            output.add_stream("mp3", rate=16_000, layout="mono"),
            output.add_stream("png", rate=1),
        )
        cover.width, cover.height, cover.pix_fmt, cover.disposition = (
            160,
            120,
            "rgb24",
            av.stream.Disposition.attached_pic,
        )
        picture = av.VideoFrame.from_ndarray(videos.image(0), format="rgb24")
        packets = [
            packet for track in (cover,) for packet in [*track.encode(picture), *track.encode()]
        ]
        sound = av.AudioFrame(format="s16p", layout="mono", samples=1152)
        sound.sample_rate, sound.pts = 16_000, 0
        output.mux([*packets, *audio.encode(sound), *audio.encode()])
    assert "contains no video stream (streams: 0 audio, 1 video)" in refused(tmp_path / "a.mp3")


def test_zero_length(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert "is empty (0 bytes)" in refused(tmp_path / "a.mp4")


@pytest.mark.parametrize("packets", [3, 4, 5])
def test_a_stream_that_ends_before_its_first_picture(tmp_path: Path, packets: int) -> None:
    """FFmpeg guesses 90,000 frames a second then, which is not what is wrong."""
    videos.write_video(tmp_path / "a.ts", 20)
    (tmp_path / "cut.ts").write_bytes((tmp_path / "a.ts").read_bytes()[: 188 * packets])
    assert "no picture of it can be decoded" in refused(tmp_path / "cut.ts")


def test_unknown_scheme_keeps_the_password_to_itself() -> None:
    line = refused("gopher://user:secret@host/clip")
    assert "gopher://host/clip has the unknown scheme gopher://: give a file" in line
    assert "secret" not in line


def test_a_url_with_a_slash_too_few_keeps_the_password_to_itself() -> None:
    assert "no such file rtsp:/host/cam: give" in refused("rtsp:/user:secret@host/cam")


@pytest.mark.parametrize(
    "url", ["http://user:secret@127.0.0.1:9/a.mp4", "rtsp://user:secret@127.0.0.1:9/a"]
)
def test_nobody_answers(url: str) -> None:
    line = refused(url)
    assert "Connection refused" in line
    assert "secret" not in line


def test_stream_that_is_no_video(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 2)
    assert "stream 7 of" in refused(tmp_path / "a.mp4", stream=7)
    assert "its video streams are 0 (160x120) (try `--stream 0`)" in refused(
        tmp_path / "a.mp4", stream=7
    )


@pytest.mark.parametrize(
    "spec",
    [
        "testsrc:seconds=0",
        "testsrc:size=320",
        "testsrc:size=0x3",
        "testsrc:fps=-1",
        "testsrc:colour=red",
        "testsrc:size=99999x9999",
    ],
)
def test_bad_pattern(spec: str) -> None:
    assert "give testsrc:[seconds=NUMBER]" in refused(spec) or "give a smaller size" in refused(
        spec
    )


# ---- bombs ----


def png(width: int, height: int) -> bytes:
    """The header of a picture of that size, and next to nothing behind it."""

    def part(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(bytes(1000)))
        + part(b"IEND", b"")
    )


def with_header(path: Path, size: tuple[int, int] = (160, 120), fps: int = 25) -> Path:
    """An AVI whose header claims another size and rate than its pictures have."""
    videos.write_video(path, 10, codec="mjpeg", pixel_format="yuvj420p")
    content = bytearray(path.read_bytes())
    form, stream = content.index(b"strf") + 8, content.index(b"strh") + 8
    content[form + 4 : form + 12] = struct.pack("<ii", *size)
    content[stream + 20 : stream + 28] = struct.pack("<II", 1, fps)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("side", [9_000, 20_000, 100_000, 2**31 - 1])
def test_a_picture_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.mkv").write_bytes(png(side, side))  # not by its name an image
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refused(tmp_path / "a.mkv")
    assert str(tmp_path / "a.mkv") in line
    # KB; one of 9,000 x 9,000 has 243,000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_a_rate_bomb_is_refused(tmp_path: Path) -> None:
    assert "declares 1e+06 frames per second, more than 1000" in refused(
        with_header(tmp_path / "a.avi", fps=1_000_000)
    )
    with open_source(str(tmp_path / "a.avi"), limits=Limits(fps=1_000_000)) as source:
        assert len(list(source)) == 10


# the decoder refuses the larger, we the smaller
@pytest.mark.parametrize("size", [(176, 144), (640, 480)])
def test_pictures_larger_than_was_declared_are_left_out(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    videos.write_video(tmp_path / "small.ts", 20, size=(160, 120), encoder={"bf": "0"})
    videos.write_video(tmp_path / "large.ts", 20, size=size, encoder={"bf": "0"})
    both = videos.join(tmp_path / "both.ts", [tmp_path / "small.ts", tmp_path / "large.ts"])
    with open_source(str(both), live=True, limits=Limits(pixels=160 * 120)) as source:
        assert {frame.image.shape for frame in source} == {(120, 160, 3)}
    assert any("damaged" in line for line in source.warnings)


# ---- cut off in the middle ----


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"movflags": "+faststart"}),
        ("mp4", "libx265", {"movflags": "+faststart"}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mkv", "libx264", {}),
        ("ts", "libx264", {}),
        ("avi", "libx264", {}),
        ("flv", "libx264", {}),
    ],
)
def test_truncated(tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
    whole = tmp_path / f"whole.{suffix}"
    videos.write_video(whole, 100, codec=codec, options=options, noise=True, encoder={"bf": "0"})
    found, line = until_it_breaks(videos.cut(whole, tmp_path / f"cut.{suffix}", 0.6))
    assert 40 < len(found) < 80
    # all good frames are there; the picture that the cut went through may be patched, or missing
    assert [videos.number(frame.image) for frame in found[:-1]] == list(range(len(found) - 1))
    assert f"breaks off after {len(found)} frames" in line


def test_truncated_between_two_samples_of_an_mp4(tmp_path: Path) -> None:
    """No packet is damaged here: only the index says that something lacks."""
    videos.write_video(
        tmp_path / "a.mp4", 50, options={"movflags": "+faststart"}, encoder={"bf": "0"}
    )
    with av.open(str(tmp_path / "a.mp4")) as container:
        entry = container.streams.video[0].index_entries[30]
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: entry.pos])
    found, line = until_it_breaks(tmp_path / "b.mp4")
    assert [videos.number(frame.image) for frame in found] == list(range(30))
    assert "its index lists 50" in line


def test_truncated_mp4_with_its_index_at_the_end(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 50, noise=True)
    assert "is an MP4 cut off before its index (moov)" in refused(
        videos.cut(tmp_path / "a.mp4", tmp_path / "b.mp4", 0.6)
    )


def test_damage_in_the_middle_is_passed_over_and_warned_of(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 60, noise=True, encoder={"bf": "0"})
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    with av.open(str(tmp_path / "a.mp4")) as container:
        entry = container.streams.video[0].index_entries[14]
    content[entry.pos : entry.pos + entry.size] = bytes(entry.size)
    (tmp_path / "a.mp4").write_bytes(content)
    with open_source(str(tmp_path / "a.mp4")) as source:
        found = [videos.number(frame.image) for frame in source]
    assert found[:14] == list(range(14))
    assert found[-36:] == list(range(24, 60))  # whole again from the next key frame on
    assert len(source.warnings) == 1
    assert "damaged" in source.warnings[0]


def test_a_pipe_with_an_mp4_that_needs_seeking_says_what_to_pipe() -> None:
    content = io.BytesIO()
    videos.write_video(content, 200, container="mp4", noise=True)
    code = (
        "from vicort.runtime.sources import open_source\ntry: list(open_source('-'))\nexcept "
        "Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=content.getvalue(), capture_output=True, check=True
    )
    assert b"faststart" in done.stdout
    assert done.stderr == b""  # none of the decoder's noise


@pytest.mark.parametrize("live", [False, True])
def test_overwritten_packets_are_warned_about_and_counted(live: bool, tmp_path: Path) -> None:
    """The container flags them; a live stream reports the first at once."""
    path = tmp_path / "a.ts"
    videos.write_video(path, 100, noise=True)
    content, packet = bytearray(path.read_bytes()), 188
    count = len(content) // packet
    for place in (count // 4, count // 2, 3 * count // 4):
        content[place * packet : (place + 1) * packet] = b"U" * packet
    path.write_bytes(content)
    with av.open(str(path)) as container:
        flagged = sum(each.is_corrupt for each in container.demux(video=0))
    assert flagged
    with open_source(str(path), live=live) as source:
        early = [len(source.warnings) for _ in source]
    assert (early[60] > 0) == live
    counted = next(line for line in source.warnings if "damaged packets: their" in line)
    assert int(counted.split(": ")[1].split()[0]) >= flagged
