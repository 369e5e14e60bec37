"""stdin, stdout and stderr: any encoding, closed ones, readers that leave, and how a run ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_session import FakeEngines, FakeSession
from support.processes import python

from vicort.runtime.cli import engine_list, info, run
from vicort.runtime.cli.questions import read_questions
from vicort.runtime.safe_text import lines_of, printable, without_controls

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
PATTERN = "testsrc:seconds=1,size=32x32,fps=4"
QUESTION = "圆形 é ☃ what is there now?"
RUN = "import sys; from vicort.runtime.cli.run import main; sys.exit(main())"


@pytest.fixture
def fake(monkeypatch):
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path(f"engines/{model}"))


def written(monkeypatch, encoding: str, main, *words: str) -> tuple[int, bytes, bytes]:
    """What a tool writes to streams that say that they have this encoding."""
    files = [io.BytesIO(), io.BytesIO()]
    for name, file in zip(("stdout", "stderr"), files, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding, "strict"))
    code = main(list(words))
    assert sys.stdout.encoding == encoding
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code, *[file.getvalue() for file in files]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-16", "shift_jis"])
@pytest.mark.parametrize("form", ["text", "jsonl", "srt", "vtt"])
def test_output_is_utf_8_whatever_the_terminal_says(fake, monkeypatch, encoding, form):
    code, out, err = written(
        monkeypatch,
        encoding,
        run.main,
        PATTERN,
        *("--ask", QUESTION, "--format", form, "--engine-dir", "engines/other"),
    )
    assert (code, err) == (0, b"")
    assert QUESTION in out.decode()
    if form == "jsonl":
        answers = [e for e in map(json.loads, lines_of(out.decode())[:-1]) if "text" in e]
        assert [each["question"] for each in answers] == [QUESTION]


def test_warnings_and_errors_are_utf_8_too(fake, monkeypatch):
    code, _, err = written(monkeypatch, "ascii", run.main, "圆.mp4")
    assert (code, "圆.mp4" in err.decode()) == (2, True)
    assert written(monkeypatch, "ascii", info.main, "圆")[2].decode().startswith("vicort-info: ")
    assert b"Traceback" not in written(monkeypatch, "ascii", engine_list.main, "show", "圆")[2]


# ---- questions files ----

BREAKS = "\u2028\u2029\x85\v\f\x1c\x1d\x1e"


@given(st.lists(st.text(st.sampled_from("ab圆 " + BREAKS), min_size=1), min_size=1, max_size=5))
def test_only_line_feeds_end_a_line_of_a_questions_file(tmp_path_factory, texts):
    texts = [f"q{text}q" for text in texts]
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    for end, start in (("\n", ""), ("\r\n", "\ufeff")):
        lines = [json.dumps({"question": text}, ensure_ascii=False) for text in texts]
        # control characters are escaped in JSON; the others may stand there as they are
        path.write_bytes((start + end.join(lines) + end).encode())
        assert [each.text for each in read_questions(path)] == texts


@pytest.mark.parametrize("sign", BREAKS + "\r")
def test_a_typed_question_keeps_its_line_breaks_of_other_kinds(fake, monkeypatch, sign, capsys):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(f"\ufeffwhat{sign}now?\r\n".encode() + b"\xff\xfe\n" + b"and then?")
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    code = run.main([PATTERN, "--questions", "-", "--format", "jsonl"])
    out, err = capsys.readouterr()
    asked = [event["question"] for event in map(json.loads, lines_of(out)[:-1]) if "text" in event]
    assert (code, sorted(asked)) == (0, sorted([f"what{sign}now?", "and then?"]))
    assert "line 2 is not UTF-8" in err


# ---- what terminals obey ----


@given(st.text())
def test_what_is_printed_moves_no_cursor_and_turns_no_text(text):
    turned = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    for shown in (printable(text), without_controls(text)):
        assert not set(shown) & set(turned)
        assert not [s for s in shown if (s < " " and s not in "\n\t") or "\x7f" <= s < "\xa0"]
        shown.encode()
    assert "\n" not in printable(text)
    whole = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(without_controls(whole)) == {"a": text}


# ---- how a run ends ----


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", RUN, *map(str, words)]


@pytest.mark.parametrize(
    ("shell", "codes", "said"),
    [
        ('"$@" >&-', {0}, "stdout is closed"),
        ('"$@" 2>&-', {0}, ""),
        ('"$@" <&- >&- 2>&-', {0}, ""),
        ('"$@" --format jsonl --stats | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}', {0, 141}, ""),
        ('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', {0, 141}, ""),
        ('"$@" >/dev/full', {2}, "No space left"),
    ],
)
def test_closed_streams_and_readers_that_leave(tiny_engines, shell, codes, said):
    words = command(PATTERN, "--ask", "what is there now?", "--engine-dir", tiny_engines)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode in codes
    assert said in done.stderr
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "source"), [(signal.SIGINT, CLIP), (signal.SIGTERM, "testsrc:fps=10")]
)
def test_a_signal_ends_a_run_that_waits_for_stdin(tiny_engines, number, source):
    """stdin is open from the start, and nothing comes."""
    words = [source, "--realtime", "--questions", "-", "--format", "jsonl", "--stats"]
    waiting, typing = os.pipe()
    process = subprocess.Popen(
        command(*words, "--engine-dir", tiny_engines),
        stdin=waiting,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline()
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    os.close(typing)
    os.close(waiting)
    assert (process.returncode, err) == (128 + number, b"")
    assert time.monotonic() - began < 4  # usually a third of a second


def test_a_run_whose_stdin_stays_open_and_silent_ends_after_the_video(tiny_engines):
    waiting, typing = os.pipe()
    words = (PATTERN, "--questions", "-", "--engine-dir", tiny_engines)
    with os.fdopen(waiting, "rb") as reader:
        done = subprocess.run(command(*words), stdin=reader, capture_output=True, timeout=60)
    os.close(typing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_handler_of_ours_survives_a_fork(tiny_engines):
    """A child that another library forks during a run ends at SIGTERM as any program does."""
    code = f"""
import os, signal, sys
from vicort.runtime.cli import run
import vicort.runtime.cli.watch as watch
feed = watch.Watch._feed
def forking(self, session):
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
        os._exit(9)
    sys.stderr.write(f"child {{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}}\\n")
    return feed(self, session)
watch.Watch._feed = forking
sys.exit(run.main([{PATTERN!r}, "--engine-dir", {str(tiny_engines)!r}]))
"""
    process = python("-c", code, text=True)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, f"child {-signal.SIGTERM}\n")
