"""Decoding on the GPU, on a stand-in: a module with PyNvVideoCodec's names whose decoder is
FFmpeg's, and memory that is the host's."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import videos
from support.nvdec import HostMemoryGpu, StandIn, on_host

import vicort.runtime.devices.cuda
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.devices.surface import Surface
from vicort.runtime.errors import DeviceError, SourceError, TruncatedSource, VicortError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.nvdec import Plane, turns
from vicort.runtime.sources.pixels import upright
from vicort.runtime.sources.sampler import Sampler


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> HostMemoryGpu:
    found = HostMemoryGpu()
    monkeypatch.setattr(vicort.runtime.devices.cuda, "open_gpu", lambda ordinal: found)
    return found


@pytest.fixture
def nvc(monkeypatch: pytest.MonkeyPatch, gpu: HostMemoryGpu) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    return module


def rgb(frames: list, height: int, width: int) -> np.ndarray:
    """[F, height, width, 3], of frames of either kind."""
    images = [
        on_host(frame.image) if isinstance(frame.image, Surface) else frame.image
        for frame in frames
    ]
    out = np.empty((len(images), height, width, 3), np.uint8)
    Preprocessor(height, width)(images, out)
    return out


def both(path: Path, **options) -> tuple[list, list]:
    """All frames decoded on the GPU, and on the CPU."""
    found = []
    for decode in ("gpu", "cpu"):
        with open_source(str(path), decode=decode, **options) as source:
            found.append(list(source))
    return found[0], found[1]


# ---- what comes out ----


@pytest.mark.parametrize(
    ("name", "codec", "encoder"),
    [
        ("a.mp4", "libx264", {"bf": "3"}),  # pictures come in another order than they are shown
        ("a.mkv", "libx265", {}),
        ("a.ts", "libx264", {}),  # has start codes already
        ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("a.mkv", "libsvtav1", {}),
    ],
)
def test_frames_times_and_order_are_the_cpus(
    nvc: StandIn, tmp_path: Path, name: str, codec: str, encoder: dict[str, str]
) -> None:
    videos.write_video(
        tmp_path / name,
        [Fraction(1001 * i, 30_000) for i in range(40)],
        codec=codec,
        encoder=encoder,
    )
    gpu, cpu = both(tmp_path / name)
    assert len(cpu) >= 39
    assert [(frame.time, frame.index) for frame in gpu] == [
        (frame.time, frame.index) for frame in cpu
    ]
    assert all(
        isinstance(frame.image, Surface) and isinstance(frame.image.luma, Plane) for frame in gpu
    )
    assert [videos.number(image) for image in rgb(gpu, 120, 160)] == [
        videos.number(frame.image) for frame in cpu
    ]
    assert np.abs(rgb(gpu, 120, 160).astype(int) - rgb(cpu, 120, 160)).mean() < 2


def test_only_wanted_frames_are_copied(nvc: StandIn, gpu: HostMemoryGpu, tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 60)
    asked, sampler = [], Sampler(2)

    def wants(time: Fraction) -> bool:
        asked.append(time)
        return sampler.accepts(time)

    with open_source(str(tmp_path / "a.mp4"), decode="gpu") as source:
        found = list(source.frames(wants))
    assert (
        [videos.number(image) for image in rgb(found, 120, 160)]
        == [frame.index for frame in found]
        == [0, 13, 25, 38, 50]
    )
    assert asked == [Fraction(i, 25) for i in range(60)]
    assert gpu.allocated == 2 * 5  # two planes a frame


@pytest.mark.parametrize(
    "matrix",
    [
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (-1, 0, 0, -1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_turned_video_comes_out_upright(
    nvc: StandIn, tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    videos.write_video(tmp_path / "a.mp4", 3)
    videos.turn(tmp_path / "a.mp4", matrix)
    gpu, cpu = both(tmp_path / "a.mp4")
    height, width, _ = cpu[0].image.shape
    assert gpu[0].image.shape == cpu[0].image.shape
    assert videos.corners(rgb(gpu, height, width)[0]) == videos.corners(cpu[0].image)


def test_turns_are_what_the_cpu_does() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    for a, b, c, d in [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (-1, 0, 0, -1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ]:
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1], np.int32)
        quarters, mirrored = turns(matrix)
        np.testing.assert_array_equal(
            np.rot90(image[:, ::-1] if mirrored else image, quarters), upright(image, matrix)
        )


@pytest.mark.parametrize(
    "colours",
    ["colorspace=1:color_primaries=1:color_trc=1", "colorspace=5", "colorspace=5:color_range=2"],
)
def test_colours_are_those_that_the_stream_says(nvc: StandIn, tmp_path: Path, colours: str) -> None:
    videos.write_video(
        tmp_path / "a.mp4", 3, encoder=dict(pair.split("=") for pair in colours.split(":"))
    )
    gpu, cpu = both(tmp_path / "a.mp4")
    error = rgb(gpu, 120, 160).astype(int) - rgb(cpu, 120, 160)
    # of another matrix or range: 8 and more
    assert np.abs(np.median(error, axis=(0, 1, 2))).max() <= 1


def test_live_sources_wait_for_nothing(nvc: StandIn, tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.ts", 10)
    with open_source(str(tmp_path / "a.ts"), live=True, decode="gpu") as source:
        assert len(list(source)) == 10
    assert nvc.latency is nvc.DisplayDecodeLatencyType.LOW
    # the last call asks for what is held back
    assert set(nvc.flags[:-1]) == {nvc.VideoPacketFlag.ENDOFPICTURE}
    assert nvc.flags[-1] == 0


def test_a_file_that_breaks_off_is_told_after_its_frames(nvc: StandIn, tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 60, options={"movflags": "+faststart"}, noise=True)
    cut = videos.cut(tmp_path / "a.mp4", tmp_path / "b.mp4", 0.6)
    with open_source(str(cut), decode="gpu") as source:
        found: list = []
        with pytest.raises(TruncatedSource, match="breaks off"):
            found.extend(source)  # keeps what came before the error
    assert [videos.number(image) for image in rgb(found, 120, 160)] == list(range(len(found)))
    assert 20 < len(found) < 60


def test_other_sources_have_nothing_to_decode(nvc: StandIn) -> None:
    with open_source("testsrc:seconds=1,size=64x48,fps=4", decode="gpu") as source:
        assert all(isinstance(frame.image, np.ndarray) for frame in source)


def test_pipes_fall_back_without_losing_a_packet(
    nvc: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvc.able["num_decoder_engines"] = 0
    videos.write_video(tmp_path / "a.ts", 10)
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "a.ts").read_bytes()))
    )
    with open_source("-", decode="auto") as source:
        assert [videos.number(frame.image) for frame in source] == list(range(10))


# ---- what cannot be ----


def clip(folder: Path, **options) -> str:
    videos.write_video(folder / "a.mp4", 5, **options)
    return str(folder / "a.mp4")


def no_module(monkeypatch: pytest.MonkeyPatch, nvc: StandIn) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)


def no_gpu(monkeypatch: pytest.MonkeyPatch, nvc: StandIn) -> None:
    def missing(ordinal):
        raise DeviceError("no NVIDIA driver is installed")

    monkeypatch.setattr(vicort.runtime.devices.cuda, "open_gpu", missing)


def no_engine(monkeypatch: pytest.MonkeyPatch, nvc: StandIn) -> None:
    nvc.able["num_decoder_engines"] = 0


def too_small(monkeypatch: pytest.MonkeyPatch, nvc: StandIn) -> None:
    nvc.able["width_max"] = 100


def no_library(monkeypatch: pytest.MonkeyPatch, nvc: StandIn) -> None:
    def fails(**_):
        raise RuntimeError(
            "Failed to open dynamic library: cuvid: libnvcuvid.so.1: cannot open\nmore"
        )

    nvc.GetDecoderCaps = fails


REASONS = {
    no_module: "pip install PyNvVideoCodec==2.2.4",
    no_gpu: "no NVIDIA driver is installed",
    no_engine: "no decoder for h264",
    too_small: "160x120, and this GPU decodes at most 100x4096",
    no_library: "libnvcuvid",
}


@pytest.mark.parametrize("lack", REASONS)
def test_what_is_not_there_is_an_error_or_a_warning(
    lack, nvc: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path)
    lack(monkeypatch, nvc)
    with pytest.raises(SourceError, match="cannot be decoded on the GPU") as failure:
        open_source(path, decode="gpu")
    assert REASONS[lack] in str(failure.value)
    assert "`--decode cpu`" in str(failure.value)
    assert "\n" not in str(failure.value)
    said: list[str] = []
    with open_source(path, decode="auto", warn=said.append) as source:
        assert [videos.number(frame.image) for frame in source] == list(range(5))
    assert len(said) == 1
    assert REASONS[lack] in said[0]


def test_a_module_that_does_not_load_says_what_it_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyNvVideoCodec does without a driver."""
    (tmp_path / "PyNvVideoCodec.py").write_text(
        "raise RuntimeError('Failed to load NVENC library: libnvidia-encode.so.1\\n\\n=== STEPS "
        "===')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    with pytest.raises(
        SourceError, match=r"libnvidia-encode.*NVIDIA_DRIVER_CAPABILITIES"
    ) as failure:
        open_source(clip(tmp_path), decode="gpu")
    assert "\n" not in str(failure.value)


