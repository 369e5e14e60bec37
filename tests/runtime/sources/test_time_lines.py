"""Frame times of whole files: against what was written, and against what FFmpeg says of them."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from support import videos

from vicort.runtime.sources import open_source

TICKS = 90_000
STEP = Fraction(1, 25)


def shown(path: Path) -> tuple[list[tuple[float, int]], list[str]]:
    """(seconds, number in the picture) of every frame, and the warnings."""
    with open_source(str(path)) as source:
        found = [(round(float(each.time), 3), videos.number(each.image)) for each in source]
        return found, source.warnings


def evenly(count: int, start: float = 0.0) -> list[tuple[float, int]]:
    return [(round(start + i / 25, 3), i) for i in range(count)]


def write_part(path: Path, first: int, count: int, ticks: int) -> Path:
    """MPEG-TS of `count` pictures that show the numbers from `first` on, its first at `ticks`."""
    with av.open(str(path), "w", format="mpegts", options={"mpegts_copyts": "1"}) as output:
        track = output.add_stream("libx264", rate=25, options={"bf": "0"})
        track.width, track.height, track.pix_fmt, track.gop_size = 160, 120, "yuv420p", 25
        track.time_base = track.codec_context.time_base = Fraction(1, TICKS)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(videos.image(first + i), format="rgb24")
            frame.pts, frame.time_base = ticks + i * TICKS // 25, Fraction(1, TICKS)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    return path


def write_playlist(path: Path, lengths: list[float], *, says_so: bool = True) -> Path:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXT-X-PLAYLIST-TYPE:VOD"]
    for number, length in enumerate(lengths):
        lines += ["#EXT-X-DISCONTINUITY"] * (number > 0 and says_so)
        lines += [f"#EXTINF:{length},", f"part{number}.ts"]
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    return path


@pytest.mark.parametrize(
    "seconds",
    [(10, 9010, 14), (10, 15, 10), (10, 10, 10), (9000, 10, 5), (10, 17, 300)],
    ids=str,
)
def test_a_playlist_whose_timestamps_jump(seconds: tuple[int, ...], tmp_path: Path) -> None:
    for number, start in enumerate(seconds):
        write_part(tmp_path / f"part{number}.ts", 20 * number, 20, start * TICKS)
    found, warnings = shown(write_playlist(tmp_path / "a.m3u8", [0.8] * 3))
    assert found == evenly(60)
    assert any("timestamps jump" in line for line in warnings)


def test_a_playlist_that_does_not_say_so_keeps_short_gaps(tmp_path: Path) -> None:
    write_part(tmp_path / "part0.ts", 0, 20, 10 * TICKS)
    write_part(tmp_path / "part1.ts", 20, 20, 15 * TICKS)
    found, warnings = shown(write_playlist(tmp_path / "a.m3u8", [0.8] * 2, says_so=False))
    assert [time for time, _ in found[19:21]] == [0.76, 5.0]
    assert not any("timestamps" in line for line in warnings)


@pytest.mark.parametrize("seconds", [(10, 9010), (10, 10), (50, 10)], ids=str)
def test_transport_streams_joined_end_to_end(seconds: tuple[int, ...], tmp_path: Path) -> None:
    parts = [
        write_part(tmp_path / f"part{number}.ts", 20 * number, 20, start * TICKS)
        for number, start in enumerate(seconds)
    ]
    found, warnings = shown(videos.join(tmp_path / "a.ts", parts))
    assert found == evenly(40)
    assert any("timestamps jump" in line for line in warnings)


@pytest.mark.parametrize("before", [1, 100])
def test_the_clock_of_a_transport_stream_wraps_around(before: int, tmp_path: Path) -> None:
    write_part(tmp_path / "a.ts", 0, 60, (1 << 33) - before * TICKS)
    assert shown(tmp_path / "a.ts") == (evenly(60), [])


@pytest.mark.parametrize("ending", ["mkv", "webm", "ts"])
def test_files_joined_end_to_end_go_on(ending: str, tmp_path: Path) -> None:
    part = tmp_path / f"part.{ending}"
    videos.write_video(part, 15, codec="libvpx-vp9" if ending == "webm" else "libx264")
    found, warnings = shown(videos.join(tmp_path / f"a.{ending}", [part] * 3))
    files = 3 if ending == "ts" else 2  # FFmpeg reads two Matroska files
    assert [number for _, number in found] == [*range(15)] * files
    assert np.allclose([time for time, _ in found], [i / 25 for i in range(15 * files)], atol=0.002)
    repaired = "timestamps of 2 frames were jumping"
    not_read = "is 3 files joined end to end, and only the first two are read"
    assert (repaired if ending == "ts" else not_read) in warnings[-1]


@pytest.mark.parametrize("ending", ["mp4", "mov", "flv"])
def test_files_of_which_only_the_first_is_read_are_counted(ending: str, tmp_path: Path) -> None:
    part = tmp_path / f"part.{ending}"
    videos.write_video(part, 15)
    assert shown(part)[1] == []
    found, warnings = shown(videos.join(tmp_path / f"a.{ending}", [part, part, part]))
    assert len(found) == 15
    assert len(warnings) == 1
    assert "is 3 files joined end to end, and only the first is read" in warnings[0]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_gap_in_a_file_is_kept(ending: str, tmp_path: Path) -> None:
    times = [i * STEP for i in range(10)] + [1000 + i * STEP for i in range(10)]
    videos.write_video(tmp_path / f"a.{ending}", times)
    found, warnings = shown(tmp_path / f"a.{ending}")
    assert [time for time, _ in found] == pytest.approx([float(time) for time in times], abs=0.002)
    assert not warnings


# ---- a stream that starts after the container ----


def write_with_sound(path: Path, video_start: Fraction) -> None:
    """Sound from 0 on, and 25 pictures a second from `video_start` on."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.codec_context.time_base = STEP
        sound = output.add_stream("aac", rate=16_000, layout="mono")
        packets = []
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(videos.image(i), format="rgb24")
            frame.pts, frame.time_base = round(video_start / STEP) + i, STEP
            packets += video.encode(frame)
        for start in range(0, 48_000, 1024):
            tone = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            packets += sound.encode(frame)
        packets += [*video.encode(None), *sound.encode(None)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 5), Fraction(2)], ids=str)
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts", "flv"])
def test_time_0_is_the_start_of_the_container(ending: str, start: Fraction, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    write_with_sound(path, start)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        says = float(video.start_time * video.time_base - Fraction(container.start_time, 10**6))
    found, warnings = shown(path)
    assert found[0][0] == pytest.approx(says, abs=0.001)
    assert found[0][0] == pytest.approx(float(start), abs=0.07)  # of the sound's first packet
    assert [number for _, number in found] == [*range(20)]
    assert not warnings


# ---- raw streams ----


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24_000, 1001), Fraction(50)], ids=str)
@pytest.mark.parametrize(
    ("codec", "name"),
    [("libx264", "h264"), ("libx265", "hevc"), ("mpeg4", "m4v"), ("mpeg2video", "mpeg2video")],
)
def test_raw_streams_have_the_rate_that_their_codec_says(
    codec: str, name: str, rate: Fraction, b_frames: int, tmp_path: Path
) -> None:
    write_raw(tmp_path / "a.raw", codec, name, rate, b_frames)
    found, _ = shown(tmp_path / "a.raw")
    assert [number for _, number in found] == [*range(40)]
    assert [time for time, _ in found] == pytest.approx([i / rate for i in range(40)], abs=0.001)


