"""Which questions and answers are on the screen at a time."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.rendering.notes import Note
from vicort.runtime.rendering.screens import NOTICED, STAYS, TURNED, screens


def at_most(count):
    return lambda notes: len(notes) <= count


def shown(made, time):
    """The answers on the screen at a time."""
    (notes,) = [screen.notes for screen in made if screen.start <= time < screen.end] or [()]
    return [note.answer for note in notes]


def notes(*times):
    return [Note(Fraction(str(time)), "what?", f"a{index}") for index, time in enumerate(times)]


def test_a_note_stays_from_its_moment_until_the_next_one():
    made = screens(notes(1, 6), at_most(3))
    assert shown(made, Fraction(99, 100)) == []
    assert shown(made, 1) == shown(made, Fraction(599, 100)) == ["a0"]
    assert shown(made, 6) == ["a1"]


def test_a_note_does_not_stay_for_ever():
    made = screens(notes(1, 60), at_most(3))
    assert shown(made, 1 + STAYS - Fraction(1, 100)) == ["a0"]
    assert shown(made, 1 + STAYS) == []


def test_a_long_note_stays_until_it_is_read():
    made = screens([Note(Fraction(0), "", "word " * 100)], at_most(3))
    assert made[0].end == made[0].read_until == 28


def test_notes_of_one_moment_are_together_where_they_fit_and_else_in_turn():
    together = screens(notes(2, 2, 2), at_most(3))
    assert shown(together, 2) == ["a0", "a1", "a2"]
    in_turn = screens(notes(2, 2, 2, 8), at_most(2))
    assert [shown(in_turn, time) for time in (2, Fraction(11, 2), 8)] == [
        ["a0", "a1"],
        ["a2"],
        ["a3"],
    ]


def test_a_note_that_is_hardly_seen_stays_above_the_next_one():
    soon = NOTICED - Fraction(1, 2)
    assert shown(screens(notes(0, soon), at_most(2)), soon) == ["a0", "a1"]
    assert shown(screens(notes(0, soon), at_most(1)), soon) == ["a1"]
    assert shown(screens(notes(0, NOTICED), at_most(2)), NOTICED) == ["a1"]


def test_no_notes_are_no_screens():
    assert screens([], at_most(1)) == []


@given(
    times=st.lists(st.integers(0, 40).map(lambda tenths: Fraction(tenths, 4)), max_size=12),
    room=st.integers(1, 4),
)
def test_every_note_is_shown_from_its_moment_on_and_no_two_pages_at_once(times, room):
    asked = [Note(time, "q", str(index)) for index, time in enumerate(sorted(times))]
    made = screens(asked, at_most(room))
    assert {note for screen in made for note in screen.notes} == set(asked)
    assert all(screen.start < screen.end for screen in made)
    assert all(before.end <= after.start for before, after in pairwise(made))
    assert all(note.at <= screen.start for screen in made for note in screen.notes)
    assert all(len(screen.notes) <= room for screen in made)
    for note in asked:
        first = min(screen.start for screen in made if note in screen.notes)
        alone = sum(other.at == note.at for other in asked) <= room
        assert first == note.at or not alone


@pytest.mark.parametrize("count", [1, 5])
def test_the_last_notes_can_all_be_read(count):
    made = screens(notes(*[7] * count), at_most(1))
    reading = Fraction(len("what?a0"), 20)
    assert made[-1].read_until == 7 + NOTICED + (count - 1) * TURNED + count * reading
    for screen in made[:-1]:
        assert screen.end == screen.read_until
