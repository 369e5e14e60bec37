"""The sampler against its rule, and against FFmpeg's `fps` filter."""

import random
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.core import Frame
from vicort.runtime.errors import ConfigError
from vicort.runtime.sources.sampler import Sampler, as_rate

RATES = st.fractions(min_value=Fraction(1, 10), max_value=20, max_denominator=1001)
USUAL = [
    Fraction(2),
    Fraction(24_000, 1001),
    Fraction(25),
    Fraction(30_000, 1001),
    Fraction(30),
    Fraction(50),
    Fraction(60_000, 1001),
    Fraction(60),
]
TIMES = st.lists(
    st.fractions(min_value=-5, max_value=15, max_denominator=90_000),
    min_size=1,
    max_size=40,
    unique=True,
).map(sorted)
# in intervals, of every frame but the first
JITTER = st.lists(
    st.fractions(Fraction(-49, 100), Fraction(49, 100), max_denominator=10_007),
    min_size=1,
    max_size=60,
)


def sampled(times: Iterable[Fraction], fps: Fraction | float | None) -> list[Fraction]:
    sampler = Sampler(fps)
    return [time for time in times if sampler.accepts(time)]


def jittered(rate: Fraction, jitter: list[Fraction]) -> list[Fraction]:
    return [Fraction(0), *((i + each) / rate for i, each in enumerate(jitter, 1))]


def noise(count: int, most: Fraction, seed: int = 1) -> list[Fraction]:
    numbers = random.Random(seed)
    return [most * numbers.randint(-1000, 1000) / 1000 for _ in range(count)]


@given(st.sampled_from(USUAL), JITTER)
def test_a_source_of_the_rate_asked_for_keeps_all(rate: Fraction, jitter: list[Fraction]) -> None:
    times = jittered(rate, jitter)
    assert sampled(times, rate) == times


@given(st.sampled_from(USUAL), st.integers(3, 8), st.integers(0, 1000))
def test_of_a_multiple_of_the_rate_every_kth_stays(rate: Fraction, k: int, seed: int) -> None:
    times = jittered(rate, noise(200, Fraction(2, 5), seed))
    assert sampled(times, rate / k) == times[::k]


@given(st.sampled_from(USUAL), st.integers(0, 1000))
def test_of_twice_the_rate_every_second_stays(rate: Fraction, seed: int) -> None:
    """Its first interval alone may look like one of the rate asked for with jitter."""
    times = jittered(rate, noise(200, Fraction(2, 5), seed))
    found = sampled(times, rate / 2)
    assert len(found) == len(times[::2])
    assert found[2:] == times[4::2]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("rate", USUAL, ids=lambda rate: f"{float(rate):.3f}")
def test_timestamps_in_milliseconds_lose_nothing(rate: Fraction, k: int) -> None:
    times = [Fraction(round(1000 * i / rate), 1000) for i in range(2000)]
    assert sampled(times, rate / k) == times[::k]


def test_a_camera_of_two_a_second_keeps_all() -> None:
    times = [(i + each) / 2 for i, each in enumerate(noise(60, Fraction(1, 25)))]
    assert sampled(times, 2) == times


def test_a_late_first_frame_costs_one_frame_at_most() -> None:
    """A camera's first frame may come half a frame late and more; then every frame stays."""
    for late in range(10):
        times = [
            Fraction(late, 20),
            *((i + each) / 2 for i, each in enumerate(noise(60, Fraction(1, 5)), 1)),
        ]
        assert len(sampled(times, 2)) >= len(times) - 2


@given(TIMES)
def test_source_rate_takes_every_frame(times: list[Fraction]) -> None:
    assert sampled(times, None) == times


@given(TIMES, RATES)
def test_asking_again_changes_nothing(times: list[Fraction], fps: Fraction) -> None:
    sampler = Sampler(fps)
    found = []
    for time in times:
        asked = [sampler.wants(time) for _ in range(3)]
        assert asked == [sampler.accepts(time)] * 3
        found += [time] * asked[0]
    assert found == sampled(times, fps)


