"""Fonts: one that has the letters, and boxes where none has them."""

from pathlib import Path

import matplotlib
import pytest

from vicort.runtime.errors import ConfigError
from vicort.runtime.rendering import lettering
from vicort.runtime.rendering.lettering import typeface

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@pytest.fixture
def bare(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ("no such font.ttf",))


def test_letters_of_english_need_no_font_of_the_system(bare):
    face, lacking = typeface(None, set("What colour was it? 100 % (a guess: 0.41) -\t"))
    assert lacking == set()
    assert face.at(20).getlength("word") > 20


def test_letters_that_no_font_has_are_found(bare):
    assert typeface(None, set("größe 你好 a\u0301"))[1] == {"ö", "ß", "你", "好"}


def test_a_font_of_the_system_is_used_where_letters_are_missing(monkeypatch):
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ("no such font.ttf", str(DEJAVU)))
    face, lacking = typeface(None, set("größe жду 你"))
    assert lacking == {"你"}
    assert face.at(20).getname()[0] == "DejaVu Sans"


def test_a_named_font_is_used_as_it_is():
    face, lacking = typeface(DEJAVU, set("ж"))
    assert (face.at(20).getname()[0], lacking) == ("DejaVu Sans", set())


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    for name in ("a.ttf", "missing.ttf"):
        with pytest.raises(ConfigError, match="is no font that can be read"):
            typeface(tmp_path / name, set())
