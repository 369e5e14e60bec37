"""Headers of safetensors files, compared with the library that writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from vicort.export.checkpoint import TINY, resolve
from vicort.export.safetensors_headers import BITS, read_header, weight_files
from vicort.runtime.errors import EngineError


def test_headers_are_what_the_library_reads():
    (path,) = weight_files(resolve(TINY))
    found = {tensor.name: tensor for tensor in read_header(path)}
    with safe_open(path, framework="np") as file:
        assert found.keys() == set(file.keys())
        for name in file.keys():  # noqa: SIM118 (the file cannot be iterated)
            stored = file.get_slice(name)
            assert (found[name].dtype, list(found[name].shape)) == (
                stored.get_dtype(),
                stored.get_shape(),
            )
            assert found[name].bytes == file.get_tensor(name).nbytes
            assert found[name].elements == file.get_tensor(name).size


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.int32), "b": np.zeros(0, np.float16)}, path, {"x": "y"})
    return path


def test_metadata_is_no_tensor(file):
    found = sorted((each.name, each.dtype, each.bytes) for each in read_header(file))
    assert found == [("a", "I32", 24), ("b", "F16", 0)]


def test_a_file_that_is_cut_off_is_said(file):
    content = file.read_bytes()
    for length in (0, 4, 20, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(EngineError, match=r"is damaged|is empty") as caught:
            read_header(file)
        assert "\n" not in str(caught.value)
    assert "1 bytes are missing at its end" in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1]}}', b'"a"', b"[" * 100_000],
)
def test_a_damaged_header_is_said(file, header):
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(EngineError, match="is damaged"):
        read_header(file)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": ["x"]}, "'a' is of the unknown type ['x']"),
        ({"dtype": "\x1b[31mF32"}, r"'a' is of the unknown type '\x1b[31mF32'"),
        ({"shape": ["x"]}, "'a' has the shape ['x']"),
        ({"shape": [-2], "data_offsets": [8, 0]}, "'a' has the shape [-2]"),
        ({"shape": [True]}, "'a' has the shape [True]"),
        ({"shape": "12"}, "'a' has the shape '12'"),
        ({"data_offsets": [8, 0]}, "'a' has the offsets [8, 0]"),
        ({"data_offsets": [-8, 0]}, "'a' has the offsets [-8, 0]"),
        ({"data_offsets": ["0", "8"]}, "'a' has the offsets ['0', '8']"),
        ({"data_offsets": [0]}, ""),
    ],
)
def test_an_entry_that_is_no_tensor_is_said(file, change, why):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
    header = json.dumps({"a": entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(EngineError) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file} is damaged ({why}")
    assert str(caught.value).isprintable()


def test_all_types_of_the_library_are_known(file):
    for dtype, bits in BITS.items():
        header = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(bits))
        with safe_open(file, framework="np") as opened:
            assert opened.get_slice("a").get_dtype() == dtype
        assert read_header(file)[0].bytes == bits


def test_a_huge_header_is_not_read(file):
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(EngineError, match="a header of 4611686018427387904 bytes"):
        read_header(file)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": {"a": 1}}', "{}", "[]"])
def test_a_damaged_index_is_said(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EngineError, match="is not an index of weights") as caught:
        weight_files(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_said(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineError, match=r"has no model-1\.safetensors"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
        (b"GGUF\3\0\0\0" + bytes(90), "a GGUF file"),
        (b"PK\3\4" + bytes(90), "a zip archive"),
        (b"Salted__" + bytes(range(256)), "encrypted by OpenSSL"),
        (b"age-encryption.org/v1\n-> X25519 ", "encrypted by age"),
        (bytes(range(128, 256)), "or is encrypted"),
        (b"<!doctype html><html>", "a web page"),
        (bytes(1000), "filled with zeros"),
        (b"", "empty"),
    ],
)
def test_what_is_no_safetensors_file_is_named(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(EngineError, match=words) as caught:
        read_header(file)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-q4_k_m.gguf", "it has model-q4_k_m.gguf, of llama.cpp"),
        ("pytorch_model.bin", "it has pytorch_model.bin, in PyTorch's own format"),
        ("readme.md", "weights must be in safetensors files"),
    ],
)
def test_other_weights_are_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(EngineError, match=words):
        weight_files(tmp_path)
