"""The size rule against transformers' own `smart_resize`."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vicort.runtime.errors import SourceError
from vicort.runtime.frame_grid import MAX_ASPECT, fit_grid, whole_tokens

SIDES = st.integers(1, 9000)
LIMITS = st.integers(56 * 56, 2_000_000)
MIN_PIXELS = 56 * 56
DEFAULT = 308 * 308


@given(SIDES, SIDES, st.sampled_from([DEFAULT, 12845056]) | LIMITS)
@example(1080, 1920, DEFAULT)
@example(14, 14, DEFAULT)  # half a token a side
@example(42, 70, DEFAULT)  # halves round to even
@example(1, 200, DEFAULT)
@example(30, 5000, DEFAULT)  # a strip of one row, cut at the limit
@example(56, 84, MIN_PIXELS)
@example(3, 10, MIN_PIXELS)  # above the limit once it is enlarged
def test_a_frame_has_the_size_that_transformers_gives_it_under_the_limit(height, width, limit):
    assume(max(height, width) <= MAX_ASPECT * min(height, width))
    grid = fit_grid(height, width, 28, limit)
    found = grid.pixels(28)
    assert found[0] * found[1] <= limit
    expected = smart_resize(height, width, factor=28, min_pixels=MIN_PIXELS, max_pixels=limit)
    if expected[0] * expected[1] <= limit:
        assert found == expected
    else:  # what smart_resize does not keep under the limit is cut on its longer side, no further
        shorter, longer = sorted(found)
        assert (found[0] <= found[1]) == (expected[0] <= expected[1])
        assert shorter == min(expected) < longer + 28
        assert shorter * (longer + 28) > limit


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1080, 1920), (8, 14)),
        ((1920, 1080), (14, 8)),
        ((1080, 1080), (11, 11)),
        ((480, 640), (9, 12)),
        ((100, 100), (4, 4)),  # smaller than the limit: only rounded
    ],
)
def test_the_grids_of_common_sources_under_the_default_limit(size, grid):
    found = fit_grid(*size, 28, DEFAULT)
    assert (found.rows, found.columns) == grid
    assert found.tokens <= DEFAULT // 28**2


@pytest.mark.parametrize(("size", "cut"), [((3, 10), (56, 56)), ((10, 3), (56, 56))])
def test_a_small_frame_that_is_enlarged_is_cut_at_a_small_limit(size, cut):
    enlarged = smart_resize(*size, factor=28, min_pixels=MIN_PIXELS, max_pixels=MIN_PIXELS)
    assert sorted(enlarged) == [56, 112]
    assert fit_grid(*size, 28, MIN_PIXELS).pixels(28) == cut
    assert fit_grid(*size, 28, DEFAULT).pixels(28) == enlarged


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (10, 2001)])
def test_a_ratio_above_200_is_refused_in_one_line_as_in_transformers(size):
    with pytest.raises(ValueError, match="200"):
        smart_resize(*size)
    with pytest.raises(SourceError) as caught:
        fit_grid(*size, 28, DEFAULT)
    line = str(caught.value)
    assert "\n" not in line
    assert f"{size[1]}x{size[0]}" in line
    assert "200" in line


@given(st.integers(1, 5000))
def test_a_side_is_rounded_as_the_rule_rounds_it(pixels):
    expected = smart_resize(2800, max(pixels, 28), min_pixels=1, max_pixels=1 << 40)[1]
    assert whole_tokens(pixels, 28) == (expected if pixels >= 28 else 28)
