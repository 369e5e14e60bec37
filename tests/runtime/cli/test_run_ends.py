"""Signals and pipes that end vicort-run: in a process of its own, with a session that is a fake."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.processes import python
from support.sizes import slow

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.fake_session import FakeEngines, FakeSession
from vicort.runtime.cli import run
run.Session, run.find_engine_dir = FakeSession, lambda model: Path("engines")
run.EngineSet = FakeEngines
sys.exit(run.main(sys.argv[1:]))
"""
ALERTS = """
streams: {{front: {{}}}}
evidence: {folder}/evidence
alerts: [{{name: circle, question: "is it a circle?", notify: [{{jsonl: {folder}/a.jsonl}}]}}]
"""


def started(*arguments: str, **options: Any) -> subprocess.Popen:
    code = DRIVER.format(tests=str(Path(__file__).parents[2]))
    return python("-c", code, *arguments, **options)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"]
)
def test_a_run_that_is_ended_flushes_what_there_is(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    trace, room = tmp_path / "trace.json", Path(tempfile.mkdtemp())  # a socket's name must be short
    slow = (
        "testsrc:seconds=600,size=32x32,fps=4",
        "--realtime",
        "--format",
        "jsonl",
        "--stats",
        "--trace",
        str(trace),
    )
    process = started(
        *slow, "--ask", "@0.1 early", "--ask", "never", "--serve-socket", str(room / "s")
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]  # it is well under way
    process.send_signal(how)
    rest, err = process.communicate(timeout=20)
    found = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert (process.returncode, err) == (code, b"")
    room.rmdir()  # the socket is gone
    assert [event["event"] for event in found[:4]] == ["memory", "chunk", "answer", "chunk"]
    assert found[-1]["event"] == "summary"
    assert found[-1]["frames"] == sum(event["event"] == "chunk" for event in found)
    assert all(event.get("question") != "never" for event in found)
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("how", "options", "code"),
    [
        (signal.SIGINT, (), 130),
        (signal.SIGTERM, (), 143),
        (signal.SIGTERM, ("--success-on-sigterm",), 0),
    ],
)
def test_a_program_that_is_ended_does_not_wait_for_the_ends_of_libraries(
    how: signal.Signals, options: tuple[str, ...], code: int
) -> None:
    driver = DRIVER.format(tests=str(Path(__file__).parents[2]))
    slow = "import atexit, time\natexit.register(time.sleep, 60)\n"
    process = python(
        *("-c", slow + driver.replace("main(sys.argv[1:])", "main()"), *options),
        *("testsrc:seconds=600,size=32x32,fps=4", "--realtime", "--format", "jsonl", "--stats"),
    )
    assert process.stdout is not None
    for _ in range(2):  # it is under way
        process.stdout.readline()
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, b"")
    assert json.loads(out.splitlines()[-1])["event"] == "summary"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), *slow((signal.SIGINT, 130))])
def test_a_run_that_is_ended_says_what_was_delivered(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(ALERTS.format(folder=tmp_path))
    driver = "from vicort.runtime.cli import alert_run\n" + DRIVER.replace(
        "sys.exit", "alert_run.AlertSession = FakeSession\nsys.exit"
    )
    process = python(
        *("-c", driver.format(tests=str(Path(__file__).parents[2])), "--alerts", str(file)),
        *("testsrc:seconds=600,size=32x32,fps=4", "--realtime", "--deliver"),
        *("--format", "jsonl", "--stats"),
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]  # it is under way
    process.send_signal(how)
    rest, err = process.communicate(timeout=20)
    found = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert (process.returncode, err) == (code, b"")
    assert [event["event"] for event in found[-2:]] == ["summary", "delivery"]
    (target,) = found[-1]["state"]["targets"].values()
    assert (target["delivered"], target["waiting"]) == (0, 0)


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = started(
        "testsrc:seconds=600,size=32x32,fps=25", "--fps", "source", "--format", "jsonl", "--stats"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"]
)
def test_each_of_several_sources_that_are_ended_has_its_summary(
    how: signal.Signals, code: int
) -> None:
    sources = [f"testsrc:seconds=600,size=32x32,fps={fps}" for fps in (4, 8)]
    process = started(*sources, "--realtime", "--format", "jsonl", "--stats")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    process.send_signal(how)
    rest, err = process.communicate(timeout=20)
    found = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert (process.returncode, err) == (code, b"")
    assert {event["source"] for event in found if event["event"] == "summary"} == set(sources)


def test_a_service_ends_well_on_sigterm_and_tells_systemd_how_it_goes(tmp_path: Path) -> None:
    room = Path(tempfile.mkdtemp())  # a socket's name must be short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(room / "n"))
        manager.settimeout(20)
        sources = [f"testsrc:seconds=600,size=32x32,fps={fps}" for fps in (4, 8)]
        process = started(
            *(*sources, "--realtime", "--format", "jsonl", "--success-on-sigterm"),
            environment={"NOTIFY_SOCKET": str(room / "n")},
        )
        said = [manager.recv(4096).decode() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        said.append(manager.recv(4096).decode())
    assert (process.returncode, err) == (0, b"")
    assert out.count(b'"event": "summary"') == 2
    assert said.count("READY=1") == 2
    assert re.search("STATUS=1 frames taken; the newest of testsrc:.* is of 0.0 s", str(said))
    assert said[-1] == "STOPPING=1"


def test_a_reader_that_goes_away_ends_several_sources_quietly() -> None:
    sources = [f"testsrc:seconds=600,size=32x32,fps={fps}" for fps in (24, 25)]
    process = started(*sources, "--fps", "source", "--format", "jsonl", "--stats")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_said() -> None:
    code = DRIVER.format(tests=str(Path(__file__).parents[2]))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "testsrc:seconds=1", "--engine-dir", "engines"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"vicort-run: events cannot be written (No space left on device)")
    assert done.stderr.count(b"\n") == 1