def test_other_pixels_are_left_to_the_cpu(nvc: StandIn, tmp_path: Path) -> None:
    path = clip(tmp_path, pixel_format="yuv444p")
    with pytest.raises(SourceError, match="its pictures are yuv444p"):
        open_source(path, decode="gpu")
    with open_source(path, decode="auto") as source:
        assert len(list(source)) == 5


def test_a_first_packet_that_fails_says_how_to_go_on(nvc: StandIn, tmp_path: Path) -> None:
    nvc.fails_at = 0
    with (
        open_source(clip(tmp_path), decode="gpu") as source,
        pytest.raises(SourceError, match=r"HW decoder faced error\): use `--decode cpu`"),
    ):
        list(source)


def test_a_later_packet_that_fails_is_passed_over(nvc: StandIn, tmp_path: Path) -> None:
    nvc.fails_at = 30
    videos.write_video(tmp_path / "a.ts", 60, encoder={"bf": "0"})
    with open_source(str(tmp_path / "a.ts"), decode="gpu") as source:
        found = list(source)
    assert 40 < len(found) < 60
    assert any("1 damaged packets" in line for line in source.warnings)


def test_gaps_between_rows_are_refused_not_shown(nvc: StandIn, tmp_path: Path) -> None:
    nvc.gaps = True
    with (
        open_source(clip(tmp_path), decode="gpu") as source,
        pytest.raises(SourceError, match="gaps between rows"),
    ):
        list(source)


