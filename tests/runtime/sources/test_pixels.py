"""Pictures as people see them: pixel shapes, crops, colours, transparency and turns."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import videos

from vicort.runtime.core import Frame
from vicort.runtime.sources import open_source
from vicort.runtime.sources.hdr import CODES, HLG, PQ, TO_709, ToneMap, compressed, from_pq, to_pq
from vicort.runtime.sources.matroska_crop import matroska_crop
from vicort.runtime.sources.packets import PacketReader
from vicort.runtime.sources.pixel_shape import SQUARE, square_size
from vicort.runtime.sources.pixels import BT709, NO_CROP, Converter, over_white

FAST = {"preset": "ultrafast"}


def write(
    path: Path,
    images: list[np.ndarray],
    shape: Fraction | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] = FAST,
    **tags: int,
) -> None:
    """tags: of the codec context, such as `colorspace`."""
    videos.needs_encoder(codec)
    with av.open(str(path), "w") as output:
        track = output.add_stream(codec, rate=25, options=options)
        track.height, track.width = images[0].shape[:2]
        track.pix_fmt = pixels
        if shape is not None:
            track.codec_context.sample_aspect_ratio = shape
        for name, value in tags.items():
            setattr(track.codec_context, name, value)
        for place, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(
                image, format="rgb24" if image.shape[-1] == 3 else "rgba"
            ).reformat(format=pixels)
            frame.pts, frame.time_base = place, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode())


def frames(path: Path) -> list[Frame]:
    with open_source(str(path)) as source:
        return list(source)


def motions(path: Path) -> list[Frame]:
    with open_source(str(path), motion=True) as source:
        return list(source)


def shapes(path: Path) -> list[tuple[int, int]]:
    return [frame.image.shape[:2] for frame in frames(path)]


# ---- pixels that are not square ----

# stored size, shape of a pixel -> size on a screen, all width x height
SCREENS = {
    "PAL 16:9": ((720, 576), Fraction(64, 45), (1024, 576)),
    "PAL 4:3": ((720, 576), Fraction(16, 15), (768, 576)),
    "NTSC 4:3": ((720, 480), Fraction(8, 9), (720, 540)),
    "HDV": ((1440, 1080), Fraction(4, 3), (1920, 1080)),
    "half the width": ((960, 1080), Fraction(2), (1920, 1080)),
    "half the height": ((704, 288), Fraction(1, 2), (704, 576)),
    "square": ((160, 120), Fraction(1), (160, 120)),
    "absurd": ((160, 120), Fraction(1, 11), (160, 120)),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize(("stored", "shape", "screen"), SCREENS.values(), ids=SCREENS)
def test_pixels_become_square(tmp_path, stored, shape, screen, suffix):
    image = videos.image(5, *stored)
    write(tmp_path / f"a.{suffix}", [image] * 2, shape)
    found = frames(tmp_path / f"a.{suffix}")
    assert [frame.image.shape[1::-1] for frame in found] == [screen] * 2
    assert videos.number(found[0].image) == 5
    assert videos.corners(found[0].image) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("suffix", "true", "false"),
    [
        ("mp4", "00a00078", "01400078"),
        (
            "mkv",
            "8ab081a0ba817854b2810455ee8100",
            "8eb081a0ba813c54b081a054ba8178",
        ),  # with a size on a screen
    ],
)
def test_a_container_with_a_false_size_is_not_believed(tmp_path, suffix, true, false):
    """It says 320x120 or 160x60, and on a screen 160x120."""
    path = tmp_path / f"a.{suffix}"
    write(path, [videos.image(5)] * 2)
    content = path.read_bytes()
    start = content.index(bytes.fromhex(true), max(0, content.find(b"stsd")))
    after = content[start + len(true) // 2 :]
    path.write_bytes(content[:start] + bytes.fromhex(false) + after)
    assert shapes(path) == [(120, 160)] * 2


@given(st.integers(1, 8192), st.integers(1, 8192), st.fractions(0, 2000, max_denominator=2000))
def test_no_side_is_reduced_and_the_picture_stays_within_the_limit(height, width, shape):
    rows, columns = square_size(height, width, shape)
    assert rows >= height
    assert columns >= width
    assert rows == height or columns == width
    assert rows * columns <= max(8192 * 8192, height * width)
    if (rows, columns) != (height, width):
        assert abs(Fraction(columns, rows) / Fraction(width, height) / shape - 1) <= Fraction(
            1, min(rows, columns)
        )


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_the_shape_changes_on_the_way(tmp_path, bframes):
    """Decoders hold pictures back, and none gets the shape of a later one."""
    options = {"bf": bframes, "b-adapt": "0"}
    for name, shape in (("a", Fraction(1)), ("b", Fraction(2)), ("c", Fraction(1, 2))):
        write(tmp_path / f"{name}.h264", [videos.image(3)] * 6, shape, options=options)
    whole = videos.join(tmp_path / "all.h264", [tmp_path / f"{n}.h264" for n in "abc"])
    assert shapes(whole) == [(120, 160)] * 6 + [(120, 320)] * 6 + [(240, 160)] * 6


def test_packets_of_callers_have_square_pixels(tmp_path):
    write(tmp_path / "a.h264", [videos.image(3)] * 4, Fraction(2), options={"bf": "0"})
    reader = PacketReader("h264")
    with av.open(str(tmp_path / "a.h264")) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    found = [
        each.image().shape
        for number, data in enumerate(packets)
        for each in reader.read(data, number)
    ]
    found += [each.image().shape for each in reader.rest()]
    assert found == [(120, 320, 3)] * 4


def test_a_turn_acts_on_square_pixels_and_motion_on_stored_ones(tmp_path):
    write(tmp_path / "a.mp4", [videos.image(i) for i in range(3)], Fraction(2))
    videos.turn(tmp_path / "a.mp4", (0, 1, -1, 0))
    with open_source(str(tmp_path / "a.mp4"), motion=True) as source:
        for frame in source:
            assert frame.image.shape == (320, 120, 3)
            assert frame.motion.size == (160, 120)
            assert frame.motion.cells.shape == (10, 8)


# ---- what is cut off ----


def with_clap(path: Path, numbers: tuple[int, ...]) -> None:
    """Put a clean aperture into the first sample entry of an MP4 whose index comes last."""
    data = bytearray(path.read_bytes())
    box = struct.pack(">I4s8i", 40, b"clap", *numbers)
    entry = data.index(b"avc1", data.index(b"moov")) - 4
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    assert data.index(b"moov") > data.index(b"mdat")
    for kind in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        start = entry if kind == b"avc1" else data.rindex(kind, 0, entry) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(box)
        data[start : start + 4] = size.to_bytes(4, "big")
    data[end:end] = box
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("numbers", "window"),
    [
        ((120, 1, 80, 1, 0, 1, 0, 1), (20, 100, 20, 140)),
        ((120, 1, 80, 1, 10, 1, -20, 1), (0, 80, 30, 150)),
        ((240, 2, 160, 2, 5, 2, 0, 1), (20, 100, 22, 142)),
        ((200, 1, 80, 1, 0, 1, 0, 1), (0, 120, 0, 160)),  # wider than the picture: ignored
        ((120, 0, 80, 1, 0, 1, 0, 1), (0, 120, 0, 160)),
    ],
)
@pytest.mark.parametrize("shape", [None, Fraction(2)])
def test_the_clean_aperture_is_shown(tmp_path, numbers, window, shape):
    write(tmp_path / "a.mp4", [videos.image(3)] * 2, shape, options={"qp": "0"})
    (whole, _) = frames(tmp_path / "a.mp4")
    with_clap(tmp_path / "a.mp4", numbers)
    top, bottom, left, right = window
    wide = 2 if shape else 1
    for frame in frames(tmp_path / "a.mp4"):
        np.testing.assert_array_equal(
            frame.image, whole.image[top:bottom, left * wide : right * wide]
        )


def with_pixel_crop(path: Path, top: int, bottom: int, left: int, right: int) -> None:
    """Give the video track of a Matroska file a crop, in the place of what FFmpeg writes after the
    size and of the empty element that it leaves there."""
    data = bytearray(path.read_bytes())
    start = data.index(b"\xe0\x8a\xb0")  # the video's settings, of 10 bytes
    content = data[start + 2 : start + 8]  # width and height
    for kind, cut in ((0xAA, bottom), (0xBB, top), (0xCC, left), (0xDD, right)):
        content += bytes([0x54, kind, 0x81, cut])
    data[start : start + 27] = bytes([0xE0, 0x80 + len(content), *content, 0xEC, 0x81, 0])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("cuts", "window"),
    [
        ((20, 16, 10, 30), (20, 104, 10, 130)),
        ((0, 0, 0, 8), (0, 120, 0, 152)),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_what_matroska_cuts_off_is_not_shown(tmp_path, cuts, window, before):
    """before: sound tracks that come first."""
    videos.needs_encoder("libvpx")
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        sound = [output.add_stream("pcm_s16le", rate=8000) for _ in range(before)]
        track = output.add_stream("libvpx", rate=25)
        track.height, track.width, track.pix_fmt = 120, 160, "yuv420p"
        for each in sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            silence.rate, silence.pts = 8000, 0
            output.mux(each.encode(silence))
        picture = av.VideoFrame.from_ndarray(videos.image(3), format="rgb24")
        output.mux([*track.encode(picture), *track.encode()])
    (whole,) = frames(tmp_path / "a.mkv")
    with_pixel_crop(tmp_path / "a.mkv", *cuts)
    (cropped,) = frames(tmp_path / "a.mkv")
    top, bottom, left, right = window
    np.testing.assert_array_equal(cropped.image, whole.image[top:bottom, left:right])


@pytest.mark.parametrize("data", [b"", b"\x1a\x45", b"\x18\x53\x80\x67\xff" * 3, bytes(99)])
def test_a_damaged_matroska_has_no_crop(tmp_path, data):
    (tmp_path / "a.mkv").write_bytes(data)
    assert matroska_crop(tmp_path / "a.mkv", 0) == NO_CROP


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, 1), (0, -1, 1, 0)])
def test_motion_is_cropped_with_the_picture(tmp_path, matrix):
    """A cell keeps its place on the pixels: its motion is that of the whole picture there."""
    write(tmp_path / "a.mp4", [np.roll(videos.image(3), 3 * i, 1) for i in range(3)])
    videos.turn(tmp_path / "a.mp4", matrix)
    whole = motions(tmp_path / "a.mp4")
    with_clap(tmp_path / "a.mp4", (80, 1, 60, 1, 10, 1, -20, 1))
    cropped = motions(tmp_path / "a.mp4")
    for before, after in zip(whole, cropped, strict=True):
        np.testing.assert_array_equal(before.motion.cells, after.motion.cells)
        assert after.motion.size == after.image.shape[:2]
        # where the cropped picture lies in the whole one
        rows, columns = np.array(after.image.shape[:2])
        top = before.motion.top - after.motion.top
        left = before.motion.left - after.motion.left
        np.testing.assert_array_equal(
            before.image[top : top + rows, left : left + columns], after.image
        )


@pytest.mark.parametrize("rectangle", [(6, 4, 10, 8), (0, 0, 32, 24), (2, 2, 0, 0)])
def test_what_the_codec_cuts_off_is_not_shown(tmp_path, rectangle):
    left, top, right, bottom = rectangle
    words = ",".join(map(str, rectangle))
    write(tmp_path / "a.mp4", [videos.image(3)], options={"x264-params": f"crop-rect={words}"})
    assert shapes(tmp_path / "a.mp4") == [(120 - top - bottom, 160 - left - right)]


# ---- transparency ----


@given(st.integers(0, 255), st.integers(0, 255))
def test_transparent_pixels_over_white_as_pillow_pastes_them(colour, alpha):
    image = np.full((2, 3, 4), (colour, 0, 255, alpha), np.uint8)
    image[0, 0, 3] = 0
    picture = Image.fromarray(image, "RGBA")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    np.testing.assert_array_equal(over_white(image), np.asarray(white))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "RGBA"), ("png", "LA"), ("png", "P"), ("webp", "RGBA"), ("tiff", "RGBA")],
)
def test_transparent_images_are_over_white(tmp_path, suffix, mode):
    image = np.zeros((64, 96, 4), np.uint8)
    image[:32], image[32:] = (60, 60, 60, 255), (200, 200, 200, 0)
    picture = Image.fromarray(image, "RGBA")
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    if mode == "P":
        picture, options = picture.convert("RGB").quantize(4), {"transparency": 0}
        hidden = np.asarray(picture)[48, 48]
        options = {"transparency": int(hidden)}
    picture.convert(mode).save(tmp_path / f"a.{suffix}", **options)
    (frame,) = frames(tmp_path / f"a.{suffix}")
    assert np.abs(frame.image[:30].astype(int) - 60).max() <= 2
    assert frame.image[34:].min() == 255


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "qtrle", "argb"),
        ("mkv", "ffv1", "yuva420p"),
        ("webm", "libvpx-vp9", "yuva420p"),
        ("webm", "libvpx", "yuva420p"),
    ],
)
def test_transparent_videos_are_over_white(tmp_path, suffix, codec, pixels):
    image = np.zeros((64, 96, 4), np.uint8)
    image[:32], image[32:] = (60, 60, 60, 255), (200, 0, 0, 0)
    options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
    write(tmp_path / f"a.{suffix}", [image] * 3, codec=codec, pixels=pixels, options=options)
    found = frames(tmp_path / f"a.{suffix}")
    assert [frame.time for frame in found] == [Fraction(i, 25) for i in range(3)]
    for frame in found:
        assert np.abs(frame.image[:24].astype(int) - 60).max() <= 4
        assert frame.image[40:].min() >= 250


@pytest.mark.parametrize("shape", [SQUARE, Fraction(4, 3), None])
@pytest.mark.parametrize("bright", [False, True])
def test_every_column_is_converted(bright, shape):
    """FFmpeg's fast way to RGBA or to 16 bits leaves some unwritten, of some widths."""
    convert = Converter(SimpleNamespace(of_all=shape))
    for width in range(1, 70):
        picture = av.VideoFrame(width, 8, "yuv420p" if bright else "yuva420p")
        for plane, level in zip(picture.planes, (100, 128, 128, 200), strict=False):
            plane.update(bytes([level]) * plane.buffer_size)
        picture.color_trc = PQ if bright else BT709
        image = convert(picture).astype(int)
        assert np.abs(image - image[0, 0]).max() <= 1, width


