"""When a chunk shows a new scene, against the rule said of a whole stream."""

from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.policies.change_trigger import ChangeTrigger
from vicort.runtime.policies.drop import ChunkIntra, Differential, FewTokens, KeepAll, MotionPruning

# seconds since the chunk before, tokens, and how many of them are kept
CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(7, 3)]),
        st.integers(1, 64),
        st.floats(0, 1),
    ),
    max_size=40,
)


def triggered(chunks, kept, apart):
    trigger = ChangeTrigger(kept, apart)
    return [number for number, chunk in enumerate(chunks) if trigger.changed(*chunk)]


@given(CHUNKS, st.floats(0, 0.99), st.fractions(0, 8) | st.integers(0, 8).map(Fraction))
def test_a_change_is_a_chunk_above_the_share_and_apart_from_the_change_before(drawn, kept, apart):
    times = accumulate(gap for gap, _, _ in drawn)
    chunks = [
        (at, round(share * tokens), tokens)
        for at, (_, tokens, share) in zip(times, drawn, strict=True)
    ]
    found = triggered(chunks, kept, apart)
    for number, (at, of_it, tokens) in enumerate(chunks):
        before = [chunks[each][0] for each in found if each < number]
        too_near = bool(before) and at - before[-1] < apart
        assert (number in found) == (number > 0 and of_it / tokens > kept and not too_near)


def test_without_a_distance_every_chunk_above_the_share_is_a_change():
    chunks = [(Fraction(at), kept, 10) for at, kept in enumerate((10, 4, 5, 9, 0, 10))]
    assert triggered(chunks, 0.4, Fraction(0)) == [2, 3, 5]  # four of ten are not above 0.4
    assert triggered(chunks, 0.4, Fraction(3)) == [2, 5]  # just far enough
    assert triggered(chunks, 0.4, Fraction(31, 10)) == [2]


@pytest.mark.parametrize(
    ("drop", "one_unit", "several"),
    [
        (KeepAll(), False, False),
        (FewTokens(), False, False),
        (ChunkIntra(threshold=0.5), False, True),
        (ChunkIntra(keep=0.5), False, False),
        (Differential(threshold=0.5), True, True),
        (MotionPruning(tau=1, difference=8, refresh=4), True, True),
    ],
    ids=lambda value: getattr(value, "policy", None),
)
def test_which_policies_show_changes_in_the_share_that_they_keep(drop, one_unit, several):
    assert (drop.shows_changes(1), drop.shows_changes(8)) == (one_unit, several)
