"""Encoded packets without their container: the same pictures at the same times as through it, and
codes for what is spoiled."""

from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import videos
from support.sizes import examples

from vicort.runtime.core import Frame, Motion
from vicort.runtime.errors import ConfigError, SourceError
from vicort.runtime.shared_session import (
    SessionClosed,
    SharedSession,
    StreamFinished,
    TimeOrderError,
)
from vicort.runtime.sources import open_source, packets
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.packets import PacketReader

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"


class Takes:
    """A session that keeps the frames, every one of them or every `step`-th."""

    def __init__(self, motion: bool = False, step: int = 1) -> None:
        self.system = SimpleNamespace(wants_motion=motion)
        self.frames: list[Frame] = []
        self._seen, self._step = 0, step

    def wants(self, at: Fraction) -> bool:
        self._seen += 1
        return self._seen % self._step == 0

    def push(self, frame: Frame) -> None:
        self.frames.append(frame)

    def finish(self, ending: Any = None) -> None:
        pass

    close = finish


def demuxed(path: Path) -> tuple[str, bytes, list[tuple[bytes, int]]]:
    """Codec, extradata, and packets with their times in microseconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [
            (bytes(each), round(each.pts * each.time_base * 1_000_000))
            for each in container.demux(stream)
            if each.size
        ]
        return (
            stream.codec_context.codec.canonical_name,
            stream.codec_context.extradata or b"",
            found,
        )


def written(path: Path, codec: str, count: int = 20, **options: str) -> Path:
    videos.needs_encoder(codec)
    with av.open(str(path), "w") as output:
        track = output.add_stream(codec, rate=25, options=videos.QUIET.get(codec, {}) | options)
        track.width, track.height, track.pix_fmt = (
            160,
            120,
            "yuvj420p" if codec == "mjpeg" else "yuv420p",
        )
        for i in range(count):
            picture = av.VideoFrame.from_ndarray(videos.image(i), format="rgb24").reformat(
                format=track.pix_fmt
            )
            picture.pts, picture.time_base = i, Fraction(1, 25)
            output.mux(track.encode(picture))
        output.mux(track.encode())
    return path


def watched(
    codec: str, extradata: bytes, pieces: list[tuple[bytes, int]], taking: Takes | None = None
) -> list[Frame]:
    taking = taking or Takes()
    shared = SharedSession(taking)
    shared.set_codec(codec, extradata)
    for data, time_us in pieces:
        shared.push_packet(data, time_us)
    shared.finish()
    return taking.frames


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mp4"),
        ("libx264", ".ts"),
        ("libx265", ".mp4"),
        ("libsvtav1", ".mp4"),
        ("libvpx", ".webm"),
        ("libvpx-vp9", ".webm"),
        ("mpeg4", ".mp4"),
        ("mpeg2video", ".ts"),
        ("mjpeg", ".mkv"),
    ],
)
def test_packets_give_what_their_container_gives(tmp_path: Path, codec: str, suffix: str) -> None:
    """B pictures, which are shown in another order than they come, among them."""
    path = written(tmp_path / f"clip{suffix}", codec)
    name, extradata, pieces = demuxed(path)
    with open_source(str(path)) as source:
        expected = [(frame.index, frame.image) for frame in source]
    found = watched(name, extradata, pieces)
    assert [frame.index for frame in found] == [index for index, _ in expected] == list(range(20))
    assert all(
        np.array_equal(frame.image, image)
        for frame, (_, image) in zip(found, expected, strict=True)
    )
    assert [float(frame.time) for frame in found] == pytest.approx(
        [i / 25 for i in range(20)], abs=1e-3
    )
    if codec == "libx264":
        assert [time for _, time in pieces] != sorted(time for _, time in pieces)


def test_motion_goes_with_what_is_sampled() -> None:
    name, extradata, pieces = demuxed(CLIP)
    with open_source(str(CLIP), motion=True) as source:
        expected = [frame.motion for frame in source.frames(Takes(step=5).wants)][:20]
    found = [
        frame.motion for frame in watched(name, extradata, pieces[:110], Takes(motion=True, step=5))
    ][:20]
    assert len(found) == 20
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Motion)
        assert one.refreshed == other.refreshed
        assert np.array_equal(one.cells, other.cells)
    assert all(frame.motion is None for frame in watched(name, extradata, pieces[:20]))


def test_another_codec_on_the_way_first_shows_what_the_one_before_holds_back(
    tmp_path: Path,
) -> None:
    first, second = written(tmp_path / "a.mp4", "libx264"), written(tmp_path / "b.webm", "libvpx")
    taking = Takes()
    shared = SharedSession(taking)
    for path, start in ((first, 0), (second, 1_000_000)):
        name, extradata, pieces = demuxed(path)
        shared.set_codec(name, extradata)
        for data, time_us in pieces:
            shared.push_packet(data, start + time_us)
    shared.finish()
    assert [videos.number(frame.image) for frame in taking.frames] == [*range(20), *range(20)]


def test_a_damaged_packet_costs_its_picture_and_no_more(tmp_path: Path) -> None:
    name, extradata, pieces = demuxed(written(tmp_path / "clip.mkv", "mjpeg"))
    taking = Takes()
    shared = SharedSession(taking)
    shared.set_codec(name, extradata)
    for i, (data, time_us) in enumerate(pieces):
        if i == 5:
            with pytest.raises(SourceError, match="continue with the next one"):
                shared.push_packet(b"no picture at all", time_us)
        else:
            shared.push_packet(data, time_us)
    shared.finish()
    assert [videos.number(frame.image) for frame in taking.frames] == [
        i for i in range(20) if i != 5
    ]


def test_pictures_that_come_too_late_keep_back_no_other(tmp_path: Path) -> None:
    name, extradata, pieces = demuxed(written(tmp_path / "clip.mkv", "mjpeg"))
    taking = Takes()
    shared = SharedSession(taking)
    shared.set_codec(name, extradata)
    shared.push_packet(pieces[0][0], 10)
    with pytest.raises(TimeOrderError):
        shared.push_packet(pieces[1][0], 10)
    shared.push_packet(pieces[2][0], 11)
    assert [videos.number(frame.image) for frame in taking.frames] == [0, 2]


@pytest.mark.parametrize(
    "codec",
    ["h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mjpeg", "png", "rawvideo"],
)
@settings(max_examples=examples(15))
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=200), max_size=5),
    extradata=st.binary(max_size=60),
)
def test_noise_is_refused_or_shows_nothing_large(
    codec: str, pieces: list[bytes], extradata: bytes
) -> None:
    taking = Takes()
    shared = SharedSession(taking)
    try:
        shared.set_codec(codec, extradata)
    except SourceError:
        return
    verbs = [partial(shared.push_packet, piece, i) for i, piece in enumerate(pieces)]
    for verb in [*verbs, shared.finish]:
        with suppress(SourceError):
            verb()
    assert all(Limits().allows(*frame.image.shape[1::-1]) for frame in taking.frames)


def test_a_picture_over_the_limit_is_refused(tmp_path: Path) -> None:
    name, extradata, pieces = demuxed(written(tmp_path / "clip.mkv", "mjpeg", 1))
    reader = PacketReader(name, extradata, limits=Limits(pixels=160 * 120 - 1))
    with pytest.raises(SourceError, match="cannot be decoded"):
        list(reader.read(*pieces[0]))


@pytest.mark.parametrize(
    ("codec", "extradata"),
    [
        ("", b""),
        ("no-such-codec", b""),
        ("aac", b""),
        ("h264\n", b""),
        ("h264", bytes(packets.MAX_EXTRADATA_BYTES + 1)),
    ],
)
def test_a_codec_that_there_is_not(codec: str, extradata: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        SharedSession(Takes()).set_codec(codec, extradata)
    assert str(caught.value).isprintable()


def test_packets_at_the_wrong_time(monkeypatch: pytest.MonkeyPatch) -> None:
    name, extradata, pieces = demuxed(CLIP)
    shared = SharedSession(Takes())
    with pytest.raises(ConfigError, match="no codec yet"):
        shared.push_packet(*pieces[0])
    shared.set_codec(name, extradata)
    with pytest.raises(SourceError, match="a packet of 0 bytes"):
        shared.push_packet(b"", 0)
    monkeypatch.setattr(packets, "MAX_PACKET_BYTES", 10)
    with pytest.raises(SourceError, match="1 to 10 bytes"):
        shared.push_packet(bytes(11), 0)
    monkeypatch.undo()
    shared.push_packet(*pieces[0])
    shared.finish()
    for verb in (lambda: shared.push_packet(*pieces[1]), lambda: shared.set_codec(name, extradata)):
        with pytest.raises(StreamFinished):
            verb()
    shared.close()
    for verb in (lambda: shared.push_packet(*pieces[1]), lambda: shared.set_codec(name, extradata)):
        with pytest.raises(SessionClosed):
            verb()
