"""Too little disk or memory is said before a build begins."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from vicort.export import build, build_space
from vicort.export.build_space import check_space, weight_bytes_of
from vicort.export.checkpoint import TINY, resolve
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import read_manifest

CONFIG = read_configuration(resolve(TINY))


def with_disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def with_memory(monkeypatch, total: int) -> None:
    monkeypatch.setattr(build_space, "host_memory", lambda _: total)


def test_the_bytes_are_those_of_a_built_set(tiny_engines):
    files = read_manifest(tiny_engines).files
    built = sum(files[name].bytes for name in ("embedding.bin", "llm.bin", "vision.bin"))
    expected = weight_bytes_of(CONFIG, "fp32")
    assert 0.95 * expected < built < 1.05 * expected
    assert weight_bytes_of(CONFIG, "bf16") == expected // 2


@pytest.mark.parametrize(("precision", "plans"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_byte_less_disk_than_the_set_takes(precision, plans, tmp_path, monkeypatch):
    size = weight_bytes_of(CONFIG, precision) * (2 if plans else 1)
    with_disk(monkeypatch, size)
    check_space(tmp_path / "new" / "set", CONFIG, precision, plans)
    with_disk(monkeypatch, size - 1)
    with pytest.raises(ConfigError) as caught:
        check_space(tmp_path / "new" / "set", CONFIG, precision, plans)
    assert f"takes {size / 1e6:.1f} MB of disk, {tmp_path} has" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_less_memory_than_the_weights(tmp_path, monkeypatch):
    size = weight_bytes_of(CONFIG, "fp32")
    with_memory(monkeypatch, size)
    check_space(tmp_path, CONFIG, "fp32", plans=False)
    with_memory(monkeypatch, size - 1)
    with pytest.raises(ConfigError, match=f"takes more than {size / 1e6:.1f} MB of memory"):
        check_space(tmp_path, CONFIG, "fp32", plans=False)
    check_space(tmp_path, CONFIG, "bf16", plans=False)
    check_space(tmp_path, CONFIG, "fp32", plans=True)  # a GPU's memory holds them


@pytest.mark.parametrize("short", [with_disk, with_memory])
def test_the_build_says_so_at_once(short, tmp_path, monkeypatch, capfd):
    short(monkeypatch, 1000)
    assert build.main([TINY, "--backend", "onnxruntime", "--out", str(tmp_path / "set")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "0.0 MB" in said
    assert not list(tmp_path.iterdir())
