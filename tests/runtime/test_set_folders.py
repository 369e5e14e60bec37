"""Only what vicort provably made is replaced or removed, and a set is there at every moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.runtime import set_folders, work_folders
from vicort.runtime.errors import ConfigError
from vicort.runtime.set_folders import check_replaceable, publish, remove_set, why_foreign
from vicort.runtime.work_folders import remove_abandoned, remove_work_folder, why_kept, work_folder


def write_set(folder: Path, text: str = "weights", files=("llm.bin", "llm.onnx")) -> Path:
    """What `vicort-build` leaves, as far as it matters here."""
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text(text)
    manifest = {
        "schema_version": 6,
        "backend": "openvino",
        "precision": "fp32",
        "model": {"name": "tiny"},
        "graphs": {},
        "files": {name: {"bytes": 1, "fingerprint": ""} for name in files},
        "versions": {"vicort": "0.1.0"},
        "build_command": "vicort-build tiny",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def tree(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else "other"
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(params=["one step", "two steps"])
def kernel(request, monkeypatch):
    """With and without the system call that exchanges two folders."""
    if request.param == "two steps":
        monkeypatch.setattr(set_folders, "_renameat2", lambda old, new, flag: False)


def foreign_link(folder: Path) -> None:
    folder.joinpath("llm.bin").unlink()
    folder.joinpath("llm.bin").symlink_to("/")


def foreign_folder(folder: Path) -> None:
    folder.joinpath("llm.bin").unlink()
    folder.joinpath("llm.bin").mkdir()


def changed_manifest(**changes):
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


FOREIGN = {
    "a file more": lambda folder: folder.joinpath("precious.txt").write_text("x"),
    "a hidden file more": lambda folder: folder.joinpath(".env").write_text("x"),
    "a folder more": lambda folder: folder.joinpath("src").mkdir(),
    "a link in the place of a file": foreign_link,
    "a folder in the place of a file": foreign_folder,
    "a pipe as manifest": lambda folder: (
        folder.joinpath("manifest.json").unlink(),
        os.mkfifo(folder / "manifest.json"),
    ),
    "a link as manifest": lambda folder: (
        folder.joinpath("manifest.json").rename(folder.parent / "elsewhere"),
        folder.joinpath("manifest.json").symlink_to(folder.parent / "elsewhere"),
    ),
    "a web app's manifest": lambda folder: folder.joinpath("manifest.json").write_text(
        '{"name": "my web app"}'
    ),
    "a manifest cut short": lambda folder: folder.joinpath("manifest.json").write_text("{"),
    "a list as manifest": lambda folder: folder.joinpath("manifest.json").write_text("[]"),
    "no files listed": changed_manifest(files={}),
    "files as a list": changed_manifest(files=["llm.bin", "llm.onnx"]),
    "another tool's command": changed_manifest(build_command="make"),
    "no schema": changed_manifest(schema_version="four"),
}


@pytest.mark.parametrize("spoil", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_with_anything_else_is_neither_replaced_nor_removed(spoil, kernel, tmp_path):
    folder = write_set(tmp_path / "out" / "set")
    built = write_set(tmp_path / "out" / "built", "new")
    spoil(folder)
    before = tree(tmp_path)
    for refused in (
        lambda: check_replaceable(folder),
        lambda: publish(built, folder),
        lambda: remove_set(folder),
    ):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert tree(tmp_path) == before


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=st.sets(names, max_size=4), there=st.sets(names, max_size=4))
@example(listed={"llm.bin"}, there={"llm.bin"})
@example(listed={"llm.bin"}, there=set())
@example(listed=set(), there={"calibration.json"})  # written after the build
def test_a_folder_is_ours_where_every_file_in_it_is_listed(listed, there, tmp_path_factory):
    folder = write_set(tmp_path_factory.mktemp("any") / "set", files=())
    changed_manifest(files={name: {} for name in listed})(folder)
    for name in there - {"manifest.json"}:
        (folder / name).write_text("x")
    ours = there - {"manifest.json", "calibration.json"} <= listed
    assert (why_foreign(folder) == "") == ours
    if ours:
        remove_set(folder)
    assert folder.exists() != ours


def test_a_link_to_a_set_is_named(tmp_path):
    write_set(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match=f"is a link to {tmp_path / 'real'}"):
        check_replaceable(tmp_path / "link")


def test_sets_of_any_version_and_damaged_ones_are_replaced(kernel, tmp_path):
    for change in (changed_manifest(schema_version=1), lambda f: (f / "llm.bin").unlink()):
        folder = tmp_path / "set"
        change(write_set(folder))
        publish(write_set(tmp_path / "built", "new"), folder)
        assert (folder / "llm.bin").read_text() == "new"
        shutil.rmtree(folder)


def test_an_empty_folder_and_nothing_are_replaced(kernel, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        publish(write_set(tmp_path / "built", "new"), tmp_path / name)
        assert (tmp_path / name / "llm.bin").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["empty", "missing"]


def test_many_builds_of_one_set_at_once_end_well(kernel, tmp_path):
    """Each moves its set there; what stands in the end is one of them, whole."""
    failures = []

    def build(number: int) -> None:
        try:
            for round_ in range(10):
                with work_folder(tmp_path) as work:
                    publish(write_set(work / "set", f"{number}-{round_}"), tmp_path / "out")
        except ConfigError as error:  # allowed where folders cannot be exchanged in one step
            failures.append(str(error))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["out"]
    assert why_foreign(tmp_path / "out") == ""
    assert len({(tmp_path / "out" / name).read_text() for name in ("llm.bin", "llm.onnx")}) == 1
    if set_folders._renameat2 is ORIGINAL:
        assert failures == []
    assert all("\n" not in line for line in failures)


ORIGINAL = set_folders._renameat2
BUILDS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_set_folders import write_set
from vicort.runtime import set_folders
from vicort.runtime.work_folders import work_folder
if {steps} == 2:
    set_folders._renameat2 = lambda old, new, flag: False
root, number = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    with work_folder(root) as work:
        set_folders.publish(write_set(work / "set", str(number)), root / "out")
"""


