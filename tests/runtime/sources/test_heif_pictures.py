"""AVIF and HEIC: transparency, tiles, crops and turns, compared with Pillow, which reads AVIF with
libavif, and with what was written."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.heif import HeifFile, box, clap
from support.sizes import examples

from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.heif_items import main_picture
from vicort.runtime.sources.limits import Limits

SUFFIXES = ["avif", "heic"]
HEIGHT, WIDTH = 150, 220


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colours that tell every place and direction."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    image[: height // 3, : width // 4, 2] = 255
    return image


def transparency(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    alpha = np.full((height, width), 255, np.uint8)
    alpha[20:70, 30:100] = 0
    alpha[70:120, 30:100] = 128
    return alpha


def over_white(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return image * share + 255 * (1 - share)


def as_pillow(path: Path) -> np.ndarray:
    """[height, width, 3] over white."""
    with Image.open(path) as image:
        own = image.convert("RGBA")
    white = Image.new("RGB", own.size, "white")
    white.paste(own, mask=own.getchannel("A"))
    return np.asarray(white)


def seen(path: Path, **options: object) -> np.ndarray:
    with open_source(str(path), isolate=False, **options) as source:
        (frame,) = source
    return frame.image


def assert_like(found: np.ndarray, right: np.ndarray) -> None:
    assert found.shape == right.shape
    assert np.abs(found.astype(int) - right.astype(int)).mean() < 3


def written(path: Path, file: HeifFile) -> Path:
    path.write_bytes(file.content())
    return path


def check(path: Path, right: np.ndarray) -> None:
    found = seen(path)
    assert_like(found, right)
    if path.suffix == ".avif":
        assert_like(found, as_pillow(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tiles", [None, (2, 3)])
def test_transparency_lies_over_white(tmp_path: Path, suffix: str, tiles: tuple | None) -> None:
    file = HeifFile(suffix)
    if tiles:
        main = file.add_grid(picture(), *tiles)
        alpha = file.add_grid(transparency(), *tiles)
    else:
        main, alpha = file.add_coded(picture()), file.add_coded(transparency())
    file.is_alpha(alpha, main)
    path = written(tmp_path / f"a.{suffix}", file)
    check(path, over_white(picture(), transparency()))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (3, 1), (2, 4)])
def test_tiles_are_joined(tmp_path: Path, suffix: str, tiles: tuple[int, int]) -> None:
    file = HeifFile(suffix)
    file.add_grid(picture(300, 420), *tiles)
    check(written(tmp_path / f"a.{suffix}", file), picture(300, 420))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_crops_and_turns(
    tmp_path: Path, suffix: str, tiled: bool, turn: int, mirror: int | None
) -> None:
    properties = [
        clap(180, 100, Fraction(6), Fraction(-9)),
        box(b"irot", bytes([turn])),
        *([] if mirror is None else [box(b"imir", bytes([mirror]))]),
    ]
    file = HeifFile(suffix)
    if tiled:
        file.add_grid(picture(), 2, 2, *properties)
    else:
        file.add_coded(picture(), *properties)
    path = written(tmp_path / f"a.{suffix}", file)
    left, top = (WIDTH - 180) // 2 + 6, (HEIGHT - 100) // 2 - 9
    right = np.rot90(picture()[top : top + 100, left : left + 180], turn)
    if mirror is not None:
        right = right[::-1] if mirror == 0 else right[:, ::-1]
    assert_like(seen(path), right)


@pytest.mark.parametrize("mirror", [None, 0, 1])
@pytest.mark.parametrize("turn", range(4))
def test_turns_are_as_in_pillow(tmp_path: Path, turn: int, mirror: int | None) -> None:
    properties = [
        box(b"irot", bytes([turn])),
        *([] if mirror is None else [box(b"imir", bytes([mirror]))]),
    ]
    file = HeifFile("avif")
    file.add_coded(picture(), *properties)
    path = written(tmp_path / "a.avif", file)
    with Image.open(path) as image:
        right = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert_like(seen(path), right)


def test_transparency_of_an_animation_is_warned_about(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.dstack([picture() // n, transparency()])) for n in (1, 2)]
    path = tmp_path / "a.avif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with open_source(str(path)) as source:
        assert len(list(source)) == 2
    assert "transparency" in source.warnings[0]
    pictures[0].convert("RGB").save(
        path, save_all=True, append_images=[pictures[1].convert("RGB")], duration=100
    )
    with open_source(str(path)) as source:
        assert len(list(source)) == 2
    assert source.warnings == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_missing_is_one_line_and_the_folder_goes_on(tmp_path: Path, suffix: str) -> None:
    file = HeifFile(suffix)
    file.add_grid(picture(), 2, 2)
    content = written(tmp_path / f"a.{suffix}", file).read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(content[: len(content) - 700])
    Image.fromarray(picture()).save(tmp_path / "c.png")
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 2
    (warning,) = source.warnings
    assert f"b.{suffix} is left out" in warning


def test_large_wholes_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    file = HeifFile("heic")
    file.add_grid(picture(), 2, 2)
    path = written(tmp_path / "a.heic", file)
    with pytest.raises(SourceError, match="--max-pixels"):
        seen(path, limits=Limits(pixels=HEIGHT * WIDTH - 1))


CONTENT: list[bytes] = []


@settings(max_examples=examples(180), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_of_the_boxes_ends(tmp_path_factory: pytest.TempPathFactory, changes) -> None:
    if not CONTENT:
        file = HeifFile("heic")
        main = file.add_grid(picture(64, 64), 2, 2, box(b"irot", b"\1"))
        file.is_alpha(file.add_coded(transparency(64, 64)), main)
        CONTENT.append(file.content())
    content = bytearray(CONTENT[0])
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.mktemp("damaged") / "a.heic"
    path.write_bytes(content)
    main_picture(path)