@given(TIMES, RATES)
def test_each_tick_has_one_frame_or_is_counted(times: list[Fraction], fps: Fraction) -> None:
    sampler, ticks = Sampler(fps), []
    for time in times:
        if sampler.accepts(time):
            ticks.append((ticks[-1] + 1 if ticks else 0) + sampler.missed)
            place = (time - times[0]) * fps
            assert abs(place - ticks[-1]) <= 1
        assert not sampler.accepts(time)
        assert not sampler.accepts(time - 1)
    assert len(set(ticks)) == len(ticks)


@given(RATES, st.integers(2, 50))
def test_a_slower_source_passes_whole(fps: Fraction, slower: int) -> None:
    sampler = Sampler(fps)
    for k in range(20):
        assert sampler.accepts(k * slower / fps)
        assert sampler.missed == (slower - 1 if k else 0)


@pytest.mark.parametrize("rate", [Fraction(19, 10), Fraction(23, 10), Fraction(30_000, 1001)])
def test_no_drift_over_half_an_hour(rate: Fraction) -> None:
    times = [k / rate for k in range(int(1800 * rate))]
    found = sampled(times, 2)
    assert abs(len(found) - 1800 * min(2, rate)) <= 1


def test_of_a_fast_source_each_tick_gets_its_nearest_frame() -> None:
    rate = Fraction(30_000, 1001)
    found = sampled([k / rate for k in range(30 * 900)], 2)
    assert all(abs(time - Fraction(k, 2)) <= 1 / rate / 2 for k, time in enumerate(found))


def test_a_gap_does_not_hide_that_a_source_is_fast() -> None:
    times = [Fraction(k, 10) for k in range(10)] + [Fraction(1000 + k, 10) for k in range(10)]
    assert sampled(times, 2) == [Fraction(0), Fraction(1, 2), Fraction(100), Fraction(1005, 10)]


# ---- frames that were left out and stay ----


def taken(times: Iterable[Fraction], fps: Fraction, asked: Iterable[Fraction] = ()) -> list[int]:
    """Numbers of the frames that are taken in the end, in this order. asked: times of questions."""
    sampler, found, questions = Sampler(fps), list[int](), sorted(asked)
    for number, time in enumerate(times):
        while questions and questions[0] < time:
            stayed = sampler.stayed_by(questions.pop(0))
            found += [stayed.index] if stayed else []
        stayed = sampler.stayed(time)
        sampled = sampler.sample(Frame(None, time, number))
        found += [each.index for each in (stayed, sampled) if each]
    return found


@given(TIMES, RATES)
def test_a_tick_passes_only_while_a_frame_that_was_taken_is_on_the_screen(
    times: list[Fraction], fps: Fraction
) -> None:
    sampler, newest = Sampler(fps), True
    for number, time in enumerate(times):
        if sampler.stayed(time):
            newest = True
        accepted = sampler.sample(Frame(None, time, number)) is not None
        assert newest or not (accepted and sampler.missed)
        newest = accepted


@given(TIMES, RATES, st.lists(st.fractions(-5, 15, max_denominator=1000), max_size=5))
def test_which_frames_are_taken_does_not_depend_on_questions(
    times: list[Fraction], fps: Fraction, asked: list[Fraction]
) -> None:
    assert taken(times, fps, asked) == taken(times, fps)


@given(TIMES, RATES)
def test_frames_are_taken_in_their_order_and_once(times: list[Fraction], fps: Fraction) -> None:
    found = taken(times, fps)
    assert found == sorted(set(found))
    alone = Sampler(fps)
    assert len(found) >= sum(alone.accepts(time) for time in times)


@given(st.sampled_from(USUAL), st.integers(1, 8), JITTER)
def test_of_a_steady_source_nothing_more_is_taken(
    rate: Fraction, k: int, jitter: list[Fraction]
) -> None:
    times = jittered(rate, [each / 2 for each in jitter])
    alone = Sampler(rate / k)
    assert taken(times, rate / k) == [
        number for number, time in enumerate(times) if alone.accepts(time)
    ]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (["0", "0.2", "10"], [0, 1, 2]),
        (["0", "0.1", "0.2", "10", "10.1"], [0, 2, 3]),
        (["0", "0.2", "0.75", "1"], [0, 2, 3]),  # as near to 0.5 as to 1
        (["0", "0.2", "0.9"], [0, 1, 2]),
        (["0", "0.5", "0.6", "0.7", "60"], [0, 1, 3, 4]),
    ],
)
def test_the_last_frame_of_a_burst_is_taken(times: list[str], found: list[int]) -> None:
    assert taken([Fraction(time) for time in times], Fraction(2)) == found


