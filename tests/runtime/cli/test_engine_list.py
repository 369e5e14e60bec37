"""vicort-engines, and what vicort-run says about engine sets of another version."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.fake_session import FakeEngines, FakeSession

from vicort.export.exporter_version import exporter_hash
from vicort.runtime import work_folders
from vicort.runtime.cli import engine_inspection, engine_list, info, other_versions, run
from vicort.runtime.manifest import SCHEMA_VERSION, read_manifest

CLIP = str(Path(__file__).parents[2] / "fixtures" / "shapes.mp4")


def changed(folder, **changes):
    """Changes the manifest of a set; its files stay."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def root(tiny_engines, tmp_path, monkeypatch):
    """An engines folder with a set that runs, and whatever else may lie there."""
    root = tmp_path / "engines"
    shutil.copytree(tiny_engines, root / "good")
    monkeypatch.setattr(engine_list, "engines_root", lambda: root)
    monkeypatch.setattr(other_versions, "engines_root", lambda: root)
    return root


@pytest.fixture
def old(root):
    """A set of another version."""
    shutil.copytree(root / "good", root / "old")
    changed(root / "old", schema_version=1)
    return root / "old"


@pytest.fixture
def strangers(root):
    """What is no engine set."""
    (root / "README.md").write_text("# engines\n")
    (root / "photos").mkdir()
    (root / "photos" / "manifest.json").write_text('{"name": "photos", "schema_version": 1}')
    (root / "broken").mkdir()
    (root / "broken" / "manifest.json").write_text("{")
    (root / "empty").mkdir()
    return [root / name for name in ("README.md", "photos", "broken", "empty")]


def listed(capsys):
    assert engine_list.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {each["name"]: each for each in found["sets"]}, found["leftovers"]


def test_it_lists_sets_with_sizes_and_whether_they_run(root, old, strangers, capsys):
    sets, leftovers = listed(capsys)
    assert (sorted(sets), leftovers) == (["good", "old"], [])
    good = sets["good"]
    assert (good["model"], good["backend"], good["precision"]) == ("tiny", "onnxruntime", "fp32")
    assert good["bytes"] == sum(path.stat().st_size for path in (root / "good").iterdir())
    assert (good["readable"], good["runs"], good["reason"]) == (True, True, "")
    assert (sets["old"]["readable"], sets["old"]["runs"]) == (False, False)
    assert f"has schema version 1, this vicort reads {SCHEMA_VERSION}" in sets["old"]["reason"]
    assert engine_list.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "  good\n    tiny, fp32, onnxruntime; " in out
    assert "    does not run: " in out
    assert "photos" not in out


def test_the_number_formats_of_weights_and_pages_are_named(root, old, capsys):
    changed(root / "good", weights="int4", kv="int8")
    manifest = json.loads((old / "manifest.json").read_text())
    for key in ("weights", "kv"):  # as versions before had them
        del manifest[key]
    (old / "manifest.json").write_text(json.dumps(manifest))
    sets, _ = listed(capsys)
    assert [(each["weights"], each["kv"]) for each in (sets["good"], sets["old"])] == [
        ("int4", "int8"),
        (None, "float"),
    ]
    assert engine_list.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "    tiny, fp32, weights in int4, keys and values in int8, onnxruntime; " in out
    assert "    tiny, fp32, onnxruntime; " in out


def test_a_set_that_needs_what_is_missing_here_is_kept(root, monkeypatch, capsys):
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    found = listed(capsys)[0]["good"]
    assert (found["readable"], found["runs"]) == (True, False)
    assert found["reason"] == "onnxruntime is not installed"
    assert engine_list.main(["prune", "--yes"]) == 0
    assert (root / "good").is_dir()
    assert engine_list.main(["prune", "--yes", "--here"]) == 0
    assert not (root / "good").exists()


def test_a_set_for_a_gpu_where_there_is_none(root, monkeypatch, capsys):
    changed(root / "good", backend="tensorrt", flavour="tensorrt")
    monkeypatch.setattr(engine_inspection, "has_nvidia_driver", lambda: False)
    assert listed(capsys)[0]["good"]["reason"] == "there is no NVIDIA driver"


def test_it_says_what_a_build_would_do_again(root, capsys):
    versions = read_manifest(root / "good").versions
    assert versions["exporter"] == exporter_hash()
    assert listed(capsys)[0]["good"]["rebuilt_for"] == ""
    changed(root / "good", versions=versions | {"torch": "1.0"})
    now = metadata.version("torch")
    assert listed(capsys)[0]["good"]["rebuilt_for"] == (
        f"it was built with torch 1.0, this one is {now}"
    )
    changed(root / "good", versions=versions | {"exporter": "abc"})
    found = listed(capsys)[0]["good"]
    assert found["rebuilt_for"].startswith("it was built with exporter abc, this one is ")
    assert found["runs"], "another exporter's set still runs"


def test_the_exporters_hash_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from vicort.export.exporter_version import exporter_hash; print(exporter_hash())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == exporter_hash()


@pytest.mark.parametrize("name", ["red\x1b[31m", "two\nlines", os.fsdecode(b"latin-\xe9")])
def test_names_of_folders_that_a_terminal_would_obey_are_escaped(root, old, name, capsys):
    shutil.copytree(old, root / name, copy_function=os.link)
    said = ""
    for words in (["list"], ["prune", "--dry-run"], ["list", "--folder", str(root / name / "x")]):
        engine_list.main([*words])
        out, err = capsys.readouterr()
        said += out + err
    said.encode()  # as a strict stdout does
    assert said.replace("\n", "").isprintable()
    escaped = name.encode("unicode_escape").decode()
    assert f"\n  {escaped}\n" in said
    assert f"\n{root}/{escaped}: " in said
    assert f"vicort-engines: --folder {root}/{escaped}/x is not a folder" in said


