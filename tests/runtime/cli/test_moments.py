"""Ranges as people write them, and the seconds of a stream that they stand for."""

import json
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_session import FakeEngines, FakeSession

from vicort.runtime.cli import run
from vicort.runtime.cli.moments import ClockTime, WrittenQuestion, check_moments, parse_moment
from vicort.runtime.cli.questions import limited, parse_typed
from vicort.runtime.core import Frame, Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.sources.source import Source

CLIP = "testsrc:seconds=10,size=32x32,fps=4"
NINE = datetime(2026, 11, 30, 9, 0, 0, tzinfo=UTC)


class Recorded(Source):
    """A source that gives a black frame every second."""

    def __init__(self, began=None, seconds=8):
        super().__init__("gate", live=self.keeps_wall_clock)
        self._first, self._seconds = began, seconds

    def frames(self, wants=None):
        for second in range(self._seconds):
            self.began = self._first
            if wants is None or wants(Fraction(second)):
                yield Frame(np.zeros((4, 4, 3), np.uint8), Fraction(second), second)


class Camera(Recorded):
    keeps_wall_clock = True


def camera(began: datetime) -> Camera:
    source = Camera(began)
    source.began = began
    return source


@pytest.fixture
def in_zone(monkeypatch):
    """Sets the local time zone."""

    def use(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield use
    monkeypatch.undo()
    time.tzset()


def asked(since, until, at=None) -> WrittenQuestion:
    given = {"question": "what was it?", "at": at, "since": since, "until": until}
    return parse_typed(json.dumps(given), "line 1")


def seconds(since, until, source, now=0, at=None):
    question = asked(since, until, at).of_source(source, Fraction(now))
    assert type(question) is Question
    return question.since, question.until


@given(st.integers(0, 99), st.integers(0, 59), st.decimals(0, "59.999", places=3))
def test_of_a_file_hours_minutes_and_seconds_are_a_place_in_it(hours, minutes, second):
    written = f"{hours}:{minutes:02}:{second:06.3f}"
    expected = 3600 * hours + 60 * minutes + Fraction(second)
    assert seconds(written, None, Recorded()) == (expected, None)


@given(st.decimals(0, 10**6, places=3))
def test_numbers_are_seconds_of_any_stream(number):
    for source in (Recorded(), camera(NINE)):
        for written in (str(number), float(number)):
            assert seconds(written, None, source) == (Fraction(str(float(number))), None)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_of_a_camera_a_time_of_day_is_the_last_one_before_the_question(in_zone, zone):
    """Property: it is that time in the local zone, at most a day before; `until` is the next one
    after `since`, at most a day later."""
    in_zone(zone)
    random = np.random.default_rng(0)
    for _ in range(200):
        began = NINE + timedelta(seconds=int(random.integers(0, 86_400)))
        now = int(random.integers(2 * 86_400, 5 * 86_400))
        hour, minute, last_hour = (int(n) for n in random.integers(0, (24, 60, 24)))
        since, until = seconds(f"{hour}:{minute:02}", f"{last_hour}:30:15", camera(began), now)
        first = (began + timedelta(seconds=float(since))).astimezone()
        last = (began + timedelta(seconds=float(until))).astimezone()
        assert (first.hour, first.minute, first.second) == (hour, minute, 0)
        assert (last.hour, last.minute, last.second) == (last_hour, 30, 15)
        assert now - 86_400 < since <= now
        assert since <= until < since + 86_400


def test_times_of_day(in_zone):
    in_zone("UTC")
    hour = 3600
    gate = camera(NINE)
    assert seconds("10:00", "10:05", gate, now=2 * hour) == (hour, hour + 300)
    # asked at 10:03 about something that lasts until 10:05
    assert seconds("10:00", "10:05", gate, now=hour + 180) == (hour, hour + 300)
    # over midnight, asked at 00:10
    assert seconds("23:55", "0:05", gate, now=15 * hour + 600) == (15 * hour - 300, 15 * hour + 300)
    # of the question's own time, if that is later
    assert seconds("10:00", None, gate, now=0, at=30 * hour) == (25 * hour, None)
    # from before the stream began
    assert seconds("8:00", "9:30", gate, now=2 * hour) == (0, hour // 2)
    assert seconds(None, "9:30", gate, now=2 * hour) == (None, hour // 2)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-11-30T09:00:10Z", 10),
        ("2026-11-30T10:00:10+01:00", 10),
        ("2026-11-30 04:00:10-05:00", 10),
        ("2026-11-30T14:31", 60),  # local, five and a half hours ahead
        ("2026-12-01T09:00Z", 86_400),
    ],
)
def test_dates(in_zone, written, expected):
    in_zone("Asia/Kolkata")
    assert seconds(written, None, camera(NINE)) == (expected, None)


@pytest.mark.parametrize(
    "written",
    ["", "soon", "10:60", "10:5", "1:2:3", "-1:00", "24:00:60", "2026-13-01T10:00",
     "2026-11-30", "10:00 pm", "1e3", "∞", True, [], {}, -1, 1e20, "9" * 13],
)  # fmt: skip
def test_what_is_no_moment_is_refused_in_one_line(written):
    with pytest.raises(QuestionError) as refused:
        asked(written, None)
    assert str(refused.value).startswith("line 1: since")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "since", "until", "says"),
    [
        (Recorded(), "10:00", None, "10:00 may be hours or minutes of gate"),
        (Recorded(), "2026-11-30T10:00", None, "the wall clock of gate is not known"),
        (camera(NINE), "25:00", None, "25:00 is no time of day"),
        (Camera(NINE), "10:00", None, "gate has no frame yet: ask again"),
        (camera(NINE), None, "2026-11-30T08:00Z", "is before the stream began, at 2026-11-30"),
    ],
)
def test_what_a_source_cannot_tell_is_refused(source, since, until, says):
    with pytest.raises(QuestionError) as refused:
        seconds(since, until, source)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(QuestionError, match="since 5 is after until 4"):
        asked(5, 4)