# ---- FFmpeg's filter ----


def filtered(times: list[Fraction], fps: Fraction) -> list[int]:
    """Numbers of the pictures that `fps=FPS:round=near` shows, one a tick, the last one shown
    once."""
    graph, base = av.filter.Graph(), Fraction(1, 1_000_000)
    buffer = graph.add_buffer(width=16, height=16, format="gray", time_base=base)
    chosen = graph.add("fps", f"fps={fps}:round=near:eof_action=pass:start_time=0")
    sink = graph.add("buffersink")
    buffer.link_to(chosen)
    chosen.link_to(sink)
    graph.configure()
    shown: list[int] = []
    for number, time in enumerate([*times, None]):
        if time is not None:
            pixels = np.full((16, 16), number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="gray")
            frame.pts, frame.time_base = round((time - times[0]) / base), base
            buffer.push(frame)
        else:
            buffer.push(None)
        while True:
            try:
                shown.append(int(sink.pull().to_ndarray()[0, 0]))
            except (av.BlockingIOError, av.EOFError):
                break
    return shown


def variable() -> list[Fraction]:
    """A screen recorder: bursts of 30 a second, and stills of up to 9 s."""
    numbers, times = random.Random(3), [Fraction(0)]
    while len(times) < 200:
        still = numbers.random() < 0.1
        times.append(
            times[-1] + (Fraction(numbers.randint(400, 9000), 1000) if still else Fraction(1, 30))
        )
    return times


SOURCES = {
    "milliseconds of 30": ([Fraction(round(1000 * Fraction(i, 30)), 1000) for i in range(150)], 30),
    "milliseconds of 23.976": (
        [Fraction(round(1000 * i * Fraction(1001, 24_000)), 1000) for i in range(150)],
        Fraction(24_000, 1001),
    ),
    "a jittery camera": ([(i + j) / 2 for i, j in enumerate(noise(60, Fraction(1, 5)))], 2),
    "30 to 25": ([Fraction(i, 30) for i in range(150)], 25),
    "25 to 2": ([Fraction(i, 25) for i in range(250)], 2),
    "1 to 2": ([Fraction(i) for i in range(60)], 2),
    "1.9 to 2": ([Fraction(10 * i, 19) for i in range(150)], 2),
    "a picture every ten seconds": ([Fraction(10 * i) for i in range(10)], 2),
    "a screen recorder": (variable(), 2),
}


@pytest.mark.parametrize("name", SOURCES)
def test_as_many_pictures_as_the_fps_filter_shows(name: str) -> None:
    """With ticks without a picture, in which the filter repeats the one before."""
    times, fps = SOURCES[name]
    sampler, ticks = Sampler(fps), 0
    for time in times:
        if sampler.accepts(time):
            ticks += 1 + sampler.missed
    shown = filtered(times, Fraction(fps))
    assert abs(ticks - len(shown)) <= 1
    found = taken(times, Fraction(fps))
    # what stays longer than a frame may be late for its tick
    assert {each for each in shown if shown.count(each) > 2} <= set(found)
    if name != "a screen recorder":  # in a burst, the filter waits for the nearest
        assert abs(len(found) - len(set(shown))) <= 1


# ---- rates ----


def test_a_float_rate_means_what_it_says() -> None:
    assert as_rate(29.97) == Fraction(2997, 100)
    assert as_rate(2) == 2
    assert as_rate(Fraction(30_000, 1001)) == Fraction(30_000, 1001)


@pytest.mark.parametrize("fps", [0, -1, 0.0, float("nan"), float("inf")])
def test_refuses_impossible_rates(fps: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Sampler(fps)
