"""Odd videos that must simply work: which frame, when, which way up and in which colours is read
off the decoded pictures."""

import io
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from support import videos

from vicort.runtime.core import Frame
from vicort.runtime.sources import open_source
from vicort.runtime.sources.sampler import Sampler

REAL = Path(__file__).parents[4] / "shared" / "videos"
MILLISECOND = Fraction(1, 1000)  # the tick of Matroska


def frames(path: Path | str, **options) -> list[Frame]:
    with open_source(str(path), **options) as source:
        return list(source)


def numbers(found: list[Frame]) -> list[int]:
    return [videos.number(frame.image) for frame in found]


def real(name: str) -> Path:
    if not (REAL / name).is_file():
        pytest.skip(f"the real clip {name} is not beside the project")
    return REAL / name


def test_times_are_exact_and_frames_are_counted(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", [Fraction(1001 * i, 30_000) for i in range(40)])
    with open_source(str(tmp_path / "a.mp4")) as source:
        assert (source.frames_total, source.live) == (40, False)
        found = list(source)
    assert [frame.time for frame in found] == [Fraction(1001 * i, 30_000) for i in range(40)]
    assert [frame.index for frame in found] == numbers(found) == list(range(40))
    assert all(frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous for frame in found)
    assert source.warnings == []


def test_unwanted_frames_are_counted_but_not_converted(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 60)
    asked, sampler = [], Sampler(2)

    def wants(time: Fraction) -> bool:
        asked.append(time)
        return sampler.accepts(time)

    with open_source(str(tmp_path / "a.mp4"), isolate=False) as source:
        decoder = source._decoder
        converted, convert = [], decoder.convert
        decoder.convert = lambda picture: converted.append(picture.pts) or convert(picture)
        found = list(source.frames(wants))
    assert [frame.index for frame in found] == numbers(found) == [0, 13, 25, 38, 50]
    assert asked == [Fraction(i, 25) for i in range(60)]
    assert len(converted) == 6  # with the last one, which is on the screen at the end
    assert source.ending.frame.index == numbers([source.ending.frame])[0] == 59
    assert source.ending.time == Fraction(60, 25)


def test_one_frame(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 1)
    assert [(frame.time, frame.index) for frame in frames(tmp_path / "a.mp4")] == [(0, 0)]


def test_odd_width_and_height(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mkv", 6, size=(161, 121), pixel_format="yuv444p")
    found = frames(tmp_path / "a.mkv")
    assert numbers(found) == list(range(6))
    assert {frame.image.shape for frame in found} == {(121, 161, 3)}


MATRICES = {  # a, b, c, d, and what is then seen of the quarters 0 1 / 2 3
    "as it is": ((1, 0, 0, 1), [0, 1, 2, 3]),
    "clockwise": ((0, 1, -1, 0), [2, 0, 3, 1]),
    "half turn": ((-1, 0, 0, -1), [3, 2, 1, 0]),
    "counter-clockwise": ((0, -1, 1, 0), [1, 3, 0, 2]),
    "mirrored": ((-1, 0, 0, 1), [1, 0, 3, 2]),
    "upended": ((1, 0, 0, -1), [2, 3, 0, 1]),
    "transposed": ((0, 1, 1, 0), [0, 2, 1, 3]),
    "transposed along the other diagonal": ((0, -1, -1, 0), [3, 1, 2, 0]),
}


@pytest.mark.parametrize(("matrix", "seen"), MATRICES.values(), ids=MATRICES)
def test_rotation_metadata_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], seen: list[int]
) -> None:
    path = tmp_path / "a.mp4"
    videos.write_video(path, 2)
    videos.turn(path, matrix)
    found = frames(path)
    assert [videos.corners(frame.image) for frame in found] == [seen, seen]
    assert {frame.image.shape[:2] for frame in found} == {(120, 160) if matrix[0] else (160, 120)}
    assert all(frame.image.flags.c_contiguous for frame in found)


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [Fraction(t, 1000) for t in (0, 40, 41, 500, 533, 566, 3000, 3001, 3700, 10_000)]
    videos.write_video(tmp_path / "a.mkv", times)
    found = frames(tmp_path / "a.mkv")
    assert [frame.time for frame in found] == times
    assert numbers(found) == list(range(10))


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("libx264", "yuv420p10le"),
        ("libx265", "yuv420p"),
        ("libx265", "yuv420p10le"),
        ("libsvtav1", "yuv420p"),
    ],
)
def test_ten_bits_hevc_and_av1(tmp_path: Path, codec: str, pixel_format: str) -> None:
    videos.write_video(tmp_path / "a.mp4", 8, codec=codec, pixel_format=pixel_format)
    found = frames(tmp_path / "a.mp4")
    assert numbers(found) == list(range(8))
    assert [frame.time for frame in found] == [Fraction(i, 25) for i in range(8)]
    assert all(videos.corners(frame.image) == [0, 1, 2, 3] for frame in found)