def test_a_question_without_a_range_stays_what_it_is():
    question = Question("what was it?")
    assert limited(question, None, None, "x") is question
    check_moments(question, Recorded())


def test_forms_are_kept_apart():
    assert parse_moment("0:01:30", "x") == ClockTime("0:01:30", Fraction(90), True)
    assert parse_moment("0:01", "x") == ClockTime("0:01", Fraction(60), False)


# ---- vicort-run ----


@pytest.fixture
def fake(monkeypatch):
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path("engines"))
    asked = []
    submit = FakeSession.submit
    monkeypatch.setattr(
        FakeSession,
        "submit",
        lambda self, question, on_token: asked.append(question) or submit(self, question, on_token),
    )
    return asked


def test_ranges_reach_the_session(fake, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "b", "since": 1.5, "until": "0:00:04", "at": 6}\n')
    options = ["--read-since", "0:00:02", "--read-until", "3.5", "--questions", str(file)]
    assert run.main([CLIP, "--ask", "a", *options]) == 0
    found = {question.text: (question.since, question.until) for question in fake}
    assert found == {"a": (2, Fraction(7, 2)), "b": (Fraction(3, 2), 4)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ask", "a", "--read-since", "10:00"], "give 0:10:00 or 10:00:00"),
        (["--ask", "a", "--read-until", "2026-11-30T10:00"], "wall clock of testsrc"),
        (["--ask", "a", "--read-since", "5", "--read-until", "4"], "since 5 is after until 4"),
        (["--ask", "a", "--read-since", "soon"], "--read-since 'soon' is no moment"),
        (["--read-until", "4"], "--read-until is about the questions of --ask, and none is given"),
    ],
)
def test_ranges_that_mean_nothing_end_before_the_run(fake, capsys, options, says):
    assert run.main([CLIP, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), FakeSession.opened) == ("", 1, [])
    assert says in err


def test_questions_about_the_wall_clock_of_a_camera_wait_for_its_first_frame(
    fake, in_zone, monkeypatch, tmp_path
):
    in_zone("UTC")
    monkeypatch.setattr(run, "open_source", lambda *_, **__: Camera(NINE))
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "b", "since": "9:00:02", "until": "9:00:03", "at": 5}\n')
    options = ["--read-since", "9:00:04", "--on-lag", "wait", "--questions", str(file)]
    assert run.main(["gate", "--ask", "a", *options]) == 0
    found = [(question.text, question.at, question.since, question.until) for question in fake]
    assert found == [("b", 5, 2, 3), ("a", None, 4, None)]


def test_a_range_before_the_camera_began_fails_the_run_at_its_end(
    fake, in_zone, monkeypatch, capsys
):
    in_zone("UTC")
    monkeypatch.setattr(run, "open_source", lambda *_, **__: Camera(NINE))
    options = ["--read-until", "2026-11-30T08:00", "--ask", "a", "--on-lag", "wait"]
    assert run.main(["gate", *options]) == 2
    out, err = capsys.readouterr()
    assert "distinct: " in out
    assert "until 2026-11-30T08:00 is before the stream began, at 2026-11-30 09:00:00" in err


DIGITS = st.text(st.characters(categories=["Nd"]), min_size=1, max_size=6)


@given(DIGITS, st.none() | DIGITS, st.none() | DIGITS)
def test_digits_of_any_script_are_read_or_refused(hours, minutes, seconds):
    """Python reads each of them as its digit."""
    text = ":".join(part for part in (hours, minutes, seconds) if part is not None)
    plain = ":".join(str(int(part)).zfill(len(part)) for part in text.split(":"))
    try:
        found = parse_moment(text, "--read-since")
    except QuestionError:
        return
    expected = parse_moment(plain, "--read-since")
    assert getattr(found, "seconds", found) == getattr(expected, "seconds", expected)
