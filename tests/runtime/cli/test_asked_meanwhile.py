"""Questions while the stream runs: recurring ones, typed ones, and those of other processes."""

import json
import os
import resource
import socket
import stat
import threading
import time
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_session import UNKNOWN, FakeEngines, FakeSession

from vicort.runtime.cli import question_socket, run, socket_client
from vicort.runtime.cli.question_router import QuestionRouter
from vicort.runtime.cli.question_socket import MAX_CLIENTS, QuestionSocket
from vicort.runtime.cli.questions import MAX_LINE
from vicort.runtime.cli.recurring import RecurringAsker, RecurringQuestion, says_yes
from vicort.runtime.cli.socket_client import AT_ONCE, MAX_TIMED
from vicort.runtime.core import Answer, Question, Sampling
from vicort.runtime.errors import ConfigError, QuestionError

CLIP = "testsrc:seconds=10,size=32x32,fps=4"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path("engines"))


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict], str]:
    code = run.main([str(argument) for argument in (*arguments, "--format", "jsonl")])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def answered(question: Question, text: str) -> Answer:
    at = question.at or Fraction(0)
    return Answer(question.id, at, at, question.text, text, 1.0, 1, (), 0, 0, None)


# ---- recurring questions ----


def test_every_asks_again_and_again_by_the_streams_clock(capsys):
    code, events, _ = ran(capsys, CLIP, "--every", "3", "what now?", "--every", "4.5", "and now?")
    found = [
        (event["id"], event["at"], event["question"])
        for event in events
        if event["event"] == "answer"
    ]
    assert code == 0
    assert found == [
        ("every1.1", 3.0, "what now?"),
        ("every2.1", 4.5, "and now?"),
        ("every1.2", 6.0, "what now?"),
        ("every1.3", 9.0, "what now?"),
        ("every2.2", 9.0, "and now?"),
    ]


def test_until_ends_the_run_at_the_first_yes(capsys, monkeypatch):
    texts = iter(["no", "Not yet", "Yes, there is", "yes"])
    monkeypatch.setattr(FakeSession, "text_of", lambda self, question: next(texts))
    code, events, _ = ran(
        capsys, "testsrc:seconds=1000000,size=32x32,fps=4", "--until", "is it there?"
    )
    answers = [event for event in events if event["event"] == "answer"]
    assert code == 0
    assert [answer["at"] for answer in answers] == [2, 4, 6]
    assert events[-1]["event"] == "summary"


def test_a_yes_that_is_not_probable_enough_does_not_end_the_run(capsys, monkeypatch):
    chances = iter([0.5, 0.5, 0.79, 0.79, 0.6, 0.6, 0.8, 0.8])
    monkeypatch.setattr(FakeSession, "text_of", lambda self, question: "yes")
    monkeypatch.setattr(FakeSession, "probability_of", lambda self, question: next(chances))
    code, events, err = ran(
        capsys, "testsrc:seconds=1000000,size=32x32,fps=4", "--until", "is it there?"
    )
    answers = [event for event in events if event["event"] == "answer"]
    assert code == 0
    assert [answer["at"] for answer in answers] == [2, 4, 6, 8]
    assert "3 times with a probability below 0.8, at most 0.79: --until-probability" in err


@pytest.mark.parametrize(("least", "code"), [("0.3", 0), ("0", 0), ("0.31", 1), ("1", 1)])
def test_until_probability_says_what_is_enough(capsys, monkeypatch, least, code):
    monkeypatch.setattr(FakeSession, "text_of", lambda self, question: "yes")
    monkeypatch.setattr(FakeSession, "probability_of", lambda self, question: 0.3)
    assert ran(capsys, CLIP, "--until", "is it there?", "--until-probability", least)[0] == code


@pytest.mark.parametrize("least", ["-0.1", "1.01", "nan", "inf"])
def test_until_probability_is_a_probability(capsys, least):
    code, _, err = ran(capsys, CLIP, "--until", "x", f"--until-probability={least}")
    assert (code, err.count("\n")) == (2, 1)
    assert "give 0 (any yes) to 1" in err


# ---- answers that mean little ----


