"""The timeline against DESIGN 2's contract, stated here in plain words."""

from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engines import toy_model

from vicort.runtime.frame_grid import Grid
from vicort.runtime.memory.timeline import Timeline, text_positions

GRID = Grid(2, 2)
times = st.lists(
    st.fractions(min_value=0, max_value=500, max_denominator=1000), min_size=1, max_size=30
).map(sorted)


@given(
    times,
    st.integers(0, 9),
    st.sampled_from([1.0, 2.0, 2.5]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_units_stand_at_their_time_and_text_after_everything(starts, prompt, rate, grid):
    model = toy_model(tokens_per_second=rate, grid=grid)
    timeline = Timeline(model, prompt, text_tokens=10)
    largest = prompt - 1
    for start in starts:
        positions = timeline.unit(start, Grid(*grid))
        t = prompt + floor((start - starts[0]) * Fraction(rate))
        expected = [
            (t, prompt + row, prompt + column)
            for row in range(grid[0])
            for column in range(grid[1])
        ]
        assert positions.tolist() == [list(place) for place in expected]
        largest = max(largest, positions.max())
        assert timeline.next_text == largest + 1


def test_text_before_any_video_follows_the_prompt():
    assert Timeline(toy_model(), 7, 10).next_text == 7
    assert text_positions(7, 2).tolist() == [[7, 7, 7], [8, 8, 8]]


def test_exact_time_does_not_drift():
    """A third of a second has no exact float: a day of them still lands on whole steps."""
    timeline = Timeline(toy_model(tokens_per_second=3.0, max_position=1 << 20), 0, 10)
    timeline.unit(Fraction(10), GRID)
    steps = 24 * 3600 * 3
    assert timeline.unit(Fraction(10) + steps * Fraction(1, 3), GRID)[0, 0] == steps


@given(st.integers(40, 200), st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_rebasing_keeps_positions_in_the_trained_range_and_distances_as_they_are(limit, gaps):
    timeline = Timeline(toy_model(max_position=limit, tokens_per_second=1.0), 3, text_tokens=8)
    moment, before = Fraction(0), None
    for gap in gaps:
        moment += gap
        shift = max(timeline.excess(moment), timeline.range // 2) if timeline.excess(moment) else 0
        timeline.rebase(shift)
        step = int(timeline.unit(moment, GRID)[0, 0])
        assert step < limit
        assert timeline.next_text + 8 <= limit
        if before is not None:
            assert step - (before - shift) == gap
        before = step


def test_text_comes_after_the_longest_side_of_every_grid_also_after_a_shift():
    timeline = Timeline(toy_model(), 3, text_tokens=8)
    for start, grid in enumerate((Grid(1, 30), Grid(7, 2), Grid(2, 2))):
        timeline.unit(Fraction(start), grid)
        assert timeline.next_text == 3 + 30
    timeline.unit(Fraction(100), Grid(2, 2))
    assert timeline.next_text == 3 + 101
    timeline.rebase(99)  # the first unit may still be cached, with its columns
    assert timeline.next_text == 3 + 30


def test_an_excess_is_how_far_a_unit_would_stand_out():
    timeline = Timeline(toy_model(max_position=100, tokens_per_second=1.0), 2, text_tokens=9)
    timeline.unit(Fraction(0), GRID)
    last = 100 - 9 - 1
    assert Timeline(toy_model(), 2, 9).excess(Fraction(7)) == 0
    assert timeline.excess(Fraction(last - 2)) == 0
    assert timeline.excess(Fraction(last - 1)) == 1
    assert np.all(timeline.unit(Fraction(last - 2), GRID)[:, 0] == last)
