"""Too little disk or memory is said before a build begins."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import onnx_ir
import pytest
from support.reference_model import write_random_checkpoint
from support.tiny_sets import tiny_set

from vicort.export import build, build_set, build_space
from vicort.export.build_space import (
    GRAPHS,
    NumberFormat,
    bytes_of_parts,
    check_space,
    suitable_format,
    weight_bytes_of,
)
from vicort.export.checkpoint import TINY, resolve
from vicort.export.engine_set_writer import SHARED_ENCODER
from vicort.export.graphs import TYPE_NAMES
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.weight_compression import Scheme
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Manifest, Precision, Weights, read_manifest

CONFIG = read_configuration(resolve(TINY))


def with_disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def with_memory(monkeypatch, total: int) -> None:
    monkeypatch.setattr(build_space, "host_memory", lambda _: total)


def manifest_of(
    precision: Precision, plans: bool = False, weights: Weights | None = None
) -> Manifest:
    kind = {"backend": "tensorrt", "flavour": "tensorrt_rtx"} if plans else {}
    built = read_manifest(tiny_set())
    embedding = built.embedding.model_copy(update={"dtype": TYPE_NAMES[precision]})
    changes = {"precision": precision, "weights": weights, "embedding": embedding, **kind}
    return built.model_copy(update=changes)


def size_of(precision: Precision, weights: Weights | None = None, plans: bool = False) -> int:
    return weight_bytes_of(CONFIG, NumberFormat(precision, weights), plans)


@pytest.mark.parametrize(
    ("thirds_of", "flags", "chosen"),
    [
        (("fp32",), "avx2", "fp32"),
        (("bf16",), "avx512_bf16", "bf16"),
        (("bf16",), "avx2", "fp32 with int8 weights"),
        (("fp32", "int8"), "avx2", "fp32 with int8 weights"),
        (("fp32", "int4"), "avx512_bf16", "fp32 with int4 weights"),
        (("none",), "avx2", "fp32 with int4 weights"),
    ],
)
def test_the_numbers_follow_the_memory_and_the_instructions(
    thirds_of, flags, chosen, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(f"flags : sse {flags}\n")
    with_memory(monkeypatch, 10 if thirds_of == ("none",) else 3 * size_of(*thirds_of))
    assert str(suitable_format(CONFIG, cpuinfo=tmp_path / "cpuinfo")) == chosen


def test_a_build_without_options_says_what_it_chose(tmp_path, monkeypatch, capfd):
    with_memory(monkeypatch, 3 * size_of("fp32") - 3)
    # whatever the instructions of this machine
    monkeypatch.setattr(build_space, "computes_in_float32", lambda *_: True)
    monkeypatch.setattr(build_set, "write_engine_set", stopped)
    with pytest.raises(Stopped) as caught:
        build.main([TINY, "--out", str(tmp_path / "set")])
    assert caught.value.manifest.weights == "int8"
    assert "chose --precision fp32 --weights int8: " in capfd.readouterr().err
    assert "--weights int8" in caught.value.manifest.build_command
    with pytest.raises(Stopped) as caught:
        build.main([TINY, "--precision", "fp32", "--out", str(tmp_path / "set")])
    assert caught.value.manifest.weights is None


class Stopped(Exception):
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest


def stopped(folder, checkpoint, manifest, *_):
    raise Stopped(manifest)


def test_the_bytes_are_those_of_a_built_set(tiny_engines):
    files = read_manifest(tiny_engines).files
    built = sum(files[name].bytes for name in ("embedding.bin", "llm.bin", "vision.bin"))
    expected = size_of("fp32")
    assert 0.95 * expected < built < 1.05 * expected
    assert size_of("bf16") == expected // 2
    int8 = size_of("fp32", "int8")
    int4 = size_of("fp32", "int4")
    assert expected / 4 < int8 < expected / 3.5
    assert int4 < int8
    whole, *eight = (size_of("bf16", kind, plans=True) for kind in (None, "int8", "fp8"))
    assert whole / 2 < eight[0] == eight[1] < whole / 1.8


MEDIUM = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
}


@pytest.fixture(scope="module")
def medium(tmp_path_factory) -> Path:
    """A random checkpoint of one layer each, whose weights are large beside what a file is filled
    up with."""
    folder = tmp_path_factory.mktemp("checkpoints") / "medium"
    folder.mkdir()
    vision = {"depth": 1, "fullatt_block_indexes": [0], "out_hidden_size": 512}
    write_random_checkpoint(folder, "tiny", seed=3, vision=vision, text=MEDIUM)
    shutil.copy(resolve(TINY) / "tokenizer.json", folder)
    return folder


@dataclass
class WatchedBuild:
    """An engine set with int4 weights for onnxruntime, and what happened when it was built."""

    folder: Path
    on_disk: int = 0  # bytes of weights, where most of them lay on the disk
    quantised: list[str] = field(default_factory=list)  # parameters, each time one was
    said: str = ""


@pytest.fixture(scope="module")
def watched(medium, tmp_path_factory) -> WatchedBuild:
    root = tmp_path_factory.mktemp("watched")
    build_of = WatchedBuild(root / "set")
    replaced, quantised = Path.replace, Scheme.quantised

    def measured(self: Path, target: Path) -> Path:
        size = sum(path.stat().st_size for path in root.rglob("*.bin"))
        build_of.on_disk = max(build_of.on_disk, size)
        return replaced(self, target)

    def counted(self: Scheme, matrix, name: str):
        build_of.quantised.append(name)
        return quantised(self, matrix, name)

    words = ["--backend", "onnxruntime", "--weights", "int4", "--out", str(build_of.folder)]
    with (
        mock.patch.object(Path, "replace", measured),
        mock.patch.object(Scheme, "quantised", counted),
        redirect_stderr(io.StringIO()) as said,
    ):
        assert build.main([str(medium), *words]) == 0
    build_of.said = said.getvalue()
    return build_of


def test_the_bytes_are_those_of_a_set_with_integers_and_their_scales(medium, watched):
    """Also while it is built: the weights of graphs are on the disk twice, where onnxruntime gets
    them in another layout."""
    assert "packing integer weights" in watched.said
    manifest = read_manifest(watched.folder)
    embedding = numpy_dtype(manifest.embedding.dtype).itemsize
    first, parts = (
        bytes_of_parts(
            read_configuration(medium), NumberFormat("fp32", "int4"), False, embedding, packed
        )
        for packed in (False, True)
    )
    built = {path.stem: path.stat().st_size for path in watched.folder.glob("*.bin")}
    assert sum(built.values()) == pytest.approx(sum(parts.values()), rel=0.02)
    assert built["llm"] == pytest.approx(parts["llm"], rel=0.02)
    again = sum(parts[name] for name in GRAPHS)
    assert watched.on_disk == pytest.approx(sum(first.values()) + again, rel=0.02)


def test_the_matrices_that_two_vision_graphs_share_are_quantised_once(watched):
    names = [name.removeprefix(SHARED_ENCODER) for name in watched.quantised]
    assert len(names) == len(set(names)) > 10
    assert "matrices of the vision_pruned graph: 7 int8" in watched.said
    whole, some = (
        {
            (value.const_value.location, value.const_value.offset)
            for key, value in onnx_ir.load(watched.folder / file).graph.initializers.items()
            if isinstance(value.const_value, onnx_ir.ExternalTensor)
        }
        for file in ("vision.onnx", "vision_pruned.onnx")
    )
    assert whole == some
    assert len(whole) > 10


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_second_copy_of_the_language_weights_needs_disk(backend, tmp_path, monkeypatch):
    kind = NumberFormat("fp32", "int4")
    stored = 2  # bytes of a number in the checkpoint, as which the embedding stays
    size = weight_bytes_of(CONFIG, kind, False, stored)
    if backend == "onnxruntime":
        parts = bytes_of_parts(CONFIG, kind, False, stored, packed=True)
        size += sum(parts[name] for name in GRAPHS)
    monkeypatch.setattr(build_set, "write_engine_set", stopped)
    words = [TINY, "--backend", backend, "--weights", "int4", "--out", str(tmp_path / "set")]
    with_disk(monkeypatch, size)
    with pytest.raises(Stopped):
        build.main(words)
    with_disk(monkeypatch, size - 1)
    assert build.main(words) == 2


@pytest.mark.parametrize(("precision", "plans"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_byte_less_disk_than_the_set_takes(precision, plans, tmp_path, monkeypatch):
    manifest = manifest_of(precision, plans)
    size = size_of(precision, plans=plans) * (2 if plans else 1)
    with_disk(monkeypatch, size)
    check_space(tmp_path / "new" / "set", CONFIG, manifest)
    with_disk(monkeypatch, size - 1)
    with pytest.raises(ConfigError) as caught:
        check_space(tmp_path / "new" / "set", CONFIG, manifest)
    assert f"takes {size / 1e6:.1f} MB of disk, {tmp_path} has" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_less_memory_than_the_weights(tmp_path, monkeypatch):
    size = size_of("fp32")
    with_memory(monkeypatch, size)
    check_space(tmp_path, CONFIG, manifest_of("fp32"))
    with_memory(monkeypatch, size - 1)
    with pytest.raises(ConfigError, match=f"takes more than {size / 1e6:.1f} MB of memory"):
        check_space(tmp_path, CONFIG, manifest_of("fp32"))
    check_space(tmp_path, CONFIG, manifest_of("bf16"))
    check_space(tmp_path, CONFIG, manifest_of("fp32", weights="int4"))
    check_space(tmp_path, CONFIG, manifest_of("fp32", plans=True))  # a GPU's memory holds them


@pytest.mark.parametrize("short", [with_disk, with_memory])
def test_the_build_says_so_at_once(short, tmp_path, monkeypatch, capfd):
    short(monkeypatch, 1000)
    assert build.main([TINY, "--backend", "onnxruntime", "--out", str(tmp_path / "set")]) == 2
    said = capfd.readouterr().err
    assert said.splitlines()[:-1] == said.splitlines()[: int(short is with_memory)]
    assert "error: " in said.splitlines()[-1]
    assert "0.0 MB" in said
    assert not list(tmp_path.iterdir())
