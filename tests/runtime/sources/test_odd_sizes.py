"""Frames of odd sizes: very long, very high, of one pixel, and too large."""

from pathlib import Path

import numpy as np
import pytest
from support import videos

from vicort.runtime.cli import run
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.sources import open_source
from vicort.runtime.sources.limits import MAX_PIXELS

INTO = 112  # pixels, side of the embedded model's frames
# width, height -> rows and columns of the box that the frame becomes
BOXES = {
    (10_000, 10): (1, INTO),
    (10, 10_000): (INTO, 1),
    (60_000, 1): (1, INTO),
    (1, 1): (INTO, INTO),
    (2, 1): (INTO // 2, INTO),
}
CODECS = {"ffv1": ("mkv", "yuv444p"), "mjpeg": ("avi", "yuvj420p")}  # that write each size


def white(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def see_box(frame: np.ndarray, size: tuple[int, int]) -> None:
    """The frame, which is white, becomes a box of its own aspect on black."""
    out = np.empty((1, INTO, INTO, 3), np.uint8)
    Preprocessor(INTO, INTO)([frame], out)
    bright = out[0].min(axis=-1) > 200
    rows, columns = BOXES[size]
    assert (bright.any(axis=1).sum(), bright.any(axis=0).sum()) == (rows, columns)
    assert bright.sum() == rows * columns


@pytest.mark.parametrize("size", BOXES, ids="{0[0]}x{0[1]}".format)
def test_an_image_of_an_odd_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "odd.png"
    videos.write_image(path, white(*size))
    (frame,) = open_source(str(path))
    assert frame.image.shape == (size[1], size[0], 3)
    see_box(frame.image, size)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", BOXES, ids="{0[0]}x{0[1]}".format)
def test_a_video_of_an_odd_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], codec: str
) -> None:
    container, pixel_format = CODECS[codec]
    path = tmp_path / f"odd.{container}"
    monkeypatch.setattr(videos, "image", lambda number, *size: white(*size))
    videos.write_video(path, 3, codec=codec, pixel_format=pixel_format, size=size)
    with open_source(str(path)) as source:
        found = list(source)
    assert [frame.image.shape for frame in found] == [(size[1], size[0], 3)] * 3
    see_box(found[1].image, size)


@pytest.mark.parametrize("size", [(10_000, 10), (10, 10_000), (1, 1)], ids="{0[0]}x{0[1]}".format)
def test_a_run_over_an_odd_size(
    tmp_path: Path, tiny_engines: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    videos.write_video(tmp_path / "odd.mkv", 3, codec="ffv1", pixel_format="yuv444p", size=size)
    source, engines = str(tmp_path / "odd.mkv"), str(tiny_engines)
    for system in ("vicostream", "codecflow"):
        words = ["--system", system, "--ask", "what is there now?", "--fps", "source"]
        assert run.main([source, "--engine-dir", engines, *words]) == 0
        out, err = capsys.readouterr()
        assert f"{system}: 3 frames in 1 chunks" in out
        assert all("motion vectors of ffv1 are not available" in line for line in err.splitlines())


def refusal(capsys: pytest.CaptureFixture[str], source: Path, engines: Path) -> str:
    """The one line with which vicort-run refuses a source."""
    assert run.main([str(source), "--engine-dir", str(engines)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_a_video_that_declares_too_many_pixels(
    tmp_path: Path, tiny_engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.y4m"
    path.write_bytes(b"YUV4MPEG2 W16000 H16000 F25:1 C420\nFRAME\n" + bytes(1_000))
    assert refusal(capsys, path, tiny_engines) == (
        f"vicort-run: {path} has frames of 16000x16000, more than {MAX_PIXELS} pixels: allow them "
        "with `--max-pixels`\n"
    )


def test_an_image_that_declares_too_many_pixels(
    tmp_path: Path, tiny_engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(videos.png(16_000, 16_000))
    line = refusal(capsys, path, tiny_engines)
    assert line.startswith(f"vicort-run: {path} cannot be shown: ")
    assert f"if it has more than {MAX_PIXELS} pixels, allow them with `--max-pixels`" in line


def test_what_declares_no_pixels_is_one_line(
    tmp_path: Path, tiny_engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.png"
    path.write_bytes(videos.png(0, 10))
    assert "cannot be decoded" in refusal(capsys, path, tiny_engines)


def test_among_other_images_a_large_one_is_left_out(tmp_path: Path) -> None:
    videos.write_image(tmp_path / "1.png", white(8, 8))
    (tmp_path / "2.png").write_bytes(videos.png(16_000, 16_000))
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 1
    (line,) = source.warnings
    assert line.startswith(f"{tmp_path / '2.png'} is left out: ")
    assert "--max-pixels" in line
