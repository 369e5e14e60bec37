"""Folders and globs of images, and the built-in pattern."""

import glob
import io
import os
import re
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from support import videos
from support.hostile import chunk, png

from vicort.runtime.cli import run
from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.image_glob import matches
from vicort.runtime.sources.images import grouped, natural_order
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_photos_are_turned_as_their_exif_says(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    photo = Image.fromarray(videos.image(3, 320, 240))
    exif = photo.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    photo.save(path, quality=95, exif=exif, **({"subsampling": 0} if suffix == "jpg" else {}))
    (frame,) = open_source(str(path))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), int)
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image - expected).mean() < 3


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("orientation", [1, 4])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_photos_with_a_colour_profile_are_read(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    photo = Image.fromarray(videos.image(3, 320, 240))
    exif = photo.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    photo.save(path, quality=95, exif=exif, icc_profile=PROFILE)
    (frame,) = open_source(str(path))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), int)
    assert np.abs(frame.image - expected).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_with_a_colour_profile_is_read(tmp_path: Path, mode: str) -> None:
    photo = Image.fromarray(videos.image(3, 64, 48))
    photo = photo.convert("L").convert(mode) if mode == "I;16" else photo.convert(mode)
    photo.save(tmp_path / "a.png", icc_profile=PROFILE)
    (tmp_path / "b.png").write_bytes(png(8, 8, chunk(b"iCCP", b"icc\0\0")))  # that breaks off
    photo.save(tmp_path / "c.apng", format="PNG", icc_profile=PROFILE)
    with open_source(str(tmp_path)) as source:
        found = [frame.image for frame in source]
    assert len(found) == 3
    if mode != "I;16":  # Pillow clips it
        opaque = Image.open(tmp_path / "a.png").convert("RGB")
        np.testing.assert_array_equal(found[0], np.asarray(opaque))


def test_png_in_a_video_with_a_colour_profile_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as output:
        track = output.add_stream("png", rate=4)
        track.width, track.height, track.pix_fmt = 64, 48, "rgb24"
        for i in range(4):
            file = io.BytesIO()
            Image.fromarray(videos.image(i, 64, 48)).save(file, "PNG", icc_profile=PROFILE)
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 4), track, True
            output.mux(packet)
    photo = Image.fromarray(videos.image(3, 64, 48))
    photo.save(tmp_path / "a.png", icc_profile=PROFILE, save_all=True, append_images=[photo] * 3)
    for name in ("a.mov", "a.png"):
        with open_source(str(tmp_path / name)) as source:
            assert sum(frame.image.shape == (48, 64, 3) for frame in source) == 4, name


def numbers_and_times(spec: Path) -> list[tuple[int, Fraction]]:
    with open_source(str(spec)) as source:
        return [(videos.number(frame.image), frame.time) for frame in source]


@pytest.mark.parametrize("suffix", ["png", "apng", "gif", "avif", "webp"])
def test_an_animation_is_played_with_its_own_times(tmp_path: Path, suffix: str) -> None:
    first, *others = (Image.fromarray(videos.image(i)) for i in range(4))
    path = tmp_path / f"a.{suffix}"
    first.save(
        path,
        format="PNG" if suffix == "apng" else None,
        save_all=True,
        append_images=others,
        duration=[100, 200, 300, 400],
    )
    times = [Fraction(0), Fraction(1, 10), Fraction(3, 10), Fraction(6, 10)]
    assert numbers_and_times(path) == list(zip(range(4), times, strict=True))


@pytest.mark.parametrize("suffix", ["png", "gif", "avif", "webp"])
def test_an_animation_in_a_folder_is_one_picture(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, ["0.png", "2.png"])
    Image.fromarray(videos.image(7)).save(
        tmp_path / f"1.{suffix}", save_all=True, append_images=[Image.fromarray(videos.image(8))]
    )
    with open_source(str(tmp_path)) as source:
        found = [videos.number(frame.image) for frame in source]
    assert found == [0, 7, 1]
    (warning,) = source.warnings
    assert "only its first picture" in warning


@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize(("mode", "order"), [("RGB", b"II"), ("I;16B", b"MM")])
def test_a_tiff_of_several_pages_is_warned_of(
    tmp_path: Path, mode: str, order: bytes, pages: int
) -> None:
    path, warnings = tmp_path / "a.tiff", []
    first, *rest = [Image.new(mode, (64, 48), i) for i in range(pages)]
    first.save(path, save_all=True, append_images=rest)
    assert path.read_bytes()[:2] == order
    with open_source(str(path), warn=warnings.append) as source:
        assert [frame.image.max() for frame in source] == [0]
    several = [f"{path} has several pages: only the first one is shown"]
    assert warnings == (several if pages > 1 else [])


def test_another_format_under_the_name_of_a_tiff_has_no_pages(tmp_path: Path) -> None:
    """The bytes of a JPEG at the places of a TIFF's numbers lead into this one."""
    path, warnings = tmp_path / "a.tif", []
    Image.new("RGB", (64, 48)).save(path, "JPEG")
    path.write_bytes(path.read_bytes() + b"\0\1" * (1 << 20))
    with open_source(str(path), warn=warnings.append) as source:
        assert len(list(source)) == 1
    assert warnings == []


