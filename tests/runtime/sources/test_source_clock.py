"""Time repair against its statement."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.sources.clock import JUMP, MIN_STEP, RESET, Clock

STEP = Fraction(1, 25)
STAMPS = st.lists(
    st.none() | st.fractions(min_value=-10, max_value=10, max_denominator=90_000), max_size=60
)


def repaired(stamps: list[Fraction | None]) -> tuple[list[Fraction], list[str]]:
    warnings: list[str] = []
    clock = Clock(STEP, warnings.append)
    return [clock.time(stamp) for stamp in stamps], warnings


@given(STAMPS)
def test_times_rise_whatever_comes(stamps: list[Fraction | None]) -> None:
    times, warnings = repaired(stamps)
    assert all(before < after for before, after in pairwise(times))
    assert len(warnings) <= 3


@given(
    st.lists(st.fractions(min_value=-10, max_value=10, max_denominator=90_000), unique=True).map(
        sorted
    )
)
def test_good_times_are_only_counted_from_the_first(stamps: list[Fraction]) -> None:
    assert repaired(list(stamps)) == ([stamp - stamps[0] for stamp in stamps], [])


@given(
    st.integers(2, 30),
    st.integers(1, 30),
    st.fractions(min_value=RESET, max_value=1000, max_denominator=1000),
)
def test_after_a_reset_distances_stay(before: int, after: int, back: Fraction) -> None:
    first = [i * STEP for i in range(before)]
    second = [first[-1] - back + 3 * i * STEP for i in range(after)]
    times, warnings = repaired(first + second)
    assert times == first + [first[-1] + STEP + 3 * i * STEP for i in range(after)]
    assert len(warnings) == 1


def test_a_repeated_stamp_does_not_shift_what_follows() -> None:
    times, warnings = repaired([Fraction(0), Fraction(1), Fraction(1), Fraction(2)])
    assert times == [0, 1, 1 + MIN_STEP, 2]
    assert len(warnings) == 1


@given(
    st.lists(st.sampled_from([STEP, Fraction(7), Fraction(11), Fraction(9000)]), max_size=30),
    st.booleans(),
)
def test_only_where_timestamps_may_jump_a_long_gap_is_one(
    steps: list[Fraction], may_jump: bool
) -> None:
    clock = Clock(STEP, lambda line: None, may_jump=may_jump)
    stamps = [sum(steps[:i], Fraction(5)) for i in range(len(steps) + 1)]
    times = [clock.time(stamp) for stamp in stamps]
    right = [STEP if may_jump and step > JUMP else step for step in steps]
    assert [after - before for before, after in pairwise(times)] == right
    assert clock.repairs["jumping"] == right.count(STEP) - steps.count(STEP)


def test_a_start_before_the_first_frame() -> None:
    clock = Clock(STEP, lambda line: None)
    assert clock.time(Fraction(7), Fraction(5)) == 2
    assert clock.time(Fraction(8)) == 3
    assert Clock(STEP, lambda line: None).time(Fraction(7), Fraction(9)) == 0


def test_missing_stamps_are_a_step_apart() -> None:
    assert repaired([None, None, Fraction(1), None])[0] == [0, STEP, 1, 1 + STEP]
