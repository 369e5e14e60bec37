"""Which engine sets a build without --out replaces: those of the same model only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.engine_sets import OPTIONS, checkpoint, tiny_set

from vicort.export import build
from vicort.export.default_folder import check_same_model, located
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import FILE_NAME, read_manifest


def write_set(folder: Path, command: str, checkpoint_hash: str = "0") -> None:
    """The manifest of a set, whose files are missing."""
    folder.mkdir(parents=True)
    content = read_manifest(tiny_set()).model_dump(mode="json")
    content |= {"build_command": command, "checkpoint": checkpoint_hash}
    (folder / FILE_NAME).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("vicort-build /a/m --backend openvino", "vicort-build /a/m --weights int8", True),
        ("vicort-build Qwen/m --backend openvino", "vicort-build Qwen/m", True),
        ("vicort-build '/a b/m'", "vicort-build '/a b/m' --kv int8", True),
        ("vicort-build /a/m", "vicort-build /b/m", False),
        ("vicort-build Qwen/m", "vicort-build other/m", False),
        ("vicort-build m", "vicort-build /b/m", False),
        ("vicort-build /a/m --adapter /x/l", "vicort-build /a/m --adapter /y/l", False),
        ("vicort-build /a/m --adapter /x/l", "vicort-build /a/m", False),
        ("vicort-build 'quote", "vicort-build /a/m", False),
    ],
)
def test_only_a_set_of_the_same_model_is_replaced(
    tmp_path: Path, before: str, now: str, same: bool
) -> None:
    write_set(tmp_path / "set", before)
    manifest = read_manifest(tiny_set()).model_copy(update={"build_command": now})
    if same:
        check_same_model(tmp_path / "set", manifest)
    else:
        with pytest.raises(ConfigError, match=r"another model, built from .*--out") as caught:
            check_same_model(tmp_path / "set", manifest)
        assert str(caught.value).isprintable()
    write_set(tmp_path / "moved", before, manifest.checkpoint)  # the same files, elsewhere
    check_same_model(tmp_path / "moved", manifest)
    check_same_model(tmp_path / "nothing", manifest)


def test_two_checkpoints_of_one_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Building(Exception):
        pass

    planned = []

    def stop(folder, source, manifest, *_):
        planned.append(manifest)
        raise Building

    monkeypatch.setattr("vicort.export.build_set.write_engine_set", stop)
    monkeypatch.setattr("vicort.runtime.locations.engines_root", lambda: tmp_path / "engines")
    for name in ("runA", "runB"):
        shutil.copytree(checkpoint(), tmp_path / name / "checkpoint-1000")
    (tmp_path / "runB" / "checkpoint-1000" / "notes.json").write_text("{}")  # another hash
    monkeypatch.chdir(tmp_path / "runA")
    words = ["checkpoint-1000", "--backend", "openvino", *OPTIONS]
    with pytest.raises(Building):
        build.main(words)
    assert str(tmp_path / "runA" / "checkpoint-1000") in planned[0].build_command
    folder = tmp_path / "engines" / "checkpoint-1000-fp32-openvino"
    write_set(folder, planned[0].build_command, planned[0].checkpoint)
    monkeypatch.chdir(tmp_path / "runB")
    assert build.main(words) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "holds the engine set of another model" in said
    assert "runA/checkpoint-1000" in said
    for allowed in (["--out", str(folder)], ["--out", str(tmp_path / "other")]):
        with pytest.raises(Building):
            build.main([*words, *allowed])


def test_names_that_are_no_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny-live", "Qwen"):
        (tmp_path / name).mkdir()
    assert [located(name) for name in ("tiny", "tiny-live", "Qwen/m", "")] == [
        "tiny",
        "tiny-live",
        "Qwen/m",
        "",
    ]
    assert located("Qwen") == str(tmp_path / "Qwen")