def write_two_streams(path: Path) -> None:
    """Audio first, then a video that shows 0, 1, …, then one of another size that shows 100, 101,
    …"""
    with av.open(str(path), "w") as output:
        audio = output.add_stream("aac", rate=16_000, layout="mono")
        tracks = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for track, (track.width, track.height) in zip(tracks, ((160, 120), (96, 64)), strict=True):
            track.pix_fmt = "yuv420p"
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate, sound.pts = 16_000, 0
        output.mux(audio.encode(sound))
        for i in range(10):
            for track, first in zip(tracks, (0, 100), strict=True):
                picture = av.VideoFrame.from_ndarray(
                    videos.image(first + i, track.width, track.height), format="rgb24"
                )
                picture.pts, picture.time_base = i, Fraction(1, 25)
                output.mux(track.encode(picture))
        for track in (audio, *tracks):
            output.mux(track.encode())


def test_several_streams(tmp_path: Path) -> None:
    write_two_streams(tmp_path / "a.mkv")
    assert numbers(frames(tmp_path / "a.mkv")) == list(range(10))
    assert numbers(frames(tmp_path / "a.mkv", stream=1)) == list(range(10))
    assert numbers(frames(tmp_path / "a.mkv", stream=2)) == list(range(100, 110))


def test_real_file_with_six_streams() -> None:
    first, second = frames(real("nasa_13013.mp4")), frames(real("nasa_13013.mp4"), stream=3)
    assert (len(first), first[0].image.shape) == (325, (180, 320, 3))
    assert [frame.time for frame in first] == [Fraction(i, 25) for i in range(325)]
    assert second[0].image.shape == (270, 480, 3)


@pytest.mark.parametrize(
    ("name", "count", "rate", "side"),
    [("h265_video.mp4", 10, 10, 128), ("h264_10bits.mp4", 30, 30, 200)],
)
def test_real_hevc_and_ten_bits(name: str, count: int, rate: int, side: int) -> None:
    found = frames(real(name))
    assert [frame.time for frame in found] == [Fraction(i, rate) for i in range(count)]
    assert found[0].image.shape == (side, side, 3)


def test_a_late_start_is_zero_and_forward_gaps_stay(tmp_path: Path) -> None:
    times = [Fraction(5 * 3600) + Fraction(i, 25) + (100 if i >= 8 else 0) for i in range(16)]
    videos.write_video(tmp_path / "a.mkv", times)
    with open_source(str(tmp_path / "a.mkv")) as source:
        assert [frame.time for frame in source] == [time - times[0] for time in times]
    assert source.warnings == []


def test_a_jump_back_goes_on_from_there(tmp_path: Path) -> None:
    for name, count in (("a.ts", 30), ("b.ts", 20)):
        videos.write_video(tmp_path / name, [3 + Fraction(i, 25) for i in range(count)])
    whole = videos.join(tmp_path / "joined.ts", [tmp_path / "a.ts", tmp_path / "b.ts"])
    with open_source(str(whole)) as source:
        found = list(source)
    assert numbers(found) == [*range(30), *range(20)]
    assert [after.time - before.time for before, after in pairwise(found)] == [Fraction(1, 25)] * 49
    assert len(source.warnings) == 1
    assert "jump back" in source.warnings[0]


