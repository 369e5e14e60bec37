"""What stays on a terminal where the events, the warnings and the progress bar share a screen."""

import io
import os
from dataclasses import dataclass
from fractions import Fraction

import pytest

from vicort.runtime.cli.output import Output
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.core import Answer


class Screen(io.StringIO):
    """A terminal of endless size, for stdout and stderr together."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What it shows: a carriage return goes back, and what follows is written over."""
        rows: list[list[str]] = [[]]
        column = 0
        for letter in self.getvalue():
            if letter == "\r":
                column = 0
            elif letter == "\n":
                rows.append([])
                column = 0
            else:
                rows[-1] += " " * (column - len(rows[-1]))
                rows[-1][column : column + 1] = letter
                column += 1
        return ["".join(row).rstrip() for row in rows]


@dataclass
class Clip:
    name: str = "clip.mp4"
    frames_total: int = 100


ANSWER = Answer(
    "q1", Fraction(4), Fraction(3), "what is there now?", "green square", 5.0, 2, (), 1, 1, None
)
TAIL = "[asked at 4.000 s, seen until 3.000 s, first token after 5.0 ms]"


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(
        "shutil.get_terminal_size", lambda *default: os.terminal_size((90, 24)), raising=True
    )
    return Screen()


@pytest.mark.parametrize("parts", [["green", " square"], ["green square"], []])
def test_an_answer_stays_readable_beside_a_progress_bar(screen, parts):
    output = Output(WRITERS["text"](screen), screen, stats=False)
    with output.progress_of(Clip()):
        output.progress(10)
        for part in parts:
            output.token("q1", ANSWER.question, part)
            output.progress(20)
        output.event(ANSWER)
        output.progress(30)
    assert screen.lines() == ["what is there now?", f"  green square   {TAIL}", ""]


def test_no_bar_stays_when_a_run_ends_amid_an_answer(screen):
    output = Output(WRITERS["text"](screen), screen, stats=False)
    with output.progress_of(Clip()):
        output.progress(10)
        output.token("q1", ANSWER.question, "green")
    assert screen.lines() == ["what is there now?", "  green"]


def test_a_warning_amid_an_answer_takes_a_line_of_its_own(screen):
    output = Output(WRITERS["text"](screen), screen, stats=False)
    with output.progress_of(Clip()):
        output.progress(10)
        output.token("q1", ANSWER.question, "green")
        output.warn("look out")
        output.token("q1", ANSWER.question, " square")
        output.event(ANSWER)
    assert [line.strip() for line in screen.lines()] == [
        "what is there now?",
        "green",
        "vicort-run: warning: look out",
        f"square   {TAIL}",
        "",
    ]


def test_a_warning_is_also_an_event_where_a_program_reads():
    out, err = io.StringIO(), io.StringIO()
    Output(WRITERS["jsonl"](out), err, stats=False).warn("rtsp://me:secret@camera/1 is\nslow", "b")
    assert '"event": "warning"' in out.getvalue()
    assert out.getvalue().count("\n") == err.getvalue().count("\n") == 1
    assert '"source": "b"' in out.getvalue()
    assert "secret" not in out.getvalue() + err.getvalue()
    for name in ("text", "srt"):
        out = io.StringIO()
        Output(WRITERS[name](out), err, stats=False).warn("slow")
        assert out.getvalue() == ""
