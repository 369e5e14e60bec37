"""Folders and globs of images, and the built-in pattern."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support import videos

from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.pattern import CYCLE, RADIUS, THINGS


def write_images(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        Image.fromarray(videos.image(i)).save(folder / name)


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    write_images(tmp_path, ["shot1.png", "shot2.PNG", "shot10.png", "shot11.bmp", "shot100.tiff"])
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not one either")
    with open_source(str(tmp_path)) as source:
        assert (source.frames_total, source.duration, source.live) == (5, Fraction(5, 2), False)
        found = list(source)
    assert [videos.number(frame.image) for frame in found] == list(range(5))
    assert [frame.time for frame in found] == [Fraction(i, 2) for i in range(5)]
    np.testing.assert_array_equal(found[0].image, videos.image(0))


def test_a_glob_and_one_image(tmp_path: Path) -> None:
    (tmp_path / "sub dir").mkdir()
    write_images(tmp_path / "sub dir", ["a1%d.png", "a2.png", "b3.png"])
    found = list(open_source(f"{tmp_path}/**/a*.png", image_fps=Fraction(1, 3)))
    assert [(videos.number(frame.image), frame.time) for frame in found] == [(0, 0), (1, 3)]
    assert [
        videos.number(frame.image) for frame in open_source(str(tmp_path / "sub dir" / "b3.png"))
    ] == [2]


# upright, and the three turns; cameras write no mirrored ones
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    photo = Image.fromarray(videos.image(3, 320, 240))
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "photo.jpg", quality=95, exif=exif, subsampling=0)
    (frame,) = open_source(str(tmp_path / "photo.jpg"))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg")), int)
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image - expected).mean() < 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_pixels(tmp_path: Path, mode: str) -> None:
    gray = videos.image(5).mean(axis=-1).astype(np.uint16)
    picture = (
        Image.fromarray(gray * 257)
        if mode == "I;16"
        else Image.fromarray(gray.astype(np.uint8)).convert(mode)
    )
    picture.save(tmp_path / "a.png")
    (frame,) = open_source(str(tmp_path / "a.png"))
    assert np.abs(frame.image - gray[..., None].astype(int)).max() <= 1


def test_a_broken_image_is_left_out_and_warned_of(tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png", "1.png", "2.png"])
    (tmp_path / "1.png").write_bytes(b"this is no image")
    heard: list[str] = []
    with open_source(str(tmp_path), warn=heard.append) as source:
        assert [frame.index for frame in source] == [0, 2]
    assert source.warnings == heard
    assert "1.png is left out" in heard[0]


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000)], ids="{0[0]}x{0[1]}".format)
def test_among_other_images_one_that_is_too_long_is_left_out(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    write_images(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    videos.write_image(tmp_path / "1.png", np.zeros((size[1], size[0], 3), np.uint8))
    videos.write_image(tmp_path / "2.png", np.zeros((1, 200, 3), np.uint8))  # not too long
    with open_source(str(tmp_path)) as source:
        assert [(frame.index, frame.time) for frame in source] == [
            (0, 0),
            (2, 1),
            (3, Fraction(3, 2)),
        ]
    assert source.warnings == [
        f"{tmp_path / '1.png'} is left out: it has {size[0]}x{size[1]} pixels, and one side is "
        "more than 200 times the other: crop it"
    ]


def test_only_images_that_are_too_long(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        videos.write_image(tmp_path / name, np.zeros((4, 1000, 3), np.uint8))
    with pytest.raises(SourceError, match=r"none of the 2 images of .* can be used: give PNG"):
        list(open_source(str(tmp_path)))


def test_only_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"this is no image")
    with pytest.raises(SourceError, match="none of the 1 images"):
        list(open_source(str(tmp_path)))


def test_the_pattern_draws_what_it_says() -> None:
    with open_source("testsrc:seconds=12,size=161x121,fps=2") as source:
        assert (source.frames_total, source.duration) == (24, 12)
        found = list(source)
    again = list(open_source("testsrc:seconds=12,size=161x121,fps=2"))
    assert [frame.time for frame in found] == [Fraction(i, 2) for i in range(24)]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, again, strict=True))
    for frame in found:
        assert frame.image.shape == (121, 161, 3)
        second = int(frame.time) % CYCLE
        seen = {
            tuple(color)
            for color in np.unique(frame.image.reshape(-1, 3), axis=0)
            if len(set(color)) > 1 or color[0] > 120
        }
        assert seen == ({tuple(np.uint8(THINGS[second][1]))} if second < len(THINGS) else set())
        colored = np.argwhere(np.any(frame.image != frame.image[:, :1], axis=-1))
        assert second >= len(THINGS) or (
            np.ptp(colored[:, 0]) <= 2 * RADIUS * 121 and colored.min() > 0
        )


def test_the_pattern_moves() -> None:
    frames = list(open_source("testsrc:seconds=1"))
    assert len(frames) == 25
    centers = [np.argwhere(frame.image[..., 0] > 200)[:, 1].mean() for frame in frames]
    assert all(before < after for before, after in pairwise(centers))