# ---- colours that nobody names ----


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((720, 576), 5), ((1024, 576), 5), ((1280, 576), 1), ((768, 578), 1)],
)
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_untagged_video_has_the_matrix_of_its_size(tmp_path, size, matrix, pixels):
    colour = (30, 180, 60)
    width, height = size
    image = np.full((height, width, 3), colour, np.uint8)
    reference = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pixels, dst_colorspace=matrix, dst_color_range=1
    )
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        track = output.add_stream("ffv1", rate=25)
        track.width, track.height, track.pix_fmt = width, height, pixels
        untagged = av.VideoFrame(width, height, pixels)
        for to, of in zip(untagged.planes, reference.planes, strict=True):
            to.update(bytes(of))
        untagged.pts, untagged.time_base = 0, Fraction(1, 25)
        output.mux(track.encode(untagged))
        output.mux(track.encode())
    (frame,) = frames(tmp_path / "a.mkv")
    assert np.abs(frame.image.astype(int) - colour).max() <= 4


# ---- high dynamic range ----


def test_light_is_mapped_by_the_formulas_of_the_standards():
    light = np.array([0.01, 1, 50, 100, 203, 1000, 10_000])
    # SMPTE ST 2084 and BT.2408 name these signals
    assert to_pq(np.array([100, 203, 1000, 10_000])) == pytest.approx(
        [0.508, 0.581, 0.752, 1], abs=5e-4
    )
    assert from_pq(to_pq(light)) == pytest.approx(light, rel=1e-6)
    mapped = compressed(light)
    assert mapped[:3] == pytest.approx(light[:3], rel=1e-6)  # below the knee nothing changes
    assert mapped[-2:] == pytest.approx([203, 203], rel=1e-6)
    assert all(np.diff(compressed(np.geomspace(0.01, 1000, 200))) > 0)
    np.testing.assert_allclose(TO_709.sum(axis=1), 1, atol=2e-4)  # grey stays grey


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_tables_are_the_formula(transfer):
    """Compared with the formula of each pixel, written out."""
    signal = np.random.default_rng(0).integers(0, 65536, (40, 7, 3), np.uint16)
    mapped = ToneMap(transfer)(signal).astype(int)
    for row, column in ((0, 0), (5, 3), (39, 6), (33, 1)):
        rgb = (signal[row, column] >> 4) / (CODES - 1)
        if transfer == PQ:
            light = from_pq(rgb)
        else:
            a, b, c = 0.17883277, 0.28466892, 0.55991073
            scene = np.where(rgb <= 0.5, rgb**2 / 3, (np.exp((rgb - c) / a) + b) / 12)
            light = 1000 * scene * (scene @ [0.2627, 0.6780, 0.0593]) ** 0.2
        linear = TO_709 @ (compressed(light) / 203)
        wanted = np.rint(255 * np.clip(linear, 0, 1) ** (1 / 2.4))
        assert np.abs(mapped[row, column] - wanted).max() <= 6  # tables are coarse near black


@pytest.mark.parametrize(
    ("nits", "grey"), [(0, (0, 0)), (50, (138, 146)), (203, (215, 240)), (1000, (253, 255))]
)
def test_a_grey_of_known_light_in_a_pq_video(tmp_path, nits, grey):
    signal = round(64 + 876 * float(to_pq(nits)))
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        track = output.add_stream("ffv1", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p10le"
        context = track.codec_context
        context.color_trc, context.color_primaries, context.colorspace = PQ, 9, 9
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, value in zip(frame.planes, (signal, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
        frame.color_trc, frame.color_primaries, frame.colorspace = PQ, 9, 9
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        output.mux(track.encode(frame))
        output.mux(track.encode())
    (found,) = frames(tmp_path / "a.mkv")
    assert found.image.shape == (48, 64, 3)
    assert np.ptp(found.image) <= 1
    assert grey[0] <= found.image[5, 5, 0] <= grey[1]
