"""The pictures as a reader sees them: no text is cut, none lies on another one, on a line or on a
legend, in light and in dark. They are drawn from the committed results."""

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.text import Text
from support import bench_result

from vicort.benchmarks.common.labels import line_points
from vicort.benchmarks.common.page import THEMES, composed, dark, page, themed
from vicort.benchmarks.cpu import picture
from vicort.benchmarks.evaluation import reliability_picture
from vicort.benchmarks.redraw import RESULTS
from vicort.benchmarks.studies import camera_picture
from vicort.benchmarks.systems import pictures

TOUCH = 0.8  # pixels by which the boxes of two texts may overlap
BENCH, CAMERA, CALIBRATION = (
    json.loads((RESULTS / f"{name}.json").read_text())
    for name in ("bench", "camera", "calibration")
)
SMALL = bench_result.result()
DRAWN = {
    "bench": (picture.draw, BENCH),
    "bench-systems": (pictures.draw_systems, BENCH),
    "bench-migration": (pictures.draw_migration, BENCH),
    "bench-cap": (pictures.draw_cap, BENCH),
    "camera": (camera_picture.draw, CAMERA),
    "calibration": (reliability_picture.draw, CALIBRATION),
    "small-systems": (pictures.draw_systems, SMALL),
    "small-cap": (pictures.draw_cap, SMALL),
    "small-migration": (pictures.draw_migration, SMALL),
}


@dataclass
class Seen:
    """A picture as it is drawn."""

    figure: Any
    texts: list[tuple[str, Any, Any, float]]  # text, its box in pixels, colour, size in points


@functools.cache
def seen(name, suffix=""):
    found, drawn = [], []
    draw_text = Text.draw

    def kept(path, title, panels, row_height, columns=2, conditions=""):
        columns = min(columns, len(panels))
        found.append(composed(title, panels, row_height, columns, conditions))
        return path

    def recorded(text, renderer):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent(renderer)
            drawn.append((text.get_text(), box, text.get_color(), text.get_fontsize()))
        draw_text(text, renderer)

    draw, result = DRAWN[name]
    with pytest.MonkeyPatch.context() as patch, themed(suffix):
        for module in (picture, pictures, camera_picture, reliability_picture):
            patch.setattr(module, "page", kept)
        draw(result, Path("picture.png"))
        patch.setattr(Text, "draw", recorded)
        found[0].draw_without_rendering()
    return Seen(found[0], drawn)


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_lies_on_another(name):
    picture = seen(name)
    assert len(picture.texts) > 10
    width, height = picture.figure.bbox.width, picture.figure.bbox.height
    cut = [
        text
        for text, box, *_ in picture.texts
        if box.x0 < -TOUCH or box.y0 < -TOUCH or box.x1 > width + TOUCH or box.y1 > height + TOUCH
    ]
    assert cut == []
    on_each_other = [
        (one, other)
        for (one, a, *_), (other, b, *_) in itertools.combinations(picture.texts, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > TOUCH and min(a.y1, b.y1) - max(a.y0, b.y0) > TOUCH
    ]
    assert on_each_other == []


@pytest.mark.parametrize("name", DRAWN)
def test_no_line_runs_through_text_or_a_legend(name):
    struck = []
    for axis in seen(name).figure.axes:
        points = line_points(axis)
        boxes = [(each.get_text(), each.get_window_extent()) for each in axis.texts]
        if legend := axis.get_legend():
            boxes.append(("legend", legend.get_window_extent()))
        for text, box in boxes:
            inside = (points > (box.x0, box.y0)) & (points < (box.x1, box.y1))
            if inside.all(axis=1).any():
                struck.append(text)
    assert struck == []


@pytest.mark.parametrize("name", DRAWN)
def test_no_panel_is_empty_and_text_is_readable_at_the_width_of_a_readme(name):
    picture = seen(name)
    assert all(axis.has_data() for axis in picture.figure.axes)
    assert picture.figure.get_figwidth() * 100 == pytest.approx(830)
    assert [text for text, _, _, points in picture.texts if points < 7] == []


def luminance(color):
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench", "bench-systems", "camera"])
@pytest.mark.parametrize("suffix", THEMES)
def test_every_text_stands_out_from_the_page(name, suffix):
    """By WCAG's ratio, which is 3 for large text and for what is drawn; labels have their line's
    colour."""
    back = luminance(THEMES[suffix]["paper"])
    for text, _, color, _ in seen(name, suffix).texts:
        if color != "white":  # which stands on bars
            light, dim = sorted((luminance(color), back), reverse=True)
            assert (light + 0.05) / (dim + 0.05) >= 2.9, text


def test_labels_of_crowded_points_move_apart():
    from vicort.benchmarks.common.labels import label

    def crowd(axis):
        for number in range(8):
            place = (0.5 + 0.004 * number, 0.5)
            axis.plot(*place, "o")
            label(axis, f"point {number}", place)
        axis.set(xlim=(0, 1), ylim=(0, 1))

    with themed(""):
        figure = composed("a crowd", [crowd], 3.0, 1, "")
    boxes = [each.get_window_extent() for each in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_page_is_written_for_light_and_for_dark(tmp_path):
    path = tmp_path / "picture.png"
    assert page(path, "title", [lambda axis: axis.plot([1, 2])], 2.0) == path
    for file, suffix in ((path, ""), (dark(path), "-dark")):
        corner = pyplot.imread(file)[0, 0, :3]
        assert np.allclose(corner, matplotlib.colors.to_rgb(THEMES[suffix]["paper"]), atol=0.01)
    assert page(tmp_path / "none.png", "title", [], 2.0) is None
    assert sorted(each.name for each in tmp_path.iterdir()) == ["picture-dark.png", "picture.png"]


def test_the_committed_pictures_have_both_forms():
    for path in RESULTS.glob("*.png"):
        assert dark(path).exists() or path.stem.endswith("-dark")