def test_missing_timestamps_are_spaced_by_the_frame_rate(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.h264", 20, container="h264", encoder={"bf": "0"})
    with open_source(str(tmp_path / "a.h264")) as source:
        found = list(source)
    assert numbers(found) == list(range(20))
    assert [frame.time - found[0].time for frame in found] == [Fraction(i, 25) for i in range(20)]


def test_raw_dv_has_the_rate_that_its_frames_have(tmp_path: Path) -> None:
    """FFmpeg makes 60,000 frames a second of it on average, which is more than the limit."""
    videos.needs_encoder("dvvideo")
    path = tmp_path / "clip.dv"
    with av.open(str(path), "w", format="dv") as output:
        track = output.add_stream("dvvideo", rate=25)
        track.width, track.height, track.pix_fmt = 720, 576, "yuv420p"
        for i in range(3):
            picture = av.VideoFrame.from_ndarray(videos.image(i, 720, 576), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            output.mux(track.encode(picture))
        output.mux(track.encode())
    with open_source(str(path)) as source:
        assert [(videos.number(frame.image), frame.time) for frame in source] == [
            (i, Fraction(i, 25)) for i in range(3)
        ]


def test_spaces_colons_and_percents_in_the_name(tmp_path: Path) -> None:
    for name in ("my holiday clip.mp4", "12:30 cam.mp4", "50%d[1].mp4"):
        videos.write_video(tmp_path / name, 3)
        assert numbers(frames(tmp_path / name)) == [0, 1, 2]


def test_a_pipe_that_cannot_seek(tmp_path: Path) -> None:
    content = io.BytesIO()
    videos.write_video(content, 30, container="mpegts")
    code = (
        "from vicort.runtime.sources import open_source; print([(f.index, f.image.shape) for f "
        "in open_source('-')][-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=content.getvalue(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode().strip(), done.stderr) == (
        0,
        "(29, (120, 160, 3))",
        b"",
    )


def test_whole_files_of_other_containers_are_not_called_broken(tmp_path: Path) -> None:
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    for suffix, options in (
        ("mkv", {}),
        ("ts", {}),
        ("avi", {}),
        ("flv", {}),
        ("mov", {}),
        ("mp4", {}),
        ("mp4", fragmented),
    ):
        videos.write_video(tmp_path / f"a.{suffix}", 30, options=options, encoder={"bf": "0"})
        assert numbers(frames(tmp_path / f"a.{suffix}")) == list(range(30))


# ---- colours ----

# red's and blue's share of luma; tag
SPACES = {
    "BT.601": (0.299, 0.114, 6),
    "BT.709": (0.2126, 0.0722, 1),
    "BT.2020": (0.2627, 0.0593, 9),
}
COLORS = [(200, 30, 40), (30, 180, 60), (20, 40, 220), (250, 250, 250), (5, 5, 5)]


def yuv(color: tuple[int, int, int], red: float, blue: float, full: bool) -> tuple[int, int, int]:
    """Y'CbCr of an 8-bit colour (ITU-R BT.601, BT.709, BT.2020: one formula, other constants)."""
    r, g, b = (value / 255 for value in color)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    return (
        (round(255 * y), round(128 + 255 * u), round(128 + 255 * v))
        if full
        else (round(16 + 219 * y), round(128 + 224 * u), round(128 + 224 * v))
    )


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("space", SPACES)
def test_colours_by_matrix_and_range(tmp_path: Path, space: str, full: bool) -> None:
    red, blue, tag = SPACES[space]
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        track = output.add_stream("libx264", rate=25, options={"qp": "0"})
        track.width = track.height = 64
        track.pix_fmt, track.codec_context.colorspace, track.codec_context.color_range = (
            "yuv420p",
            tag,
            2 if full else 1,
        )
        for i, color in enumerate(COLORS):
            planes = np.empty((96, 64), np.uint8)
            planes[:64], planes[64:80], planes[80:] = yuv(color, red, blue, full)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    for frame, color in zip(frames(tmp_path / "a.mp4"), COLORS, strict=True):
        assert np.abs(frame.image.astype(int) - color).max() <= 4
