"""The embedded model is asked whenever the scene changes: how soon and how surely changes are seen,
and `--at-changes` from a clip to its answers."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from vicort.export.tiny.evaluation_files import HELD_OUT
from vicort.export.tiny.model import SIDE
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import StreamPlan, make_stream
from vicort.runtime.change_asker import ChangeAsker
from vicort.runtime.cli import run
from vicort.runtime.core import Frame, Question, Sampling
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

SOON = 2  # seconds after a change within which it is asked about
CLIP = Path(__file__).parent / "fixtures" / "shapes.mp4"
ASK = Question("what is there now?", sampling=Sampling(max_tokens=12))
SPACED = StreamPlan(stay=(4, 8), gap=(3, 6))  # seconds


def changes_of(things):
    """The times at which things come or go."""
    return sorted({time for start, end in things for time in (start, end)})


def answers_at_changes(engines, system, stream):
    asker, futures = ChangeAsker(ASK, system), []
    painter = Painter(stream, SIDE, SIDE)
    with Session.open(engines, system, on_event=asker.event) as session:
        for number in range(int(2 * stream.duration)):
            session.push(Frame(painter.frame(number / 2), Fraction(number, 2), number))
            session.settle()
            futures += asker.advance(session.submit)
        session.finish()
    return [future.result() for future in futures]


@pytest.mark.parametrize("apart", [0, 2])
def test_every_change_is_asked_about_within_two_seconds_and_nothing_else_is(tiny_engines, apart):
    system = load_system("timechat-online").with_(changes={"apart": apart})
    asked, missed, right = [], 0, 0
    for seed in range(4):
        stream = make_stream(HELD_OUT + seed, 5, lead=3, tail=3, plan=SPACED)
        changes = changes_of([(thing.start, thing.end) for thing in stream.things])
        answers = answers_at_changes(tiny_engines, system, stream)
        times = [float(answer.at) for answer in answers]
        missed += sum(not any(0 <= at - change <= SOON for at in times) for change in changes)
        for answer in answers:
            assert answer.seen_until == answer.at
            assert any(0 <= answer.at - change <= SOON for change in changes)  # no false one
            there = [f"{thing.color} {thing.shape}" for thing in stream.at(float(answer.at))]
            right += answer.text == (" and ".join(there) or "nothing")
        asked += times
    assert missed <= 1  # of 40 changes
    assert right >= 0.95 * len(asked)
    if apart:
        assert len(asked) == 40 - missed  # each once
    else:
        assert 40 - missed <= len(asked) <= 60  # some also in the unit after


def test_the_command_line_names_what_came_and_says_when(tiny_engines, capsys):
    arguments = [str(CLIP), "--engine-dir", str(tiny_engines), "--system", "timechat-online"]
    asking = ["--at-changes", ASK.text, "--format", "jsonl"]
    assert run.main([*arguments, *asking]) == 0
    first = events(capsys)
    answers = [event for event in first if event["event"] == "answer"]
    things = json.loads(CLIP.with_suffix(".json").read_text())["things"]
    changes = changes_of([(thing["start"], thing["end"]) for thing in things])
    for answer in answers:
        assert answer["id"] == f"change1@{answer['at']:g}"
        assert any(0 <= answer["at"] - change <= SOON for change in changes)
    said = " ".join(answer["text"] for answer in answers)
    named = [thing for thing in things if f"{thing['color']} {thing['shape']}" in said]
    assert len(named) >= len(things) - 1
    assert run.main([*arguments, "--sequential", *asking]) == 0
    kept = ("id", "at", "seen_until", "text")
    again = [event for event in events(capsys) if event["event"] == "answer"]
    assert [[each[key] for key in kept] for each in again] == [
        [each[key] for key in kept] for each in answers
    ]


def events(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
