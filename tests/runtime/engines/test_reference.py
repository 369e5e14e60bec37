"""Engines are compared with what the model computes, stored in their set, without PyTorch."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.engine_sets import built_model, engine_set

from vicort.export.checkpoint import resolve
from vicort.export.engine_set_writer import seal
from vicort.export.verify import write_reference
from vicort.runtime.cli.run import main
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.engines.reference import (
    INDEX,
    REFERENCE_FILE,
    check_reference,
    read_runs,
)
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import read_manifest


@pytest.fixture(scope="module")
def referenced(tmp_path_factory) -> Path:
    """An engine set with its reference."""
    folder = tmp_path_factory.mktemp("set") / "set"
    shutil.copytree(engine_set("openvino"), folder)
    manifest = read_manifest(folder)
    write_reference(folder, manifest, resolve(built_model()))
    seal(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def engines(referenced) -> Iterator[EngineSet]:
    """The same, opened once, to read with."""
    with EngineSet.open(referenced) as opened:
        yield opened


class Wrong:
    """An engine that computes one output a little wrong, where a run has one row alone."""

    def __init__(self, engine, output):
        self._engine, self._output = engine, output
        self.signature = engine.signature

    def enqueue(self, bindings, stream):
        event = self._engine.enqueue(bindings, stream)
        if bindings["features"].shape[0] == 1:
            bindings[self._output][...] *= 1.01
        return event


def test_engines_that_compute_what_the_model_does_pass(referenced):
    with EngineSet.open(referenced) as engines:
        found = check_reference(engines)
    assert {each.run.split()[0] for each in found} == {"vision", "pruned", "tokens", "head", "llm"}
    assert max(each.relative for each in found) < 1e-4
    assert main(["testsrc:", "--engine-dir", str(referenced), "--verify-engines"]) == 0


@pytest.mark.parametrize("output", ["hidden", "k"])
def test_an_engine_that_is_wrong_at_one_row_alone_is_named(referenced, output):
    with EngineSet.open(referenced) as engines:
        engines.llm = Wrong(engines.llm, output)
        with pytest.raises(EngineError, match=f"`llm decode` gives {output} that differs .*0.01 "):
            check_reference(engines)


def test_an_engine_that_gives_no_numbers_is_wrong(referenced):
    class Broken(Wrong):
        def enqueue(self, bindings, stream):
            event = self._engine.enqueue(bindings, stream)
            bindings[self._output][...] = np.nan
            return event

    with EngineSet.open(referenced) as engines:
        engines.head = Broken(engines.head, "logits")
        with pytest.raises(EngineError, match="`head` gives logits that differs"):
            check_reference(engines)


def test_a_set_without_a_reference_is_refused_with_the_command_that_makes_one(capsys):
    folder = engine_set("openvino")
    assert main(["testsrc:", "--engine-dir", str(folder), "--verify-engines"]) != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"has no {REFERENCE_FILE}" in line
    assert "vicort-build" in line
    assert line.endswith(" --verify`")  # another build for OpenVINO would store none either


def test_a_damaged_reference_is_refused_in_one_line(referenced, tmp_path):
    whole = (referenced / REFERENCE_FILE).read_bytes()
    bad_index = tmp_path / "index.npz"
    np.savez(bad_index, **{INDEX: np.array(json.dumps([{"name": "llm"}]))})
    no_index = tmp_path / "no-index.npz"
    np.savez(no_index, other=np.zeros(1))
    objects = tmp_path / "objects.npz"
    np.savez(objects, **{INDEX: np.array([object()])}, allow_pickle=True)
    with EngineSet.open(referenced) as engines:
        for name, content in (
            ("cut", whole[: len(whole) // 2]),
            ("empty", b""),
            ("text", b"hello"),
            ("bad-index", bad_index.read_bytes()),
            ("no-index", no_index.read_bytes()),
            ("objects", objects.read_bytes()),
        ):
            path = tmp_path / f"{name}.npz"
            path.write_bytes(content)
            with pytest.raises(EngineError, match="is damaged"):
                list(read_runs(path, engines))


def edited(path, to, index=lambda entries: entries, **arrays):
    """A copy of a reference with other arrays (None: without it) and entries."""
    with np.load(path) as stored:
        kept = dict(stored) | arrays
    kept[INDEX] = np.array(json.dumps(index(json.loads(str(kept[INDEX])))))
    np.savez(to, **{name: array for name, array in kept.items() if array is not None})


def with_entry(**changes):
    return lambda entries: [entries[0] | changes, *entries[1:]]


@pytest.mark.parametrize(
    "edit",
    [
        {"index": lambda entries: []},
        {"index": with_entry(allowed={})},
        {"index": with_entry(allowed={"features": "much"})},
        {"0.in.frames": None},
        {"0.in.frames": np.zeros((1, 112, 112, 3), np.uint8)},
        {"0.in.frames": np.zeros((2, 112), np.uint8)},
        {"0.in.what": np.zeros(1)},
        {"0.out.features": None},
        {"0.out.features": np.zeros((0, 16, 128), np.float32)},
        {"0.out.features": np.zeros((1, 16, 1), np.float32)},
        {"5.rows.k": np.zeros(13, bool)},
        {"5.rows.k": np.ones(3, bool)},
        {"5.rows.k": np.zeros(13, np.int64)},
    ],
)
def test_a_reference_of_other_engines_or_of_nothing_is_refused_in_one_line(
    referenced, engines, tmp_path, edit
):
    path = tmp_path / REFERENCE_FILE
    edited(referenced / REFERENCE_FILE, path, **edit)
    with pytest.raises(EngineError, match=r"is damaged \(.*rebuild with"):
        list(read_runs(path, engines))
