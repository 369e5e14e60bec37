"""--verbose, --log-level and logging.getLogger("vicort"): what the library tells, and to whom."""

import json
import logging
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vicort.export import build
from vicort.runtime.cli import run
from vicort.runtime.log_options import LEVELS, log_to_stderr
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
WORDS = ("--ask", "@4 what is there now?", "--format", "jsonl", "--stats")


@pytest.fixture
def watch(tiny_engines, capsys):
    """Runs vicort-run; returns the events without their times, and stderr."""

    def go(*options):
        command = [str(CLIP), "--engine-dir", str(tiny_engines), *WORDS, *options]
        assert run.main(command) == 0
        out, err = capsys.readouterr()
        events = [json.loads(line) for line in out.splitlines()]
        return [(event["event"], event.get("text"), event.get("kept")) for event in events], err

    return go


def test_a_run_tells_nothing_unless_it_is_asked(watch, tiny_engines):
    quiet, err = watch()
    assert err == ""
    events, err = watch("--verbose")
    assert sorted(events, key=str) == sorted(quiet, key=str)  # stages overlap
    assert f"INFO vicort.runtime.engines.engine_set: loaded {tiny_engines}/vision.onnx in " in err
    assert "INFO vicort.runtime.assembly: system distinct: --memory " in err
    assert f"{CLIP}: stream 0, 320x240 of 25.0 frames a second, h264" in err
    assert "DEBUG" not in err
    assert watch("--log-level", "info")[1].count("\n") == err.count("\n")


def test_debug_tells_chunk_times_and_what_a_question_reads(watch):
    events, err = watch("--log-level", "debug")
    chunks = [event for event in events if event[0] == "chunk"]
    lines = [line for line in err.splitlines() if " DEBUG " in line]
    for index, (_, _, kept) in enumerate(chunks):
        (line,) = (line for line in lines if f": chunk {index}: " in line)
        assert f" {kept} of " in line
        for stage in ("preprocess", "vision", "tokens", "prefill"):
            assert [line for line in lines if f": {stage} took " in line and str(index) in line]
    (line,) = (line for line in lines if "reads units" in line)
    read = (
        "question q1 reads units [0, 1, 2, 3, 4] of 0 chunks in memory and one that is being filled"
    )
    assert line.endswith(read)


def test_what_a_tool_configures_ends_with_it(watch):
    watch("--verbose")
    logger = logging.getLogger("vicort")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


def test_one_of_both_options(capsys):
    assert run.main(["clip.mp4", "--verbose", "--log-level", "debug"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert LEVELS == ("debug", "info")
    for level in ("loud", "warning", "error"):  # nothing is logged on the last two
        assert run.main(["clip.mp4", "--log-level", level]) == 2
        err = capsys.readouterr().err
        assert f"'{level}'" in err
        assert all(allowed in err for allowed in LEVELS)


def test_the_log_shows_no_password(capsys):
    with log_to_stderr("info"):
        logging.getLogger("vicort.x").info("opened %s", "rtsp://me:secret@camera/1")
    err = capsys.readouterr().err
    assert "camera/1" in err
    assert "secret" not in err


def test_python_gets_the_same_through_logging(tiny_engines, caplog):
    caplog.set_level(logging.DEBUG, "vicort")
    with Session.open(tiny_engines) as session:
        for frame in open_source(str(CLIP)).frames(session.wants):
            session.push(frame)
        session.finish()
    logged = {(record.name.split(".")[2], record.levelname) for record in caplog.records}
    assert {("engines", "INFO"), ("assembly", "INFO"), ("event_emitter", "DEBUG")} <= logged


def test_importing_vicort_configures_no_logging():
    code = (
        "import logging; from vicort.runtime import Session, open_source; import "
        "vicort.runtime.cli.run; Session, open_source; names = ['vicort', *(name for name in "
        "logging.root.manager.loggerDict if name.startswith('vicort.'))]; loggers = "
        "[logging.getLogger(name) for name in names]; assert len(loggers) > 5; assert not "
        "[each for each in loggers if each.handlers or each.level or not each.propagate]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_build_tells_sizes(build_tiny, capsys):
    folder = build_tiny("openvino")
    command = ["tiny", "--backend", "openvino", "--out", str(folder)]
    assert build.main(command) == 0
    quiet = capsys.readouterr().err
    assert build.main([*command, "--verbose"]) == 0
    err = capsys.readouterr().err
    assert "frames of 112x112, chunks of 16 frames, pages of 4 tokens, fp32" in err
    assert [line for line in err.splitlines() if " INFO " not in line] == quiet.splitlines()


def test_times_of_the_log_are_utc_as_those_of_events(capsys, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with log_to_stderr("info"):
            logging.getLogger("vicort.test").info("a line")
    finally:
        monkeypatch.undo()
        time.tzset()
    when, level, *_ = capsys.readouterr().err.split()
    assert level == "INFO"
    age = datetime.now(UTC) - datetime.fromisoformat(when)
    assert timedelta(0) <= age < timedelta(minutes=10)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
