"""The sampler against a plain statement of its rule."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.errors import ConfigError
from vicort.runtime.sources.sampler import Sampler, as_rate

RATES = st.fractions(min_value=Fraction(1, 10), max_value=20, max_denominator=1001)
TIMES = st.lists(
    st.fractions(min_value=-5, max_value=15, max_denominator=90_000),
    min_size=1,
    max_size=40,
    unique=True,
).map(sorted)


def stated(times: list[Fraction], fps: Fraction) -> list[Fraction]:
    """For every tick up to the last time, the first frame at or after it; each once."""
    taken, tick = [], times[0]
    while tick <= times[-1]:
        frame = next(time for time in times if time >= tick)
        if frame not in taken:
            taken.append(frame)
        tick += 1 / fps
    return taken


def sampled(times: list[Fraction], fps: Fraction | float | None) -> list[Fraction]:
    sampler = Sampler(fps)
    return [time for time in times if sampler.accepts(time)]


@given(TIMES, RATES)
def test_takes_the_first_frame_at_or_after_each_tick(times: list[Fraction], fps: Fraction) -> None:
    assert sampled(times, fps) == stated(times, fps)


@given(TIMES)
def test_source_rate_takes_every_frame(times: list[Fraction]) -> None:
    assert sampled(times, None) == times


@given(TIMES, RATES)
def test_asking_what_it_wants_changes_nothing(times: list[Fraction], fps: Fraction) -> None:
    sampler = Sampler(fps)
    for time in times:
        asked = [sampler.wants(time) for _ in range(3)]
        assert asked == [sampler.accepts(time)] * 3


@given(RATES, st.integers(1, 50))
def test_a_slower_source_passes_whole(fps: Fraction, slower: int) -> None:
    times = [k * slower / fps for k in range(20)]
    assert sampled(times, fps) == times


def test_no_drift_over_hours_of_ntsc() -> None:
    rate = Fraction(30_000, 1001)
    times = [k / rate for k in range(0, 30 * 3600 * 4, 7)]
    taken = sampled(times, 2)
    # every tick got a frame of its own, less than one source interval late
    assert len(taken) == int(times[-1] * 2) + 1
    assert all(0 <= time - Fraction(k, 2) < 7 / rate for k, time in enumerate(taken))


def test_ticks_in_a_gap_are_skipped() -> None:
    times = [Fraction(k, 10) for k in range(10)] + [Fraction(1000 + k, 10) for k in range(10)]
    assert sampled(times, 2) == [Fraction(0), Fraction(1, 2), Fraction(100), Fraction(1005, 10)]


def test_a_float_rate_means_what_it_says() -> None:
    assert as_rate(29.97) == Fraction(2997, 100)
    assert as_rate(2) == 2
    assert as_rate(Fraction(30_000, 1001)) == Fraction(30_000, 1001)


@pytest.mark.parametrize("fps", [0, -1, 0.0, float("nan"), float("inf")])
def test_refuses_impossible_rates(fps: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Sampler(fps)