def test_a_dry_run_removes_nothing(root, old, capsys):
    assert engine_list.main(["prune", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{old}: ")
    assert out.endswith(" would be removed (folders: 1)\n")
    assert old.is_dir()


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_prune_asks(root, old, strangers, monkeypatch, capsys, answer):
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert engine_list.main(["prune"]) == 0
    assert old.exists() == (answer != "y")
    assert all(path.exists() for path in [root / "good", *strangers])


def test_prune_asks_nobody_where_stdin_ends(old, monkeypatch, capsys):
    def end(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert engine_list.main(["prune"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert old.is_dir()


def test_prune_removes_damaged_sets(root, strangers, capsys):
    (root / "good" / "llm.bin").write_bytes(b"")
    assert engine_list.main(["prune", "--yes"]) == 0
    assert f"{root / 'good' / 'llm.bin'} is damaged" in capsys.readouterr().out
    assert not (root / "good").exists()
    assert all(path.exists() for path in strangers)


def test_a_set_that_is_built_again_meanwhile_stays(root, old, monkeypatch, capsys):
    def build_again(question):
        changed(old, schema_version=SCHEMA_VERSION)
        return "y"

    monkeypatch.setattr("builtins.input", build_again)
    assert engine_list.main(["prune"]) == 0
    assert old.is_dir()
    assert capsys.readouterr().out.endswith("\nnothing was removed\n")


def test_it_says_what_was_removed_and_not_what_was_to_be(root, old, monkeypatch, capsys):
    for name in ("old2", "old3"):
        shutil.copytree(old, root / name, copy_function=os.link)
    size, remove = engine_list.size_text(engine_inspection.size_of(old)), engine_list.remove_set

    def refuse_the_last(folder):
        if folder.name == "old3":
            raise PermissionError(13, "Permission denied")
        remove(folder)

    monkeypatch.setattr(engine_list, "remove_set", refuse_the_last)
    monkeypatch.setattr("builtins.input", lambda question: remove(root / "old2") or "y")
    assert engine_list.main(["prune"]) == 2
    out, err = capsys.readouterr()
    assert out.endswith(f"\nremoved {size} (folders: 1)\n")
    assert "old3 cannot be removed (Permission denied)" in err


def test_links_are_left_alone(root, old, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    old.rename(elsewhere)
    old.symlink_to(elsewhere)
    assert engine_list.main(["prune", "--yes"]) == 0
    assert old.is_symlink()
    assert (elsewhere / "manifest.json").is_file()


def test_what_vicort_did_not_make_keeps_a_set_in_its_folder(root, old, capsys):
    (old / "precious.txt").write_text("x")
    assert engine_list.main(["list"]) == 0
    assert "holds precious.txt, which is no part of the engine set in it: never removed" in (
        capsys.readouterr().out
    )
    assert engine_list.main(["prune", "--yes"]) == 0
    assert (old / "precious.txt").exists()
    assert (old / "llm.bin").exists()


def test_prune_removes_what_killed_builds_left(root, capsys):
    """Whether a build still works in a folder is told by its lock, whatever its age."""
    gone, unmarked = root / ".building-1-0123abcd", root / ".building-1-00000000"
    for folder in (gone, unmarked, root / ".building"):
        folder.mkdir()
        (folder / "vision.bin").write_bytes(bytes(1000))
    (gone / "lock").write_text(work_folders.MARK)
    with work_folders.work_folder(tmp := root.parent / "other"):
        (tmp := next(tmp.iterdir())).rename(busy := root / tmp.name)
        found = {each["name"]: each["busy"] for each in listed(capsys)[1]}
        assert found.keys() == {gone.name, unmarked.name, busy.name}
        assert [name for name, reason in found.items() if not reason] == [gone.name]
        assert engine_list.main(["prune", "--yes"]) == 0
        assert (gone.exists(), unmarked.exists(), busy.exists()) == (False, True, True)
    assert (root / ".building").is_dir()


def test_another_folder_can_be_named(root, tmp_path, capsys):
    assert engine_list.main(["list", "--folder", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert engine_list.main(["prune", "--folder", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'empty'}: nothing to remove\n"


# ---- vicort-run ----


@pytest.fixture
def fake(monkeypatch):
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_run_refuses_a_set_of_another_version_and_names_the_others(root, old, fake, capsys, dry):
    shutil.copytree(old, root / "older")
    assert run.main([CLIP, "--engine-dir", str(old), *dry]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), FakeSession.opened) == ("", 1, [])
    assert f"has schema version 1, this vicort reads {SCHEMA_VERSION}: rebuild with" in err
    assert f"; the same holds for older in {root}: see `vicort-engines list`" in err


def test_a_run_builds_the_tiny_set_again_and_says_which_others_are_old(
    root, old, fake, monkeypatch, capsys
):
    found, commands = root / "tiny", []
    shutil.copytree(old, found)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: found)

    def built(command, **options):
        assert "; the same holds for old in " in capsys.readouterr().err, "it is said before"
        commands.append(command)
        changed(found, schema_version=SCHEMA_VERSION)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run, "run_child", built)
    assert run.main([CLIP]) == 0
    assert [command[1:] for command in commands] == [["-m", "vicort.export.build", "tiny"]]


def test_a_dry_run_says_that_the_tiny_set_is_old(root, old, monkeypatch, capsys):
    monkeypatch.setattr(run, "find_engine_dir", lambda model: old)
    assert run.main([CLIP, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"another version of vicort built {old}: its schema version is 1" in out
    assert "would be built first" in out
