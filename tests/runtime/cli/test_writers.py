"""Each output format as its readers will read it."""

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest

from vicort.runtime.cli.writers import WRITERS, TextWriter, Writer
from vicort.runtime.core import Answer, ChunkEvent, Event, Spoken, Summary, WarningEvent

CHUNK = ChunkEvent(3, 16, Fraction(1, 3), Fraction(8), 128, 40, 12.3456)
SUMMARY = Summary(
    "vicostream",
    32,
    2,
    4,
    0.5,
    64.0,
    {"vision": 3.21},
    1.2,
    {"p50": 4.2, "p95": 5.0, "p99": 5.0},
    {"device": 9, "host": 0},
    {"device": 512.0, "host": 0.0},
    1.5,
    0,
    250.0,
)


def answer(
    text: str = "red",
    question: str = "what color was the circle?",
    at: Fraction = Fraction(25, 2),
    id: str = "q1",
) -> Answer:
    return Answer(
        id,
        at,
        Fraction(12),
        question,
        text,
        4.25,
        1,
        ((Fraction(0), Fraction(1)),),
        7,
        100,
        Fraction(0),
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Flushed(io.StringIO):
    """Knows what had been flushed after each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def flush(self) -> None:
        self.seen.append(self.getvalue())


def written(name: str, *events: Event) -> str:
    file = io.StringIO()
    writer = WRITERS[name](file)
    writer.start()
    for event in events:
        writer.write(event)
    return file.getvalue()


def without_time(line: str) -> dict:
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    return event


def test_every_event_says_at_what_time_of_day_it_was_written() -> None:
    before = datetime.now(UTC)
    lines = written("jsonl", CHUNK, answer(), SPOKEN, SUMMARY, WarningEvent("look out"))
    after = datetime.now(UTC)
    times = [datetime.fromisoformat(json.loads(line)["time"]) for line in lines.splitlines()]
    assert len(times) == 5
    assert all(time.utcoffset() == timedelta(0) for time in times)
    millisecond = timedelta(milliseconds=1)
    assert before - millisecond <= times[0] <= times[-1] <= after
    assert sorted(times) == times


def test_text_says_that_an_answer_is_a_guess() -> None:
    doubtful = replace(answer(), probability=0.432)
    assert written("text", doubtful).endswith("after 4.2 ms, a guess (probability 0.43)]\n")
    assert "guess" not in written("text", replace(answer(), probability=0.5))


def test_jsonl_is_the_contract() -> None:
    lines = written("jsonl", CHUNK, answer("où?"), SUMMARY).splitlines()
    assert [without_time(line) for line in lines] == [
        {
            "event": "chunk",
            "index": 3,
            "frames": 16,
            "start": 0.333333,
            "end": 8.0,
            "tokens": 128,
            "kept": 40,
            "wall_ms": 12.346,
        },
        {
            "event": "answer",
            "id": "q1",
            "at": 12.5,
            "seen_until": 12.0,
            "question": "what color was the circle?",
            "text": "où?",
            "ttft_ms": 4.25,
            "tokens": 1,
            "read": [[0.0, 1.0]],
            "pages": 7,
            "tokens_read": 100,
            "memory_from": 0.0,
            "probability": 1.0,
            "first_probability": 1.0,
            "complete": True,
        },
        {
            "event": "summary",
            "system": "vicostream",
            "frames": 32,
            "dropped": 2,
            "chunks": 4,
            "seconds": 0.5,
            "fps": 64.0,
            "stage_ms": {"vision": 3.21},
            "overlap": 1.2,
            "ttft_ms": {"p50": 4.2, "p95": 5.0, "p99": 5.0},
            "pages": {"device": 9, "host": 0},
            "budget_mb": {"device": 512.0, "host": 0.0},
            "moved_mb": 1.5,
            "reruns": 0,
            "peak_rss_mb": 250.0,
            "late": 0,
            "fork_ms": {},
        },
    ]
    assert "où?" in lines[1]


@pytest.mark.parametrize("name", WRITERS)
def test_every_event_is_flushed_as_it_happens(name: str) -> None:
    file = Flushed()
    writer = WRITERS[name](file)
    writer.start()
    for text in ("red", "blue"):
        writer.write(answer(text))
        assert text in file.seen[-1]
        assert file.seen[-1] == file.getvalue()


def test_text() -> None:
    text = written("text", CHUNK, answer(), SUMMARY)
    assert "chunk 3: 16 frames, 0.333-8.000 s, kept 40 of 128 tokens, 12.3 ms\n" in text
    assert (
        "what color was the circle?\n  red   [asked at 12.500 s, seen until 12.000 s, first "
        "token after 4.2 ms]\n" in text
    )
    assert text.endswith(
        "vicostream: 32 frames (2 dropped) in 4 chunks, 0.50 s, 64.0 frames/s, first token after "
        "4.2 ms (median)\n"
    )


SRT_CUE = re.compile(r"(\d+)\n(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})\n((?:.+\n)+)\n")
VTT_CUE = re.compile(r"(.+)\n(\d\d+:\d\d:\d\d\.\d{3}) --> (\d\d+:\d\d:\d\d\.\d{3})\n((?:.+\n)+)\n")
AWKWARD = answer(
    "a --> b\n\n\nand <i>& more", at=Fraction(3600 * 27 + 61) + Fraction(9996, 10_000), id="q2"
)


def test_srt() -> None:
    text = written("srt", CHUNK, answer(), AWKWARD, SUMMARY)
    assert "".join(match[0] for match in SRT_CUE.finditer(text)) == text
    assert [match.groups() for match in SRT_CUE.finditer(text)] == [
        ("1", "00:00:12,500", "00:00:16,500", "what color was the circle?\nred\n"),
        (
            "2",
            "27:01:02,000",
            "27:01:06,000",
            "what color was the circle?\na -> b\nand <i>& more\n",
        ),
    ]


def test_vtt() -> None:
    text = written("vtt", CHUNK, answer(), AWKWARD, SUMMARY)
    head, body = text[:8], text[8:]
    assert head == "WEBVTT\n\n"
    assert "".join(match[0] for match in VTT_CUE.finditer(body)) == body
    assert [match.groups() for match in VTT_CUE.finditer(body)] == [
        ("q1", "00:00:12.500", "00:00:16.500", "what color was the circle?\nred\n"),
        (
            "q2",
            "27:01:02.000",
            "27:01:06.000",
            "what color was the circle?\na -&gt; b\nand &lt;i&gt;&amp; more\n",
        ),
    ]


def test_vtt_begins_once_even_without_cues() -> None:
    file = io.StringIO()
    writer = WRITERS["vtt"](file)
    assert file.getvalue() == ""  # nothing, until something can come
    writer.start()
    writer.start()
    assert file.getvalue() == "WEBVTT\n\n"


def test_an_empty_answer_is_still_a_cue() -> None:
    assert SRT_CUE.fullmatch(written("srt", answer("  ")))


SPOKEN = Spoken(Fraction(27, 2), Fraction(27, 2), "red <star>", 2, 31.26, 0.0412)


def test_what_is_said_unasked() -> None:
    assert without_time(written("jsonl", SPOKEN)) == {
        "event": "spoken",
        "at": 13.5,
        "seen_until": 13.5,
        "text": "red <star>",
        "tokens": 2,
        "latency_ms": 31.26,
        "silence": 0.041,
    }
    assert (
        written("text", SPOKEN)
        == "13.500 s: red <star>   [silence 0.041, first token after 31.3 ms]\n"
    )
    assert written("srt", answer(), SPOKEN).endswith(
        "\n\n2\n00:00:13,500 --> 00:00:17,500\nred <star>\n\n"
    )
    assert written("vtt", SPOKEN) == "WEBVTT\n\n00:00:13.500 --> 00:00:17.500\nred &lt;star&gt;\n\n"


# ---- word by word ----


def give(writer: Writer, item: Answer, *tokens: str) -> None:
    for token in tokens:
        writer.token(item.id, item.question, token)


def test_on_a_terminal_an_answer_appears_word_by_word() -> None:
    file = Terminal()
    writer = TextWriter(file)
    give(writer, answer(), "re")
    assert file.getvalue() == "what color was the circle?\n  re"
    assert writer.mid_line
    give(writer, answer(), "d")
    writer.write(answer())
    assert (
        file.getvalue() == "what color was the circle?\n"
        "  red   [asked at 12.500 s, seen until 12.000 s, first token after 4.2 ms]\n"
    )
    assert not writer.mid_line


def test_answers_given_at_once_do_not_mix() -> None:
    file = Terminal()
    writer = TextWriter(file)
    first, second = answer("red", "first?", id="q1"), answer("blue", "second?", id="q2")
    give(writer, first, "r")
    give(writer, second, "blue")
    writer.write(second)
    writer.write(CHUNK)
    give(writer, first, "ed")
    writer.write(first)
    lines = file.getvalue().splitlines()
    assert [line.split("   [")[0] for line in lines[:4]] == ["first?", "  red", "second?", "  blue"]
    assert lines[4].startswith("chunk 3")


def test_a_run_that_is_stopped_amid_an_answer_still_gets_its_last_line() -> None:
    file = Terminal()
    writer = TextWriter(file)
    give(writer, answer(), "re")
    writer.write(CHUNK)
    writer.write(SUMMARY)
    lines = file.getvalue().splitlines()
    assert lines[1] == "  re …"
    assert [line.split(":")[0] for line in lines[2:]] == ["chunk 3", "vicostream"]


def test_in_a_pipe_only_whole_answers_come() -> None:
    file = io.StringIO()
    writer = TextWriter(file)
    give(writer, answer(), "re", "d")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("limits", "read", "memory_from", "says"),
    [
        ({"since": Fraction(600), "until": Fraction(900)}, (), Fraction(1200),
         ", nothing is remembered from 600.000 s until 900.000 s (memory begins at 1200.000 s)"),
        ({"until": Fraction(9)}, (), None, ", nothing is remembered until 9.000 s"),
        ({"since": Fraction(9)}, ((Fraction(9), Fraction(10)),), Fraction(0), ""),
        ({}, (), None, ""),
    ],
)  # fmt: skip
def test_text_says_where_nothing_of_a_range_is_remembered(limits, read, memory_from, says):
    given = replace(answer(), read=read, memory_from=memory_from, **limits)
    times = "[asked at 12.500 s, seen until 12.000 s"
    assert f"red   {times}{says}, first token after 4.2 ms]" in written("text", given)
    event = json.loads(written("jsonl", given))
    assert {key: event[key] for key in ("since", "until") if key in event} == (
        {"since": None, "until": None} | {key: float(value) for key, value in limits.items()}
        if limits
        else {}
    )


def test_text_shows_how_probable_each_choice_is_and_that_an_answer_was_cut() -> None:
    chosen = replace(answer("yes"), choices={"no": 0.071, "yes": 0.929}, outside=0.25)
    assert ", yes 0.93, no 0.07, other texts 0.25, first token" in written("text", chosen)
    many = {f"c{number}": 1 / 7 for number in range(7)}
    assert ", 2 more, other texts 0.00" in written(
        "text", replace(answer("c0"), choices=many, outside=0.0)
    )
    assert "cut" not in written("text", answer())
    assert ", cut after 1 tokens, first token" in written("text", replace(answer(), complete=False))
