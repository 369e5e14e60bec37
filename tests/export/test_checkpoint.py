"""What MODEL may be. The hub itself is not asked: a stand-in for its client fails, or delivers a
folder, in its place."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from vicort.export import checkpoint
from vicort.export.checkpoint import checkpoint_hash, resolve
from vicort.runtime.errors import EngineError


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "some model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def refusal(model: str) -> str:
    with pytest.raises(EngineError) as caught:
        resolve(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tiny_is_the_embedded_default():
    assert resolve("tiny") == Path(checkpoint.__file__).parent / "tiny" / "checkpoint"


def test_folder(folder):
    assert resolve(str(folder)) == folder


def test_folder_of_something_else(tmp_path):
    assert "has no config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "nothing", "a/b/c", ""])
def test_no_such_folder(model):
    assert f"no model folder {model!r}" in refusal(model)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("manifest.json", "is an engine set already: run it with `vicort-run SOURCE --engine-dir "),
        ("adapter_config.json", "the adapter with --adapter "),
    ],
)
def test_folder_that_another_option_takes(name, advice, tmp_path):
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / name).touch()
    if name == "manifest.json":  # an engine set has its model's configuration
        (folder / "config.json").touch()
    with pytest.raises(EngineError, match=f"{advice}'{folder}'") as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)


def test_file_instead_of_a_folder(folder):
    assert "no model folder" in refusal(str(folder / "config.json"))


def test_hub_id_is_downloaded(folder, monkeypatch):
    asked = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    assert resolve("someone/a-model") == folder
    assert asked[0][0] == "someone/a-model"
    assert {"*.json", "*.safetensors"} <= set(asked[0][1])


RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RepositoryNotFoundError("404\nmore lines", response=RESPONSE),
            "no model 'someone/a-model' on the hub",
        ),
        (GatedRepoError("403", response=RESPONSE), "is gated"),
        (
            HfHubHTTPError("502 bad gateway\nmore lines", response=RESPONSE),
            "cannot be downloaded (502 bad gateway)",
        ),
        (LocalEntryNotFoundError("offline"), "cannot be downloaded (offline)"),
        (ConnectionError("refused"), "cannot be downloaded (refused)"),
        (httpx2.ConnectError("no route"), "cannot be downloaded (no route)"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_download_that_fails(monkeypatch, error, message):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    assert message in refusal("someone/a-model")


def test_hash_sees_names_and_contents(folder):
    before = checkpoint_hash(folder)
    (folder / "README.md").write_text("not part of the model")
    assert checkpoint_hash(folder) == before
    (folder / "model.safetensors").write_bytes(b"Weights")
    changed = checkpoint_hash(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len({before, changed, checkpoint_hash(folder)}) == 3