def test_words_that_the_model_does_not_know_are_warned_of_once(capsys):
    words = f"was there a {UNKNOWN}?".replace("?", " ?")
    code, events, err = ran(capsys, CLIP, "--every", "2", words, "--ask", "was there a circle?")
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith(f"vicort-run: warning: the model does not know {UNKNOWN!r}, and reads ")
    (warning,) = (event for event in events if event["event"] == "warning")
    assert line == f"vicort-run: warning: {warning['message']}"


def test_a_guess_is_warned_of_once_for_each_question(capsys, monkeypatch):
    monkeypatch.setattr(
        FakeSession, "probability_of", lambda self, question: 0.2 if "way" in question.text else 0.9
    )
    code, events, err = ran(
        capsys, CLIP, "--every", "2", "which way?", "--every", "3", "what now?", "--ask", "way?"
    )
    assert code == 0
    assert [line.split(" to ")[1] for line in err.splitlines()] == [
        f"{words!r} is a guess: the model gave it a probability of 0.20"
        for words in ("which way?", "way?")
    ]
    assert sum(event["event"] == "warning" for event in events) == 2


def test_without_a_yes_the_exit_code_is_1(capsys, monkeypatch):
    monkeypatch.setattr(FakeSession, "text_of", lambda self, question: "no")
    assert ran(capsys, CLIP, "--until", "is it there?")[0] == 1


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("yes", True),
        (" Yes.", True),
        ('"yes"', True),
        ("yesterday", False),
        ("no, yes", False),
        ("", False),
    ],
)
def test_what_is_a_yes(text, yes):
    assert says_yes(text) is yes


@given(st.lists(st.fractions(0, 100), unique=True).map(sorted), st.fractions(Fraction(1, 10), 20))
def test_a_recurring_question_is_asked_once_a_period_at_most_and_never_late(times, period):
    asked: list[Question] = []

    def submit(question):
        asked.append(question)
        done: Future = Future()
        done.set_result(answered(question, "no"))
        return done

    each = RecurringAsker(RecurringQuestion(Question("what?", id="q"), period), submit, waits=True)
    for before, at in zip([Fraction(0), *times], times, strict=False):
        known = len(asked)
        each.advance(at)
        for question in asked[known:]:
            assert before <= question.at < at
            assert question.at % period == 0
    passed = {tick for tick in (period * k for k in range(1, 1001)) if times and tick < times[-1]}
    assert {question.at for question in asked} <= passed
    assert bool(asked) == bool(passed)
    assert len({question.at for question in asked}) == len(asked)


def test_a_live_stream_waits_for_no_answer_and_counts_what_it_leaves_out():
    open_answers: list[Future] = []

    def submit(question):
        open_answers.append(Future())
        return open_answers[-1]

    each = RecurringAsker(
        RecurringQuestion(Question("what?", id="q"), Fraction(1)), submit, waits=False
    )
    for at in range(1, 6):
        each.advance(Fraction(at) + Fraction(1, 2))
    assert (len(open_answers), each.skipped) == (1, 4)
    open_answers[0].set_result(answered(Question("what?"), "no"))
    each.advance(Fraction(13, 2))
    assert (len(open_answers), each.skipped) == (2, 4)


# ---- questions at changes of the scene ----


