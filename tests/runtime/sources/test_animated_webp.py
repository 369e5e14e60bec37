"""Animated WebP, compared with Pillow, which decodes it with libwebp."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.sizes import examples

from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources import open_source
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.source import Wanted

SIZE = (40, 24)  # width, height


def as_pillow(path: Path) -> list[np.ndarray]:
    """Every picture [height, width, 3] over white."""
    pictures = []
    with Image.open(path) as image:
        for place in range(image.n_frames):
            image.seek(place)
            over = image.convert("RGBA")
            white = Image.new("RGB", over.size, "white")
            white.paste(over, mask=over.getchannel("A"))
            pictures.append(np.asarray(white, int))
    return pictures


rectangles = st.tuples(
    st.integers(0, SIZE[0] - 2),
    st.integers(0, SIZE[1] - 2),
    st.integers(1, 20),
    st.integers(1, 20),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from([0, 1, 100, 254, 255]),
)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.lists(rectangles, max_size=3), min_size=2, max_size=5),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_pictures_are_put_together_as_in_libwebp(
    tmp_path: Path, drawn: list, lossless: bool, sparse: bool, mixed: bool
) -> None:
    pictures = []
    for rectangle_list in drawn:
        image = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
        for left, top, width, height, colour, alpha in rectangle_list:
            image[top : top + height, left : left + width] = (*colour, alpha)
        pictures.append(Image.fromarray(image))
    path = tmp_path / "a.webp"
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=40,
        lossless=lossless,
        minimize_size=sparse,
        allow_mixed=mixed,
        quality=95,
    )
    with Image.open(path) as written:
        if not getattr(written, "is_animated", False):  # equal pictures become one
            return
    expected = as_pillow(path)
    with open_source(str(path), isolate=False) as source:
        found = list(source)
    assert len(found) == len(expected) == source.frames_total
    for frame, right in zip(found, expected, strict=True):
        difference = np.abs(frame.image - right)
        # lossy colours are half as wide and high, and libwebp smooths them
        assert difference.mean() < (0.1 if lossless else 6)
        assert not lossless or difference.max() <= 2


def animation(path: Path, **options: object) -> Path:
    pictures = [Image.new("RGB", SIZE, (60 * i, 0, 0)) for i in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_the_last_picture_of_a_burst_is_yielded_where_it_stays(
    tmp_path: Path, suffix: str, isolate: bool
) -> None:
    path = animation(tmp_path / f"a{suffix}", duration=[200, 9800, 100, 5000])
    decisions = iter([Wanted.YES, Wanted.NO, Wanted.BOTH, Wanted.NO])
    with open_source(str(path), isolate=isolate) as source:
        found = [(frame.index, frame.time) for frame in source.frames(lambda at: next(decisions))]
    assert found == [(0, 0), (1, Fraction(1, 5)), (2, 10)]
    assert (source.ending.frame.index, source.ending.frame.time) == (3, Fraction(101, 10))
    assert source.ending.time == Fraction(151, 10)
    assert abs(int(source.ending.frame.image[..., 0].mean()) - 180) < 6


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", duration=[30, 250, 0, 10])
    with open_source(str(path)) as source:
        times = [frame.time for frame in source]
    assert times == [Fraction(ms, 1000) for ms in (0, 30, 280, 380)]
    assert (source.duration, source.live) == (Fraction(480, 1000), False)


def chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, start and size of the content of each."""
    found, at = [], 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        found.append((data[at : at + 4], at + 8, size))
        at += 8 + size + size % 2
    return found


def test_damaged_and_cut_files_say_so(tmp_path: Path) -> None:
    data = bytearray(animation(tmp_path / "a.webp", duration=100).read_bytes())
    pictures = [chunk for chunk in chunks(data) if chunk[0] == b"ANMF"]

    cut = tmp_path / "cut.webp"
    cut.write_bytes(data[: pictures[-1][1] + 20])
    with open_source(str(cut)) as source, pytest.raises(TruncatedSource, match="after 3 frames"):
        list(source)

    _, start, size = pictures[1]
    damaged = data.copy()
    damaged[start + 24 : start + size] = bytes(size - 24)
    (tmp_path / "damaged.webp").write_bytes(damaged)
    with open_source(str(tmp_path / "damaged.webp")) as source:
        assert len(list(source)) == 4
    assert "1 damaged pictures" in source.warnings[0]

    outside = data.copy()
    outside[start : start + 3] = (100).to_bytes(3, "little")  # beyond the canvas
    (tmp_path / "outside.webp").write_bytes(outside)
    with open_source(str(tmp_path / "outside.webp")) as source:
        assert len(list(source)) == 4
    assert "1 damaged pictures" in source.warnings[0]

    (tmp_path / "none.webp").write_bytes(data[: pictures[0][1]])
    for name in ("none.webp",):
        with pytest.raises(SourceError, match="without a picture"):
            open_source(str(tmp_path / name))
    (tmp_path / "short.webp").write_bytes(data[:25])
    with pytest.raises(SourceError, match="cut off"):
        open_source(str(tmp_path / "short.webp"))


def test_large_canvases_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    data = bytearray(animation(tmp_path / "a.webp", duration=100).read_bytes())
    data[24:30] = b"\xff\xff\xff\xff\xff\xff"  # 16,777,216 x 16,777,216
    (tmp_path / "large.webp").write_bytes(data)
    with pytest.raises(SourceError, match="--max-pixels"):
        open_source(str(tmp_path / "large.webp"))
    with pytest.raises(SourceError, match="--max-pixels"):
        open_source(str(tmp_path / "a.webp"), limits=Limits(pixels=100))
