"""What people read of answers without text, that saw nothing, or that were asked late."""

import json
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pytest

from vicort.runtime.cli import run
from vicort.runtime.cli.doubts import Doubts
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.core import Answer

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
NOW = "what is there now?"
ANSWER = Answer("q1", Fraction(12), Fraction(12), NOW, "red", 4.0, 1, (), 0, 0, None)
EMPTY = replace(ANSWER, text="", tokens=0, empty="ended-at-once", first_probability=0.78)


def written(form, answer):
    file = StringIO()
    WRITERS[form](file).write(answer)
    return file.getvalue()


def test_text_says_why_there_is_none():
    assert "no text: the model ended it at once" in written("text", EMPTY)
    assert "no text: it begins with a stop text" in written(
        "text", replace(EMPTY, empty="stop-text")
    )
    assert "no text" not in written("text", ANSWER)


def test_text_says_for_when_it_was_asked_and_what_was_seen():
    late = replace(ANSWER, requested=Fraction(2), seen_until=None)
    assert "[asked at 12.000 s for 2.000 s, nothing seen, " in written("text", late)
    assert "[asked at 12.000 s, seen until 12.000 s, " in written("text", ANSWER)


def test_a_cue_is_at_the_time_at_which_it_was_asked():
    late = replace(ANSWER, requested=Fraction(2))
    assert "00:00:12,000 --> " in written("srt", late)


def test_an_empty_answer_is_warned_about_once_for_each_question():
    said = []
    doubts = Doubts(said.append)
    for answer in (ANSWER, EMPTY, EMPTY, replace(EMPTY, empty="stop-text", question="what?")):
        doubts.answered(answer)
    assert len(said) == 1
    assert f"the answer to {NOW!r} is empty" in said[0]
    assert "first token (probability 0.78)" in said[0]


@pytest.mark.parametrize(
    ("source", "seen"), [(str(CLIP), 0.0), ("testsrc:seconds=2,size=112x112,fps=5", 0.0)]
)
def test_a_question_about_time_0_sees_the_first_frame(source, seen, tiny_engines, capsys):
    words = ("--ask", f"@0 {NOW}", "--engine-dir", str(tiny_engines), "--format", "jsonl")
    assert run.main([source, *words]) == 0
    (answer,) = [
        event
        for event in map(json.loads, capsys.readouterr().out.splitlines())
        if event["event"] == "answer"
    ]
    assert (answer["at"], answer["seen_until"], answer["read"]) == (0, seen, [[0, 0]])
    assert "requested" not in answer
