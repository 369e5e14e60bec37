"""Files that vicort writes: whole or not at all, and nothing but regular files is replaced."""

import os
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from vicort.runtime.devices.trace import Trace
from vicort.runtime.errors import ConfigError
from vicort.runtime.written_files import appended, check_target, new_file, write_file


def make(kind: str, path: Path) -> None:
    match kind:
        case "link to a file":
            (path.parent / "victim").write_text("precious")
            path.symlink_to(path.parent / "victim")
        case "dangling link":
            path.symlink_to(path.parent / "not there")
        case "link to a folder":
            (path.parent / "folder").mkdir()
            path.symlink_to(path.parent / "folder")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))


KINDS = ("link to a file", "dangling link", "link to a folder", "folder", "fifo", "socket")


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """Every name with its kind, and its content or target."""
    found = {}
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        text = os.readlink(path) if stat.S_ISLNK(mode) else ""
        found[path.name] = (mode, path.read_text() if stat.S_ISREG(mode) else text)
    return found


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_before_and_after_and_stays(kind, tmp_path):
    make(kind, tmp_path / "out")
    before = state(tmp_path)
    for write in (check_target, lambda path, option: write_file(path, "new", option)):
        with pytest.raises(ConfigError, match=r"^--out .*out cannot be written \(it is a ") as got:
            write(tmp_path / "out", "--out")
        assert "\n" not in str(got.value)
        assert state(tmp_path) == before
    with pytest.raises(ConfigError), appended(tmp_path / "out") as file:
        file.write(b"more")
    assert state(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_to_lie_there_meanwhile_stays(kind, tmp_path):
    writing = new_file(tmp_path / "out")
    writing.__enter__().write(b"new")
    make(kind, tmp_path / "out")
    before = {name: it for name, it in state(tmp_path).items() if not name.startswith(".")}
    with pytest.raises(ConfigError):
        writing.__exit__(None, None, None)
    assert state(tmp_path) == before


def test_no_planted_name_is_written_through(tmp_path):
    """Names that a stranger could guess in a folder of everybody's."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (
        "out.part",
        "out.partial",
        "out.tmp",
        f"out.{os.getpid()}",
        f"out.{os.getpid()}.tmp",
    ):
        (tmp_path / name).symlink_to(victim)
    write_file(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "new"
    assert victim.read_text() == "precious"


def test_two_writes_never_use_the_same_temporary_name(tmp_path):
    seen = set()
    for _ in range(20):
        with new_file(tmp_path / "out") as file:
            file.write(b"x")
            (name,) = [path.name for path in tmp_path.iterdir() if path.name != "out"]
        seen.add(name)
    assert len(seen) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_the_file_before_or_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "new", "x")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o640)
        write_file(tmp_path / "old", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def test_what_fails_leaves_the_file_before(tmp_path):
    write_file(tmp_path / "out", "old")
    with suppress(KeyError), new_file(tmp_path / "out") as file:
        file.write(b"half")
        raise KeyError
    with pytest.raises(ConfigError, match="No space left"), new_file(tmp_path / "out") as file:
        raise OSError(28, "No space left on device")
    assert state(tmp_path) == {"out": ((tmp_path / "out").stat().st_mode, "old")}


@pytest.mark.parametrize(
    "path", ["missing/out", "out/", ".", "..", "file/out", "/proc/out", "a" * 300], ids=str
)
def test_an_impossible_place_is_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if path == "out/":
        (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"^--trace .* cannot be written") as got:
        check_target(path, "--trace")
    assert "\n" not in str(got.value)


def test_a_trace_is_such_a_file(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    trace = Trace()
    trace.span("vision", "chunk 0", 0, 5)
    with pytest.raises(ConfigError, match="symbolic link"):
        trace.write(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"
    trace.write(tmp_path / "new")
    assert "chunk 0" in (tmp_path / "new").read_text()


def test_text_is_utf_8_and_appended_lines_stay(tmp_path):
    write_file(tmp_path / "out", "圆\n")
    with appended(tmp_path / "out") as file:
        file.write(b"more\n")
    assert (tmp_path / "out").read_bytes() == "圆\nmore\n".encode()


def test_what_ends_the_process_at_once_leaves_no_partial_file(tmp_path: Path) -> None:
    """A signal does so where a library does not return: `TimelyEnd`."""
    program = """
import os, sys
from vicort.runtime.entry_points import BEFORE_LEAVING
from vicort.runtime.written_files import new_file, write_file
write_file(sys.argv[1] + "/whole", "kept")
assert not BEFORE_LEAVING
with new_file(sys.argv[1] + "/half") as file:
    file.write(b"half")
    for act in BEFORE_LEAVING:
        act()
    os._exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert ended.returncode == 7
    assert os.listdir(tmp_path) == ["whole"]