def test_a_name_with_an_image_ending_that_is_no_file_is_warned_about(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.5.png", "1.png", "1.10.png"])
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with open_source(str(tmp_path)) as source:
        assert [videos.number(frame.image) for frame in source] == [1, 0, 2]
    (warning,) = source.warnings
    assert "2 names of no readable file are left out ('gone.png', 'pipe.png')" in warning


ENDINGS = ["jpg", "JPEG", "jfif", "jpe", "PNG", "webp", "bmp", "tga", "tif", "avif", "gif", "jp2"]


def test_every_ending_of_an_image_is_read_in_a_folder(tmp_path: Path) -> None:
    formats = {"jfif": "JPEG", "jpe": "JPEG"}
    for place, ending in enumerate([*ENDINGS, "j2k", "ppm", "pgm", "qoi"]):
        image = Image.fromarray(videos.image(place))
        image.save(tmp_path / f"{place}.{ending}", format=formats.get(ending))
    with open_source(str(tmp_path)) as source:
        found = [videos.number(frame.image) for frame in source]
    assert found == list(range(len(ENDINGS) + 4))
    assert source.warnings == []


@pytest.mark.parametrize("ending", ["heic", "HEIF", "jxl", "dng", "nef", "cr3"])
def test_an_image_that_cannot_be_read_is_warned_of(tmp_path: Path, ending: str) -> None:
    write_images(tmp_path, ["0.png"])
    (tmp_path / f"1.{ending}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 1
    (warning,) = source.warnings
    assert f"1.{ending} is left out" in warning
    assert "such as" in warning


def test_files_that_are_no_images_are_warned_of_in_one_line(tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png"])
    for name in ("a.txt", "b.mp4", "c", "d\x1b[1m.csv", ".hidden"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "folder").mkdir()
    for spec in (str(tmp_path), f"{tmp_path}/*"):
        with open_source(spec) as source:
            assert len(list(source)) == 1
        (warning,) = source.warnings
        assert "4 files without the ending of an image are left out ('a.txt', " in warning
        assert "\x1b" not in warning


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1), max_size=8))
def test_any_names_have_an_order(names: list[str]) -> None:
    names += ["1٣2.png", "1a2.png", "²", "9" * 6_000, os.fsdecode(b"a\xff9")]
    paths = [Path(name) for name in names]
    ordered, backwards = sorted(paths, key=natural_order), paths[::-1]
    assert ordered == sorted(backwards, key=natural_order)
    assert sorted(map(str, ordered)) == sorted(map(str, paths))


@given(st.text("ab. -", max_size=4), st.lists(st.integers(0, 10**30), min_size=2), st.data())
def test_numbers_in_names_are_in_order(
    before: str, numbers: list[int], data: st.DataObject
) -> None:
    zeros = st.integers(0, 3)
    paths = [Path(f"x{before}{'0' * data.draw(zeros)}{number}.png") for number in numbers]
    found = [int(re.search(r"\d+", path.name)[0]) for path in sorted(paths, key=natural_order)]
    assert found == sorted(numbers)


def test_images_that_a_shell_names_are_one_source(tmp_path: Path) -> None:
    names = [f"shot{i}.png" for i in range(12)]
    write_images(tmp_path, names)
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    typed = [str(tmp_path / name) for name in sorted(names)]
    clip = str(tmp_path / "a.gif")
    assert grouped([clip, *typed, "-"]) == [clip, tuple(typed), "-"]
    assert grouped([typed[0], clip]) == [typed[0], clip]
    for isolate in (True, False):
        with open_source(typed, isolate=isolate) as source:
            assert source.name == f"{typed[0]} and 11 more images"
            assert [videos.number(frame.image) for frame in source] == list(range(12))


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


def test_a_run_over_images_that_a_shell_names_has_one_stream(
    tmp_path: Path, tiny_engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, [f"{i}.png" for i in range(6)])
    typed = sorted(str(path) for path in tmp_path.iterdir())
    words = ["--engine-dir", str(tiny_engines), "--ask", "what is there now?"]
    assert run.main([*typed, *words]) == 0
    out, err = capsys.readouterr()
    assert out.count("frames in") == 1
    assert "6 frames in 1 chunks" in out
    assert "Traceback" not in err


@given(
    files=st.lists(st.sampled_from(["a.png", "b.png", "d/a.png", "d/e/b1.png", ".h/a.png", "x.y"])),
    pattern=st.sampled_from(["*.png", "**/*.png", "d/*.png", "**/a*", "*/*/b?.png", "**", "d**/*"]),
)
def test_a_pattern_names_what_it_names_in_a_shell(files, pattern) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).touch()
        plain = glob.glob(f"{folder}/{pattern}", recursive=True)
        found = {str(path) for path in matches(f"{folder}/{pattern}")}
        assert {path for path in found if Path(path).is_file()} == {
            path for path in plain if Path(path).is_file()
        }


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    videos.write_image(tmp_path / "0.png", videos.image(0))
    for name in "ab":
        (tmp_path / name).symlink_to(".")
    with open_source(f"{tmp_path}/**/*.png") as source:
        assert len(list(source)) == 1