@pytest.mark.parametrize("fields", ["tff=1", "fake-interlaced=1:pic-struct=1"])
def test_two_fields_of_a_raw_stream_are_one_picture(fields: str, tmp_path: Path) -> None:
    write_raw(tmp_path / "a.raw", "libx264", "h264", Fraction(25), 0, {"x264-params": fields})
    assert [time for time, _ in shown(tmp_path / "a.raw")[0]] == [i / 25 for i in range(40)]


def write_raw(
    path: Path,
    codec: str,
    name: str,
    rate: Fraction,
    b_frames: int,
    options: dict[str, str] | None = None,
) -> None:
    videos.needs_encoder(codec)
    own = {"libx265": {"x265-params": f"log-level=none:bframes={b_frames}"}}
    chosen = own.get(codec, {"bf": str(b_frames)}) | (options or {})
    with av.open(str(path), "w", format=name) as output:
        track = output.add_stream(codec, rate=rate, options=chosen)
        track.width, track.height, track.pix_fmt = 160, 120, "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(videos.image(i), format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            output.mux(track.encode(frame))
        output.mux(track.encode())


def test_times_rise_in_all_of_them(tmp_path: Path) -> None:
    parts = [write_part(tmp_path / f"p{i}.ts", 0, 12, i * 7 * TICKS) for i in (1, 5, 2, 300, 3)]
    found, _ = shown(videos.join(tmp_path / "a.ts", parts))
    assert all(before < after for (before, _), (after, _) in pairwise(found))