@pytest.mark.parametrize(("options", "settles"), [([], True), (["--on-lag", "drop-oldest"], False)])
def test_at_changes_asks_at_each_chunk_of_which_much_is_kept(capsys, options, settles):
    """Of each chunk of a fake session half is kept; the first one is no change."""
    asking = ["--system", "timechat-online", "--at-changes", "what now?", "--at-changes", "and?"]
    code, events, err = ran(capsys, CLIP, *asking, *options)
    (session,) = FakeSession.opened
    found = [(event["id"], event["at"]) for event in events if event["event"] == "answer"]
    times = [float(at) for at in session.times[1:]]
    assert code == 0
    assert found == [(f"change{number}@{at:g}", at) for at in times for number in (1, 2)]
    assert ("settle" in session.calls) is settles
    assert err.count("\n") == err.count("chunk of 16 frames is full: --system timechat-online") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--system", "full-history"], "system full-history keeps the same share of every chunk ("),
        (
            ["--set", "chunk.frames=2"],
            "keeps the same share of every chunk of 2 frames (drop chunk",
        ),
        (["--system", "timechat-online", "--set", "changes.kept=1"], "changes.kept"),
        (["--system", "timechat-online", "--set", "changes.apart=-1"], "changes.apart"),
    ],
)
def test_at_changes_refuses_systems_that_show_none_before_the_video_is_opened(capsys, options, why):
    code, _, err = ran(capsys, "nowhere.mp4", "--at-changes", "what now?", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert why in err
    assert not FakeSession.opened


def test_at_changes_needs_a_question(capsys):
    code, _, err = ran(capsys, CLIP, "--system", "timechat-online", "--at-changes", " ")
    assert (code, err.count("\n")) == (2, 1)
    assert "--at-changes ' ' contains no question" in err


# ---- typed questions ----


def test_questions_on_stdin_are_asked_as_they_come_and_after_the_end_until_it_is_closed(
    capsys, monkeypatch
):
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(reader))

    def type_slowly():
        with os.fdopen(writer, "w", buffering=1) as typing:
            typing.write("what now?\n")
            typing.write('{"at": 0.7, "question": "and then?", "id": "mine"}\n\n')
            typing.write("{broken\n")
            while not any("finish" in session.calls for session in FakeSession.opened):
                time.sleep(0.01)
            typing.write('{"question": "and in the end?"}\n')

    threading.Thread(target=type_slowly).start()
    code, events, err = ran(
        capsys, "testsrc:seconds=1,size=32x32,fps=4", "--realtime", "--questions", "-"
    )
    answers = {event["id"]: event for event in events if event["event"] == "answer"}
    assert code == 0
    assert {id: answer["question"] for id, answer in answers.items()} == {
        "t1": "what now?",
        "mine": "and then?",
        "t2": "and in the end?",
    }
    assert (answers["mine"]["at"], answers["t2"]["text"]) == (0.7, "2 frames")
    assert err.count("\n") == 1
    assert "stdin, line 4 is not JSON" in err


# ---- the socket ----


def router_of(*sources: str, answer=None) -> QuestionRouter:
    router = QuestionRouter(Sampling())

    def ask(question: Question) -> Future:
        if "forbidden" in question.text:
            raise QuestionError("too long: ask a shorter one")
        done: Future = Future()
        if answer is None:
            done.set_result(answered(question, f"{question.text} indeed"))
        else:
            answer(question, done)
        return done

    for source in sources:
        router.enter(source, ask)
    return router


def client(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(path))
    return connection


def told(path: Path, *lines: str | bytes) -> list[dict]:
    """What comes back for lines that are sent at once, until the server closes."""
    with client(path) as connection, connection.makefile("rb") as file:
        connection.sendall(
            b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        )
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in file]


def test_lines_go_in_and_answers_come_out(tmp_path):
    with QuestionSocket(tmp_path / "s", router_of("")):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        (answer,) = told(tmp_path / "s", '{"question": "what?", "id": "a", "at": 1.5}')
    assert (answer["event"], answer["id"], answer["at"], answer["text"]) == (
        "answer",
        "a",
        1.5,
        "what? indeed",
    )
    assert "source" not in answer
    assert not (tmp_path / "s").exists()


def test_what_cannot_be_asked_is_told_and_the_next_line_is_taken(tmp_path):
    bad = [
        '{"question": ""}',
        '{"question": "forbidden", "id": "b"}',
        '{"colour": 1}',
        b"{\xff",
        "{",
        '{"a":' * 10_000,
    ]
    with QuestionSocket(tmp_path / "s", router_of("")):
        *errors, answer = told(tmp_path / "s", *bad, "good")
    assert [error["event"] for error in errors] == ["error"] * len(bad)
    assert errors[1]["id"] == "b"
    assert answer["text"] == "good indeed"


def test_a_line_without_end_is_refused(tmp_path):
    with QuestionSocket(tmp_path / "s", router_of("")):
        (error,) = told(tmp_path / "s", b"x" * (MAX_LINE + 5))
    assert f"more than {MAX_LINE} bytes" in error["message"]


