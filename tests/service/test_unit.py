"""The unit file: systemd reads it, and a run lives under what it forbids."""

import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vicort.runtime.cli.arguments import parse_options

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "service" / "vicort@.service"
SOURCE = ROOT / "tests" / "fixtures" / "shapes.mp4"
LOAD_FAILED = 77  # exit code of sandboxed.py

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")


def has_seccomp() -> bool:
    try:
        return bool(ctypes.CDLL("libseccomp.so.2"))
    except OSError:
        return False


def environment() -> dict[str, str]:
    lines = (ROOT / "service" / "front.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def command() -> list[str]:
    """ExecStart= as systemd expands it: ${NAME} is one word, $NAME is split as by a shell."""
    text = UNIT.read_text().replace("\\\n", " ")
    line = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)[1].replace("%i", "front")
    values = environment()
    words: list[str] = []
    for word in line.split():
        if word.startswith("$") and not word.startswith("${"):
            words += shlex.split(values[word[1:]])
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word))
    return words


def test_the_command_is_one_that_vicort_run_takes():
    program, *arguments = command()
    options = parse_options(arguments)
    assert program.endswith("/vicort-run")
    assert (options.live, options.format, options.success_on_sigterm) == (True, "jsonl", True)
    assert options.sources == ("rtsp://user:password@camera/1",)
    assert options.recurring[0].question.text == "what is there now?"


@needs_systemd
def test_systemd_verifies_the_unit_and_its_drop_ins(tmp_path):
    unit = tmp_path / "vicort@front.service"
    text = UNIT.read_text().replace("/opt/vicort/bin/vicort-run", sys.executable)
    unit.write_text(text)
    folder = tmp_path / "vicort@front.service.d"
    shutil.copytree(ROOT / "service" / "drop-ins", folder)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.skipif(not has_seccomp(), reason="no libseccomp here")
def test_a_run_lives_under_the_system_call_filter_without_rights_or_a_home(tiny_engines):
    sandbox = [sys.executable, Path(__file__).with_name("sandboxed.py"), UNIT]
    run = [sys.executable, "-m", "vicort.runtime.cli.run", SOURCE, "--engine-dir", tiny_engines]
    done = subprocess.run(
        [*sandbox, *run, "--ask", "what is there now?", "--format", "jsonl"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        umask=0o077,
        check=False,
    )
    if done.returncode == LOAD_FAILED:
        pytest.skip("this machine loads no system call filter")
    assert (done.returncode, done.stderr) == (0, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["answer", "summary"]
