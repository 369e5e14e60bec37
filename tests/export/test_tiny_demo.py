"""The demo clip: it shows what the world has to show, and its questions have sure answers."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from vicort.benchmarks.demo import ABSENT
from vicort.export.tiny.demo_clip import demo_questions, demo_sidecar, demo_stream, make_demo
from vicort.export.tiny.video import read_frames
from vicort.export.tiny.world import COLORS, SHAPES
from vicort.export.tiny.world_questions import named


def test_two_things_touch_two_stand_side_by_side_and_the_others_are_alone() -> None:
    things = demo_stream().things
    assert len(things) == 5
    between = [after.start - before.end for before, after in pairwise(things)]
    assert sum(gap == 0 for gap in between) == 1
    assert sum(gap < -1 for gap in between) == 1
    assert sum(gap > 0.75 for gap in between) == 2


def test_what_the_demo_asks_about_never_came() -> None:
    shown = {word for thing in demo_stream().things for word in (thing.shape, thing.color)}
    for question, answer in ABSENT:
        word = question.rstrip("?").split()[-1]
        assert word not in shown
        assert (answer is None) == (word not in (*SHAPES, *COLORS))


def test_what_is_asked_while_things_are_there_is_sure() -> None:
    """The last frame that a question sees is half a second older than the question, or less."""
    stream = demo_stream()
    at_times = sorted({at for at, _ in demo_questions(stream) if at is not None})
    for at, asked in demo_questions(stream):
        if at is None:
            continue
        for since in (0.46, 0.51, 1.01):
            now = stream.at(at - since)
            if asked.kind == "now":
                assert asked.answer == named(*now)
            elif asked.kind == "color":
                (index,) = asked.about or ()
                assert stream.things[index] in now
                assert asked.answer == stream.things[index].color
            else:
                (index,) = asked.about or ()
                assert stream.things[index].start < at - 1.01
    assert len(at_times) == 5
    pairs = [asked.answer for _, asked in demo_questions(stream) if " and " in asked.answer]
    assert pairs == ["blue square and purple star"]


def test_every_kind_of_question_is_asked_once() -> None:
    sidecar = demo_sidecar(demo_stream())
    assert [{*thing} for thing in sidecar["things"]] == [{"shape", "color", "start", "end"}] * 5
    questions = sidecar["questions"]
    assert {*map(tuple, questions)} == {("at", "question", "answer")}
    assert len({(each["at"], each["question"]) for each in questions}) == len(questions)
    kinds = ("what color was", "what shape was", "was there a", "which came first", "how many")
    for kind in (*kinds, "what is there now"):
        assert any(each["question"].startswith(kind) for each in questions), kind
    assert "none" not in {each["answer"] for each in questions}


@pytest.mark.slow
def test_its_files_are_small(tmp_path: Path) -> None:
    make_demo(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"shapes.mp4", "shapes.json"}
    assert (tmp_path / "shapes.mp4").stat().st_size <= 160_000
    assert json.loads((tmp_path / "shapes.json").read_text()) == demo_sidecar(demo_stream())
    times = [time for time, _ in read_frames(tmp_path / "shapes.mp4")]
    assert abs(times[-1] + Fraction(1, 2) - Fraction(demo_stream().duration)) < 1