@pytest.mark.parametrize("steps", [1, 2])
def test_a_build_that_is_killed_at_any_moment_leaves_the_old_or_the_new_set(steps, tmp_path):
    """In two steps there may be none for a moment: the next build puts the old one back."""
    code = BUILDS.format(tests=str(Path(__file__).parent), steps=steps)
    write_set(tmp_path / "out")
    for milliseconds in (1, 3, 5, 7, 11, 13):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
        )
        child.stdout.readline()
        threading.Event().wait(milliseconds / 1000)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if steps == 2:
            remove_abandoned(tmp_path)
        assert why_foreign(tmp_path / "out") == ""
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"llm.bin", "llm.onnx"}
        with work_folder(tmp_path):
            pass
        for left in tmp_path.glob(".building-*"):  # killed before its builder could lock it
            assert [each.stat().st_size for each in left.iterdir()] in ([], [0])
            long_ago = time.time() - 2 * work_folders.STARTING
            os.utime(left, (long_ago, long_ago))
        with work_folder(tmp_path):
            pass
        assert os.listdir(tmp_path) == ["out"]


def test_a_set_that_was_moved_away_when_the_build_was_killed_is_put_back(tmp_path):
    folder = tmp_path / ".building-1-00000000"
    write_set(folder / "replaced" / "out", "old")
    (folder / "lock").write_text(work_folders.MARK)
    with work_folder(tmp_path):
        assert (tmp_path / "out" / "llm.bin").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_locked_is_kept_and_one_that_is_not_is_removed(tmp_path):
    with work_folder(tmp_path) as busy:
        assert why_kept(busy) == "a build is at work in it"
        assert not remove_work_folder(busy)
        remove_abandoned(tmp_path)
        assert (busy / "lock").exists()
    copy = tmp_path / ".building-1-0123abcd"  # the id of a process that is alive: it is no proof
    (copy / "set").mkdir(parents=True)
    (copy / "lock").write_text(work_folders.MARK)
    assert why_kept(copy) == ""
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "lock", ["none", "empty", "other", "link", "pipe", "folder"], ids="lock {}".format
)
def test_a_folder_of_such_a_name_without_a_builds_lock_is_never_removed(lock, tmp_path):
    folder = tmp_path / ".building-1-0123abcd"
    folder.mkdir()
    (folder / "precious.txt").write_text("x")
    match lock:
        case "empty":
            (folder / "lock").touch()
        case "other":
            (folder / "lock").write_text("mine")
        case "link":
            (tmp_path / "marked").write_text(work_folders.MARK)
            (folder / "lock").symlink_to(tmp_path / "marked")
        case "pipe":
            os.mkfifo(folder / "lock")
        case "folder":
            (folder / "lock").mkdir()
    with work_folder(tmp_path):
        pass
    assert (folder / "precious.txt").exists()
    assert "look at it" in why_kept(folder)


def test_a_link_of_such_a_name_is_not_followed(tmp_path):
    with work_folder(tmp_path / "real") as work:
        target = tmp_path / "kept"
        shutil.copytree(work, target)
    (tmp_path / ".building-1-0123abcd").symlink_to(target)
    remove_abandoned(tmp_path)
    assert (target / "lock").exists()


def test_parents_that_a_failed_build_made_are_gone_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    with work_folder(tmp_path / "there" / "a" / "b"):
        pass
    assert os.listdir(tmp_path / "there") == []
