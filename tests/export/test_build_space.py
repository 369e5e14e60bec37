"""Too little disk or memory is said before a build begins."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from support.tiny_sets import tiny_set

from vicort.export import build, build_space
from vicort.export.build_space import check_space, weight_bytes_of
from vicort.export.checkpoint import TINY, resolve
from vicort.export.qwen2_5_vl.configuration import read_configuration
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
    changes = {"precision": precision, "weights": weights, **kind}
    return read_manifest(tiny_set()).model_copy(update=changes)


def test_the_bytes_are_those_of_a_built_set(tiny_engines):
    files = read_manifest(tiny_engines).files
    built = sum(files[name].bytes for name in ("embedding.bin", "llm.bin", "vision.bin"))
    expected = weight_bytes_of(CONFIG, manifest_of("fp32"))
    assert 0.95 * expected < built < 1.05 * expected
    assert weight_bytes_of(CONFIG, manifest_of("bf16")) == expected // 2
    int8 = weight_bytes_of(CONFIG, manifest_of("fp32", weights="int8"))
    int4 = weight_bytes_of(CONFIG, manifest_of("fp32", weights="int4"))
    assert expected / 4 < int8 < expected / 3.5
    assert int4 < int8


@pytest.mark.parametrize(("precision", "plans"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_byte_less_disk_than_the_set_takes(precision, plans, tmp_path, monkeypatch):
    manifest = manifest_of(precision, plans)
    size = weight_bytes_of(CONFIG, manifest) * (2 if plans else 1)
    with_disk(monkeypatch, size)
    check_space(tmp_path / "new" / "set", CONFIG, manifest)
    with_disk(monkeypatch, size - 1)
    with pytest.raises(ConfigError) as caught:
        check_space(tmp_path / "new" / "set", CONFIG, manifest)
    assert f"takes {size / 1e6:.1f} MB of disk, {tmp_path} has" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_less_memory_than_the_weights(tmp_path, monkeypatch):
    size = weight_bytes_of(CONFIG, manifest_of("fp32"))
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
    assert said.count("\n") == 1
    assert "0.0 MB" in said
    assert not list(tmp_path.iterdir())
