"""The plate of a question and its answer: small, at the bottom, and legible on any picture."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import ImageFont

from vicort.runtime.rendering.lettering import Typeface, wrapped
from vicort.runtime.rendering.notes import Note
from vicort.runtime.rendering.plate import PlateMaker

SIZES = [(128, 128), (240, 320), (360, 640), (1080, 1920), (1920, 1080), (2160, 3840), (540, 1260)]
SHORT = Note(Fraction(0), "what color was the circle?", "red")
LONG = Note(Fraction(0), "why is that so? " * 30, "because of everything that was there " * 25)


def drawn(height, width, *notes, over=0):
    """The picture with a plate, and what is left where it is."""
    picture = np.full((height, width, 3), over, np.uint8)
    PlateMaker(height, width, Typeface()).plate(notes).blend(picture)
    return picture


@pytest.mark.parametrize("note", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_plate_covers_at_most_the_lowest_third(height, width, note):
    changed = (drawn(height, width, note, over=255) != 255).any(axis=2)
    assert changed.any()
    assert not changed[: height - height // 3].any()
    assert changed.sum() <= height * width / 3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_letters_grow_with_the_picture(height, width):
    rows = np.flatnonzero((drawn(height, width, SHORT, over=255) != 255).any(axis=(1, 2)))
    share = (rows[-1] - rows[0] + 1) / min(height, width)
    assert 0.08 < share < 0.34


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    value = np.asarray(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("over", [0, 90, 128, 200, 255])
def test_letters_stand_out_on_any_picture(over):
    """The contrast that WCAG 2.2 asks for, between the plate and its letters."""
    picture = drawn(1080, 1920, SHORT, over=over)
    rows, columns = (
        np.nonzero((picture != over).any(axis=2)) if over else np.nonzero(picture[..., 0])
    )
    inside = picture[rows.min() : rows.max(), columns.min() : columns.max()]
    colours, counts = np.unique(inside.reshape(-1, 3), axis=0, return_counts=True)
    plate, *letters = (luminance(colours[place]) for place in np.argsort(-counts)[:3])
    assert all((letter + 0.05) / (plate + 0.05) >= 4.5 for letter in letters)


def test_the_picture_shines_through():
    over_black, over_white = (drawn(240, 320, SHORT, over=over) for over in (0, 255))
    assert (over_white >= over_black).all()
    assert (over_white != over_black).any(axis=2).mean() > 0.5


def test_an_answer_is_kept_and_its_question_cut_where_both_do_not_fit():
    note = Note(Fraction(0), "why? " * 150, "an answer of a few words")
    assert (
        drawn(240, 320, note) == drawn(240, 320, Note(note.at, "why? " * 149, note.answer))
    ).all()
    assert (drawn(240, 320, note) != drawn(240, 320, Note(note.at, note.question, "other"))).any()


def test_what_was_said_without_a_question_is_drawn():
    assert (drawn(240, 320, Note(Fraction(0), "", "a red circle")) > 200).any()
    assert drawn(240, 320, Note(Fraction(0), "", "")).shape == (240, 320, 3)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 640), (640, 16), (48, 48)])
def test_tiny_pictures_are_no_error(height, width):
    drawn(height, width, SHORT)
    drawn(height, width, LONG)


@pytest.mark.parametrize(
    "text", ["one two  three", "Donaudampfschifffahrtsgesellschaft x" * 3, "", " "]
)
@pytest.mark.parametrize("width", [1, 40, 100])
def test_lines_fit_and_nothing_is_lost(text, width):
    font = ImageFont.load_default(12)
    lines = wrapped(text, font, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) == 1 or font.getlength(line) <= width for line in lines)