def test_with_several_sources_answers_say_whose_and_questions_may(tmp_path):
    with QuestionSocket(tmp_path / "s", router_of("a", "b")):
        both = told(tmp_path / "s", "what?")
        one = told(tmp_path / "s", '{"question": "what?", "source": "b"}')
        none = told(tmp_path / "s", '{"question": "what?", "source": "c"}')
    assert [answer["source"] for answer in both] == ["a", "b"]
    assert [answer["source"] for answer in one] == ["b"]
    assert "source 'c' is not running: the running sources are a, b" in none[0]["message"]


def test_one_who_does_not_read_holds_up_nobody(tmp_path):
    big = "w" * 50_000
    with QuestionSocket(tmp_path / "s", router_of("")), client(tmp_path / "s") as deaf:
        deaf.settimeout(1)
        with pytest.raises(OSError, match=r"timed out|Broken pipe|reset"):
            deaf.sendall((big.encode() + b"\n") * 200)  # more than any buffer holds
        assert told(tmp_path / "s", "what?")[0]["text"] == "what? indeed"


def keeping(waiting: list) -> QuestionRouter:
    """Of a stream that answers nothing by itself."""
    return router_of("", answer=lambda question, done: waiting.append((question, done)))


def until(truth) -> None:
    limit = time.monotonic() + 10
    while not truth():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_questions_of_one_who_leaves_are_given_up(tmp_path):
    waiting: list[tuple[Question, Future]] = []
    with QuestionSocket(tmp_path / "s", keeping(waiting)):
        with client(tmp_path / "s") as gone:
            gone.sendall(b'what?\n{"question": "later?", "at": 1e11}\n')
            until(lambda: len(waiting) == 2)
        until(lambda: all(done.cancelled() for _, done in waiting))


def test_one_who_asks_without_end_waits_and_the_others_do_not(tmp_path):
    waiting: list[tuple[Question, Future]] = []
    with QuestionSocket(tmp_path / "s", keeping(waiting)), client(tmp_path / "s") as flooding:
        flooding.sendall(b"more?\n" * 1000)
        until(lambda: len(waiting) == AT_ONCE)
        with client(tmp_path / "s") as other, other.makefile("rb") as file:
            other.sendall(b"mine?\n")
            until(lambda: len(waiting) == AT_ONCE + 1)
            question, done = waiting[-1]
            done.set_result(answered(question, "yours"))
            assert json.loads(file.readline())["text"] == "yours"
        assert len(waiting) == AT_ONCE + 1
        for question, done in waiting[:AT_ONCE]:
            done.set_result(answered(question, "yes"))
        until(lambda: len(waiting) == 2 * AT_ONCE + 1)


def test_questions_that_wait_for_their_time_are_bounded_and_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(socket_client, "WAITING_SECONDS", 1.0)
    waiting: list[tuple[Question, Future]] = []
    line = b'{"question": "later?", "at": 1e11, "id": "a"}\n'
    with (
        QuestionSocket(tmp_path / "s", keeping(waiting)),
        client(tmp_path / "s") as asker,
        asker.makefile("rb") as file,
    ):
        asker.sendall(line * (MAX_TIMED + 1))
        full = json.loads(file.readline())
        assert (full["event"], full["id"]) == ("error", "a")
        assert f"{MAX_TIMED} questions of this client wait" in full["message"]
        for _ in range(MAX_TIMED):
            forgotten = json.loads(file.readline())
            assert "did not come within 1 s" in forgotten["message"]
        assert all(done.cancelled() for _, done in waiting)
        asker.sendall(line)
        until(lambda: len(waiting) == MAX_TIMED + 1)


def test_one_who_asks_nothing_is_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr(socket_client, "IDLE_SECONDS", 0.5)
    with (
        QuestionSocket(tmp_path / "s", router_of("")),
        client(tmp_path / "s") as idle,
        idle.makefile("rb") as file,
    ):
        idle.sendall(b"half a li")
        assert "nothing was asked for 0.5 s" in json.loads(file.readline())["message"]
        assert file.readline() == b""