@pytest.mark.parametrize("call", ["copy", "decode", "synchronize"])
def test_a_gpu_that_is_lost_is_no_fault_of_the_source(
    call: str, nvc: StandIn, gpu: HostMemoryGpu, tmp_path: Path
) -> None:
    """A live source would be opened again and again, and a damaged packet is passed over."""
    begun = Fraction(1, 10)  # seconds; later frames that are only decoded are not copied
    lost = "the GPU failed (CUDA_ERROR_LAUNCH_FAILED), and this process can no longer use it"
    videos.write_video(tmp_path / "a.ts", 60, encoder={"bf": "0"})
    with open_source(str(tmp_path / "a.ts"), decode="gpu") as source:
        frames = source.frames(lambda at: call != "decode" or at < begun)
        next(frames)
        gpu.lost = lost
        nvc.fails_at, nvc.sync_fails = 30 if call == "decode" else -1, call == "synchronize"
        with pytest.raises(DeviceError) as failure:
            list(frames)
    assert str(failure.value) == lost
    assert not source.warnings


def test_a_synchronization_that_fails_on_a_gpu_that_works_is_the_sources(
    nvc: StandIn, tmp_path: Path
) -> None:
    nvc.sync_fails = True
    with (
        open_source(clip(tmp_path), decode="gpu") as source,
        pytest.raises(SourceError, match=r"decoded on the GPU \(unknown error\): use"),
    ):
        list(source)


def test_a_change_of_format_is_refused(nvc: StandIn, tmp_path: Path) -> None:
    nvc.pixel_format = nvc.Pixel_Format.P016
    with (
        open_source(clip(tmp_path), decode="gpu") as source,
        pytest.raises(SourceError, match="only NV12"),
    ):
        list(source)


def test_surfaces_of_the_gpu_are_not_for_the_cpu(nvc: StandIn, tmp_path: Path) -> None:
    with open_source(clip(tmp_path), decode="gpu") as source:
        frame = next(iter(source))
    with pytest.raises(VicortError, match="--decode cpu"):
        Preprocessor(56, 56)([frame.image], np.empty((1, 56, 56, 3), np.uint8))


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0)], ids=["upright", "turned"])
def test_pixels_that_are_not_square_are_seen_as_on_the_cpu(
    nvc: StandIn, tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    videos.write_video(tmp_path / "a.mp4", 3, encoder={"aspect": "2", "qp": "4"})
    videos.turn(tmp_path / "a.mp4", matrix)
    gpu, cpu = both(tmp_path / "a.mp4")
    assert {frame.image.shape for frame in gpu} == {frame.image.shape for frame in cpu}
    assert cpu[0].image.shape == ((120, 320, 3) if matrix[0] else (320, 120, 3))
    difference = np.abs(rgb(gpu, 112, 112).astype(int) - rgb(cpu, 112, 112))
    assert difference.mean() < 3


def test_untagged_hd_has_the_cpus_colours(nvc: StandIn, tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 1, size=(640, 608), encoder={"qp": "4"})
    gpu, cpu = both(tmp_path / "a.mp4")
    assert np.abs(rgb(gpu, 112, 112).astype(int) - rgb(cpu, 112, 112)).mean() < 2
