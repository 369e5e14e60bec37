"""The fuzz run itself, for a few seconds: nothing that it tries may end otherwise than answered or
refused."""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, fuzz_child
from fuzzing.fuzz_files import WAYS, Good, spoiled

from vicort.runtime.errors import ConfigError

TESTS = Path(__file__).parents[1]


def test_some_spoiled_files() -> None:
    command = [
        sys.executable,
        "-m",
        "fuzzing.fuzz",
        "--seed",
        "1",
        "--files",
        "40",
        "--seconds",
        "120",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("seed 1: 40 files", "answered", "refused"):
        assert part in done.stdout


@pytest.mark.slow
def test_some_thousand_spoiled_files() -> None:
    command = [sys.executable, "-m", "fuzzing.fuzz", "--seed", "4", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_file_i_of_a_seed_is_always_the_same() -> None:
    once, again = (
        spoiled(bytes(range(256)) * 8, np.random.default_rng((7, 3)), "video") for _ in range(2)
    )
    assert once == again
    assert once != spoiled(bytes(range(256)) * 8, np.random.default_rng((7, 4)), "video")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_way_spoils(way) -> None:
    content = bytes(range(256)) * 16
    assert any(way(content, np.random.default_rng(seed)) != content for seed in range(4))


def crash() -> None:
    faulthandler.disable()  # it would report this one in the suite's output
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (lambda path: "well", "answered"),
        (lambda path: (_ for _ in ()).throw(ConfigError("a value: what is allowed")), "refused"),
        (lambda path: (_ for _ in ()).throw(ConfigError("two\nlines")), "traceback"),
        (lambda path: 1 / 0, "traceback"),
        (lambda path: os.write(2, b"Traceback (most recent call last)"), "traceback"),
        (lambda path: crash(), "crash"),
        (lambda path: signal.pause(), "hang"),
        (lambda path: len(b"x" * 400_000_000), "memory"),
    ],
    ids=["answered", "refused", "two lines", "exception", "printed", "signal", "endless", "large"],
)
def test_how_a_file_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader, kind: str
) -> None:
    monkeypatch.setitem(fuzz_child.READERS, "system", reader)
    most = 300_000_000 if kind == "memory" else 10**12
    outcome = fuzz_child.tried(tmp_path / "file", "system", seconds=2, max_bytes=most)
    assert (outcome.kind, outcome.bad) == (kind, kind not in ("answered", "refused"))


def test_what_the_program_holds_itself_is_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = np.ones(500_000_000, np.uint8)
    monkeypatch.setitem(fuzz_child.READERS, "system", lambda path: f"{held[0]}")
    outcome = fuzz_child.tried(tmp_path / "file", "system", seconds=20, max_bytes=200_000_000)
    assert (outcome.kind, outcome.detail) == ("answered", "1")


def test_a_fault_fails_the_run_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        fuzz, "good_files", lambda room, engines: ([Good("a.yaml", "system", b"name: a")], [])
    )
    monkeypatch.setitem(fuzz_child.READERS, "system", lambda path: 1 / 0)
    assert fuzz.main(["--files", "2", "--keep", str(tmp_path / "kept")]) == 1
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert "ZeroDivisionError" in capsys.readouterr().out