def test_one_who_is_idle_makes_room_for_a_new_client(tmp_path, monkeypatch):
    monkeypatch.setattr(question_socket, "SPARED_SECONDS", 0.2)
    with QuestionSocket(tmp_path / "s", router_of("")):
        crowd = [client(tmp_path / "s") for _ in range(MAX_CLIENTS)]
        time.sleep(0.3)
        assert told(tmp_path / "s", "what?")[0]["text"] == "what? indeed"
        for each in crowd:
            each.close()


def test_a_failure_to_accept_ends_nothing(tmp_path):
    """The process runs out of file descriptors, and gets some back."""
    with QuestionSocket(tmp_path / "s", router_of("")), client(tmp_path / "s") as before:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        late.settimeout(10)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        held = [os.dup(0) for _ in range(used)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
            late.connect(str(tmp_path / "s"))
            time.sleep(0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in held:
                os.close(each)
        for each in (late, before):
            with each, each.makefile("rb") as file:
                each.sendall(b"what?\n")
                assert json.loads(file.readline())["text"] == "what? indeed"
    assert not (tmp_path / "s").exists()


def test_no_more_clients_than_there_may_be(tmp_path):
    with QuestionSocket(tmp_path / "s", router_of("")):
        crowd = [client(tmp_path / "s") for _ in range(MAX_CLIENTS)]
        with client(tmp_path / "s") as late, late.makefile("rb") as file:
            assert f"{MAX_CLIENTS} clients are connected" in json.loads(file.readline())["message"]
        for each in crowd:
            each.close()


def test_a_dead_socket_is_replaced_and_a_served_one_is_not(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with QuestionSocket(tmp_path / "s", router_of("")):
        assert told(tmp_path / "s", "what?")
        with pytest.raises(ConfigError, match="is served by another process"):
            QuestionSocket(tmp_path / "s", router_of(""))
        assert told(tmp_path / "s", "what?")


def test_the_whole_tool_with_a_socket(capsys, tmp_path):
    found: list[dict] = []

    def ask_when_it_is_there():
        while (
            not (tmp_path / "s").exists()
            or not FakeSession.opened
            or not FakeSession.opened[0].times
        ):
            time.sleep(0.02)
        found.extend(told(tmp_path / "s", '{"question": "what now?", "id": "mine"}'))

    asker = threading.Thread(target=ask_when_it_is_there)
    asker.start()
    code, events, _ = ran(
        capsys, "testsrc:seconds=1,size=32x32,fps=4", "--realtime", "--serve-socket", tmp_path / "s"
    )
    asker.join()
    assert code == 0
    (printed,) = [event for event in events if event["event"] == "answer"]
    # each has the time of day at which it was written
    assert [printed | {"time": ""}] == [each | {"time": ""} for each in found]
    assert found[0]["id"] == "mine"


# ---- lag ----


def test_a_file_played_in_time_says_how_far_behind_it_was(capsys):
    code, events, _ = ran(
        capsys,
        "testsrc:seconds=1,size=32x32,fps=10",
        "--realtime",
        "--fps",
        "source",
        "--ask",
        "@0.5 what?",
    )
    realtime = events[-1]["realtime"]
    assert code == 0
    assert set(realtime["lag_ms"]) == set(realtime["capture_to_token_ms"]) == {"p50", "p95", "p99"}
    assert 0 <= realtime["lag_ms"]["p50"] < 100
    assert realtime["late"] == 0


def test_a_session_that_is_too_slow_is_late(capsys, monkeypatch):
    push = FakeSession.push
    monkeypatch.setattr(
        FakeSession, "push", lambda self, frame: (time.sleep(0.15), push(self, frame))
    )
    _, events, _ = ran(
        capsys, "testsrc:seconds=1,size=32x32,fps=10", "--realtime", "--fps", "source"
    )
    assert events[-1]["realtime"]["late"] >= 5
    assert events[-1]["realtime"]["lag_ms"]["p99"] > 400


def test_without_a_clock_to_compare_with_there_is_no_lag(capsys):
    assert "realtime" not in ran(capsys, CLIP)[1][-1]
