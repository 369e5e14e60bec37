"""Commands that are started for each event."""

import json
import os
import time
from pathlib import Path

import pytest
from support.alert_messages import Said, count, delivering, message
from support.receivers import until

from vicort.runtime.errors import ConfigError


def script(folder: Path, text: str) -> str:
    path = folder / "notify.sh"
    path.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
    path.chmod(0o700)
    return str(path)


def delivered(folder, text, *messages, warn=None, **keys):
    """The state of the target after they were delivered or given up."""
    target = {"command": script(folder, text), **keys}
    with delivering(folder, target, warn=warn) as delivery:
        for each in messages:
            delivery.send(each)
        until(lambda: count(delivery, "waiting") == 0)
        return next(iter(delivery.state()["targets"].values()))


def test_it_gets_the_event_the_picture_and_little_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "geheim")
    monkeypatch.setenv("CHAT_TOKEN", "for the command")
    text = 'cat > event.json; env > env; cp "$VICORT_PICTURE" a.jpg; echo "$VICORT_PICTURE" > path'
    sent = message(3, b"jpeg", "cleared", text="ä")
    delivered(folder, text, sent, environment=["CHAT_TOKEN"])
    assert json.loads((folder / "event.json").read_text()) == sent.document()
    assert (folder / "a.jpg").read_bytes() == b"jpeg"
    assert not Path((folder / "path").read_text().strip()).exists()
    lines = (folder / "env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert environment["CHAT_TOKEN"] == "for the command"
    assert environment["PATH"] == os.environ["PATH"]
    named = {name: value for name, value in environment.items() if name.startswith("VICORT_")}
    del named["VICORT_PICTURE"]
    assert named == {
        "VICORT_KEY": "key-3",
        "VICORT_ALERT": "parcel",
        "VICORT_STREAM": "front",
        "VICORT_STATE": "cleared",
    }
    assert "HOOK_SECRET" not in environment


def test_no_shell_reads_the_arguments(folder):
    program = script(folder, 'echo "$#:$1" > got; cat > /dev/null')
    with delivering(folder, {"command": [program, "a; touch $HOME `x`"]}) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"))
    assert (folder / "got").read_text() == "1:a; touch $HOME `x`\n"


def test_another_exit_code_is_a_failed_try(folder):
    text = "echo x >> tries; echo no network >&2; test $(wc -l < tries) -gt 3 || exit 7"
    state = delivered(folder, text, message(0), warn=(warn := Said()))
    assert (state["delivered"], state["failed_tries"]) == (1, 3)
    assert state["last_error"] == "exit code 7: no network"
    assert ["not reached (exit code 7" in line for line in warn] == [True]


def test_exit_code_65_gives_a_message_up(folder):
    text = 'echo x >> tries; test "$VICORT_KEY" != key-0 || exit 65'
    state = delivered(folder, text, message(0), message(1))
    assert (state["delivered"], state["refused"], state["failed_tries"]) == (1, 1, 1)
    assert (folder / "tries").read_text() == "x\nx\n"


def test_one_that_takes_too_long_is_killed_with_what_it_started(folder):
    text = "test ! -e pid || exit 0; sleep 60 & echo $! > pid; wait"
    state = delivered(folder, text, message(0), timeout="300ms")
    assert state["last_error"] == "it was killed after 0.3 s"
    child = int((folder / "pid").read_text())

    def gone():
        try:
            return "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True

    until(gone, 5)


def test_what_it_starts_and_leaves_is_not_waited_for(folder):
    began = time.monotonic()
    state = delivered(folder, "sleep 5 & echo started", message(0))
    assert state["delivered"] == 1
    assert time.monotonic() - began < 4


def test_output_without_an_end_is_dropped_and_an_event_that_is_not_read_is_no_failure(
    folder, caplog
):
    caplog.set_level("INFO", "vicort")
    state = delivered(folder, "yes geheim | head -c 3000000", message(0, text="x" * 300_000))
    assert (state["delivered"], state["failed_tries"]) == (1, 0)
    (line,) = [each.getMessage() for each in caplog.records if "printed" in each.getMessage()]
    assert 4096 < len(line) < 10_000


def test_a_program_that_is_missing_is_warned_about_and_tried_again(folder):
    path = folder / "notify.sh"
    with delivering(folder, {"command": str(path)}, warn=(warn := Said())) as delivery:
        delivery.send(message(0))
        until(lambda: warn)
        assert "notify.sh is no program that can be started" in warn[0]
        script(folder, "exit 0")
        until(lambda: count(delivery, "delivered"))


def test_a_variable_that_is_missing_is_refused_at_the_start(folder):
    target = {"command": "true", "environment": ["NOT_THERE"]}
    with (
        pytest.raises(ConfigError, match=r"command true: environment names .* NOT_THERE, which"),
        delivering(folder, target, environment={}),
    ):
        pass
