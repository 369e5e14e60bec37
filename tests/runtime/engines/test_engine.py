"""Engine sets as the runtime opens and runs them."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.engine_sets import BACKENDS, built_model, damaged_copy, engine_set
from support.row_trees import path, random_tree, with_any_padding

from vicort.export.checkpoint import TINY, resolve
from vicort.export.engine_set_writer import seal
from vicort.export.verify import language_inputs
from vicort.runtime import locations
from vicort.runtime import manifest as manifest_module
from vicort.runtime.devices.host import HostStream, InlineStream
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.engines.bindings import describe_mismatch
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.engines.openvino import OpenVinoEngine, _reason
from vicort.runtime.errors import EngineError, VicortError
from vicort.runtime.manifest import (
    FILE_NAME,
    Dimension,
    GraphSpec,
    TensorSpec,
    fingerprint,
    read_manifest,
)
from vicort.runtime.session import Session
from vicort.runtime.stages.shared_vision import SharedVision

OUTPUTS = ("hidden", "k", "v", "q", "queries")


@pytest.fixture(params=BACKENDS, scope="module")
def engines(request):
    with EngineSet.open(engine_set(request.param)) as opened:
        yield opened


def bindings(engines: EngineSet, rows: int, pages: int, seed: int) -> dict[str, np.ndarray]:
    """A run of the language graph on random input."""
    model = engines.manifest.model
    cache = (model.layers, rows, model.kv_heads, model.head_dim)
    inputs = language_inputs(model, engines.dtype, rows, pages, np.random.default_rng(seed))
    return inputs | {
        "hidden": np.zeros((len(inputs["ends"]), model.width), engines.dtype),
        "k": np.zeros(cache, engines.dtype),
        "v": np.zeros(cache, engines.dtype),
        "q": np.zeros((model.layers, model.query_heads, model.head_dim), np.float32),
        "queries": np.zeros(
            (model.layers, model.observed_rows, model.query_heads, model.head_dim), np.float32
        ),
    }


def results(bound: dict[str, np.ndarray]) -> bytes:
    return b"".join(bound[name].tobytes() for name in OUTPUTS)


def test_a_run_writes_into_the_callers_arrays(engines):
    bound = bindings(engines, 5, 4, seed=0)
    addresses = {name: array.ctypes.data for name, array in bound.items()}
    before = {
        name: bound[name].copy()
        for name in ("features", "pos", "segment", "until", "ends", "pool", "where", "table")
    }
    assert engines.llm.enqueue(bound, InlineStream("test")).done() is None
    assert all(bound[name].any() for name in OUTPUTS)
    assert all(np.array_equal(bound[name], array) for name, array in before.items())
    assert addresses == {name: array.ctypes.data for name, array in bound.items()}


def test_both_backends_agree():
    outputs = []
    for backend in BACKENDS:
        with EngineSet.open(engine_set(backend)) as engines:
            bound = bindings(engines, 7, 6, seed=1)
            engines.llm.enqueue(bound, InlineStream("test")).done()
            outputs.append(bound)
    for name in ("hidden", "q", "queries"):
        np.testing.assert_allclose(outputs[0][name], outputs[1][name], atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_node_of_a_tree_among_the_others_is_its_path_alone(engines, seed):
    """In the whole graph, with padding inside blocks; hidden states leave in any order, and twice
    if they are asked for twice."""
    bound, random = bindings(engines, 17, 4, seed), np.random.default_rng(seed)
    until = random_tree(random, 17)
    real = np.flatnonzero(bound["pos"][:, 0] >= 0)
    ends = [real[-1], real[0], real[-1], *random.permutation(real)[:5]]
    together = bound | {
        "until": with_any_padding(random, until, bound["pos"]),
        "ends": np.array(ends, np.int32),
        "hidden": np.zeros((len(ends), bound["hidden"].shape[1]), engines.dtype),
    }
    engines.llm.enqueue(together, InlineStream("test")).done()
    for hidden, row in zip(together["hidden"], ends, strict=True):
        mine = path(until, row)
        alone = bound | {name: bound[name][mine] for name in ("features", "pos", "segment")}
        alone |= {name: bound[name][:, : len(mine)].copy() for name in ("k", "v")}
        alone["until"] = np.full(len(mine), len(mine), np.int32)
        alone["ends"] = np.array([len(mine) - 1], np.int32)
        alone["hidden"] = np.zeros((1, len(hidden)), engines.dtype)
        engines.llm.enqueue(alone, InlineStream("test")).done()
        np.testing.assert_allclose(hidden, alone["hidden"][0], atol=2e-5)


def test_two_streams_at_once_give_the_very_bits_of_one(engines):
    work = [(bindings(engines, 32, 12, seed=2), 12), (bindings(engines, 1, 12, seed=3), 60)]
    alone = []
    for bound, _ in work:
        engines.llm.enqueue(bound, InlineStream("alone")).done()
        alone.append(results(bound))

    def repeat(index: int) -> bool:
        bound, times = work[index]
        stream = HostStream(str(index), Urgency(), urgent=True)
        same = True
        for _ in range(times):
            for name in OUTPUTS:
                bound[name][:] = np.nan
            engines.llm.enqueue(bound, stream).done()
            same = same and results(bound) == alone[index]
        stream.close()
        return same

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(repeat, range(2))) == [True, True]


def test_a_run_costs_what_its_table_names_not_what_the_pool_holds(engines):
    def seconds(pages: int) -> float:
        bound = bindings(engines, 1, 8, seed=4)
        bound["pool"] = np.zeros((pages, *bound["pool"].shape[1:]), engines.dtype)
        bound["where"] = np.zeros((pages, *bound["where"].shape[1:]), np.int32)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            engines.llm.enqueue(bound, InlineStream("test")).done()
            times.append(time.perf_counter() - start)
        return min(times)

    small, large = seconds(8), seconds(4096)  # 268 MB, whose copy alone would take 30 ms and more
    assert large < small + 0.015, (small, large)


MISFITS = {
    "missing": (lambda b: b.pop("pos"), "nothing is bound to 'pos'"),
    "extra": (lambda b: b.update(mask=b["pos"]), "mask"),
    "type": (lambda b: b.update(pos=b["pos"].astype(np.int64)), "'pos' is int64"),
    "rank": (lambda b: b.update(segment=b["segment"][:, None]), "'segment'"),
    "strides": (lambda b: b.update(features=np.asfortranarray(b["features"])), "contiguous"),
    "fixed size": (
        lambda b: b.update(features=np.ascontiguousarray(b["features"][:, 1:])),
        "'features'",
    ),
    "sizes that differ": (lambda b: b.update(segment=b["segment"][1:]), "'C'"),
    "too many rows": (lambda b: b.update(bindings_of_many_rows(b)), "dimension C"),
}


def bindings_of_many_rows(bound: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = 5000
    grown = {
        name: np.zeros((rows, *bound[name].shape[1:]), bound[name].dtype)
        for name in ("features", "pos", "segment", "until")
    }
    return grown | {
        name: np.zeros((len(bound[name]), rows, *bound[name].shape[2:]), bound[name].dtype)
        for name in ("k", "v")
    }


@pytest.mark.parametrize(("spoil", "reason"), MISFITS.values(), ids=MISFITS.keys())
def test_bindings_that_do_not_fit_are_refused_before_they_run(engines, spoil, reason):
    bound = bindings(engines, 5, 4, seed=5)
    spoil(bound)
    with pytest.raises(ValueError, match=reason):
        engines.llm.enqueue(bound, InlineStream("test"))


def test_embeddings_are_the_checkpoints_rows(engines):
    weights = load_file(resolve(built_model()) / "model.safetensors")
    (table,) = (array for name, array in weights.items() if name.endswith("embed_tokens.weight"))
    ids = np.array([3, 0, len(table) - 1, 3])
    assert len(engines.embedding) == len(table)
    assert engines.embedding[ids].dtype == np.float32
    np.testing.assert_array_equal(engines.embedding[ids], table[ids])


def refusal(folder) -> str:
    with pytest.raises(EngineError) as raised:
        EngineSet.open(folder)
    assert "\n" not in str(raised.value)
    assert "vicort-build" in str(raised.value)
    return str(raised.value)


def test_other_work_of_opening_is_done_beside_the_engines_and_may_fail():
    if usable_cores() < 2:
        pytest.skip("this machine has one core")
    done = []
    folder = engine_set("onnxruntime")
    with EngineSet.open(folder, threads=2, meanwhile=lambda: done.append("imported")):
        assert done == ["imported"]
    with pytest.raises(VicortError, match="no DALI here"):
        EngineSet.open(folder, threads=2, meanwhile=refuse)


def refuse() -> None:
    raise VicortError("no DALI here")


@pytest.mark.parametrize("threads", [1, 2])
def test_progress_counts_the_engines_that_are_loaded(threads):
    if threads > usable_cores():
        pytest.skip("this machine has one core")
    seen = []
    with EngineSet.open(
        engine_set("onnxruntime"),
        threads=threads,
        progress=lambda loaded, total: seen.append((loaded, total)),
    ) as engines:
        assert seen == [(loaded, 4) for loaded in range(5)]
        assert engines.vision.signature == engines.manifest.graphs["vision"]
        assert engines.llm.signature == engines.manifest.graphs["llm"]


def test_a_missing_folder_and_one_that_is_no_set(tmp_path):
    assert "no engine folder" in refusal(tmp_path / "nothing")
    assert FILE_NAME in refusal(tmp_path)


def test_a_checkpoint_that_is_named_as_an_engine_set(tmp_path):
    folder = tmp_path / "my model"
    shutil.copytree(resolve(TINY), folder)
    with pytest.raises(EngineError, match=f"build its engines with `vicort-build '{folder}'`"):
        EngineSet.open(folder)
    with pytest.raises(EngineError) as caught:
        EngineSet.open(tmp_path)
    assert "--out" not in str(caught.value), "vicort-build does not replace this folder"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_that_is_not_what_the_manifest_says(backend, tmp_path):
    graphs = read_manifest(engine_set(backend)).model_dump()["graphs"]
    features, *others = graphs["llm"]["inputs"]
    wider = features | {"shape": ("C", features["shape"][1] + 1)}
    graphs["llm"]["inputs"] = (wider, *others)
    damaged_copy(engine_set(backend), tmp_path / "set", graphs=graphs)
    assert "'features' has shape" in refusal(tmp_path / "set")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_file_and_a_file_that_is_no_graph(backend, tmp_path):
    manifest = damaged_copy(engine_set(backend), tmp_path / "set")
    (tmp_path / "set" / "tokens.onnx").write_bytes(b"not a graph")
    assert "tokens.onnx is damaged" in refusal(tmp_path / "set")
    seal(tmp_path / "set", manifest)
    assert "tokens.onnx is no ONNX graph" in refusal(tmp_path / "set")
    (tmp_path / "set" / "tokens.onnx").write_bytes(b"\x08\x09")  # no graph in it
    seal(tmp_path / "set", manifest)
    assert "cannot load" in refusal(tmp_path / "set")


def test_another_schema_a_missing_file_and_another_backend(tmp_path):
    source = engine_set("onnxruntime")
    damaged_copy(source, tmp_path / "schema")
    content = json.loads((tmp_path / "schema" / FILE_NAME).read_text()) | {"schema_version": 99}
    (tmp_path / "schema" / FILE_NAME).write_text(json.dumps(content))
    assert "schema version 99" in refusal(tmp_path / "schema")
    damaged_copy(source, tmp_path / "missing")
    (tmp_path / "missing" / "llm.bin").unlink()
    assert "llm.bin is missing" in refusal(tmp_path / "missing")
    damaged_copy(source, tmp_path / "backend", backend="tensorrt")
    assert "'tensorrt'" in refusal(tmp_path / "backend")


def test_where_engine_sets_lie(tmp_path, monkeypatch):
    checkout = locations.default_engine_dir("tiny", locations.SetKind("fp32", "openvino"))
    assert (checkout.parent.name, checkout.name) == ("engines", "tiny-fp32-openvino")
    assert (checkout.parent.parent / "pyproject.toml").is_file()
    assert (
        locations.default_engine_dir(
            "Qwen/Qwen2.5-VL-3B-Instruct", locations.SetKind("bf16", "openvino")
        ).name
        == "qwen2.5-vl-3b-instruct-bf16-openvino"
    )
    monkeypatch.setattr(locations, "HERE", tmp_path / "site-packages" / "vicort")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locations.engines_root().is_relative_to(tmp_path)
    assert locations.find_engine_dir("tiny") is None
    built = locations.default_engine_dir("tiny", locations.SetKind("fp32", "onnxruntime"))
    built.mkdir(parents=True)
    (built / FILE_NAME).write_text("{}")
    assert locations.find_engine_dir("tiny") == built
    later = locations.default_engine_dir("tiny", locations.SetKind("fp32", "openvino"))
    later.mkdir()
    (later / FILE_NAME).write_text("{}")
    os.utime(built / FILE_NAME, (1000, 1000))
    assert locations.find_engine_dir("tiny") == later
    os.utime(later / FILE_NAME, (500, 500))
    assert locations.find_engine_dir("tiny") == built


def test_sets_of_every_kind_have_their_own_folder_and_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "engines_root", lambda: tmp_path)
    folders = {
        locations.default_engine_dir(
            "tiny", locations.SetKind(precision, "openvino", weights, kv, activations)
        )
        for precision in ("fp32", "bf16")
        for weights in (None, "int8", "int4")
        for kv in ("float", "int8")
        for activations in (None, "int8")
    }
    assert len(folders) == 24
    for folder in folders:
        folder.mkdir()
        (folder / FILE_NAME).write_text("{}")
        assert locations.find_engine_dir("tiny") == folder
        (folder / FILE_NAME).unlink()


def test_a_set_of_this_schema_is_preferred_to_a_newer_one_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "engines_root", lambda: tmp_path)
    old = locations.default_engine_dir("tiny", locations.SetKind("fp32", "openvino"))
    old.mkdir()
    (old / FILE_NAME).write_text('{"schema_version": 1}')
    assert locations.find_engine_dir("tiny") == old
    good = locations.default_engine_dir("tiny", locations.SetKind("fp32", "onnxruntime"))
    good.mkdir()
    (good / FILE_NAME).write_text("{}")
    os.utime(good / FILE_NAME, (500, 500))
    assert locations.find_engine_dir("tiny") == good


def test_engines_for_a_gpu_are_found_only_where_its_driver_is(tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "engines_root", lambda: tmp_path)
    built = locations.default_engine_dir("tiny", locations.SetKind("bf16", "tensorrt"))
    built.mkdir()
    (built / FILE_NAME).write_text("{}")
    monkeypatch.setattr(locations, "has_nvidia_driver", lambda: False)
    assert locations.find_engine_dir("tiny") is None
    monkeypatch.setattr(locations, "has_nvidia_driver", lambda: True)
    assert locations.find_engine_dir("tiny") == built


def test_what_openvino_refuses_a_file_for_is_its_last_line_that_says_something(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    graph = read_manifest(engine_set("openvino")).graphs["vision"]
    with pytest.raises(EngineError) as caught:
        OpenVinoEngine(tmp_path / "bad.onnx", graph, threads=1, streams=1)
    reason = str(caught.value).removeprefix(f"OpenVINO cannot load {tmp_path / 'bad.onnx'}: ")
    assert reason.strip()
    assert "\n" not in reason
    assert _reason(RuntimeError("first\nthe cause\n\n")) == "the cause"


@pytest.mark.parametrize("kind", ["graph", "embedding"])
def test_a_file_that_is_used_must_be_one_that_was_compared(kind, tmp_path):
    """Else a manifest could leave out the hash of what it was changed for."""
    source = engine_set("onnxruntime")
    found = read_manifest(source)
    name = found.graphs["llm"].file if kind == "graph" else found.embedding.file
    folder = tmp_path / "set"
    shutil.copytree(source, folder)
    kept = {key: value for key, value in found.files.items() if key != name}
    found.model_copy(update={"files": kept}).write(folder)
    with pytest.raises(EngineError, match="but uses it: rebuild with") as caught:
        EngineSet.open(folder)
    assert name in str(caught.value)


def test_a_file_of_another_size_is_refused_without_reading_it(tmp_path, monkeypatch):
    source, folder = engine_set("onnxruntime"), tmp_path / "set"
    shutil.copytree(source, folder)
    with (folder / "chat_template.jinja").open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    monkeypatch.setattr(manifest_module, "fingerprint", fingerprint_of_none_so_large)
    with pytest.raises(EngineError, match=r"chat_template.jinja is damaged \(1099511627776 bytes"):
        read_manifest(folder)


def fingerprint_of_none_so_large(path):
    assert path.stat().st_size < 1 << 30
    return fingerprint(path)


def test_a_size_that_has_one_value_may_be_fixed_in_the_engine():
    def graph(least, most):
        return GraphSpec(
            file="vision.onnx",
            inputs=(),
            outputs=(TensorSpec(name="features", dtype="float32", shape=("U", 8)),),
            dimensions={"U": Dimension(min=least, opt=most, max=most)},
        )

    fixed = [TensorSpec(name="features", dtype="float32", shape=(1, 8))]
    assert describe_mismatch(graph(1, 1), [], fixed) is None
    assert describe_mismatch(graph(1, 8), [], fixed)
    assert describe_mismatch(graph(2, 2), [], fixed)


def test_a_closed_set_is_refused_by_what_would_use_it():
    engines = EngineSet.open(engine_set("openvino"))
    engines.close()
    engines.close()
    for use in (Session.open, SharedVision):
        with pytest.raises(EngineError, match=r"is closed: open it again$"):
            use(engines)


def test_a_forked_child_is_refused_what_needs_the_threads_of_its_parents_engines():
    with EngineSet.open(engine_set("openvino")) as engines:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's own would not end it
            signal.alarm(20)
            refused = 0
            for use in (Session.open, SharedVision):
                try:
                    use(engines)
                except EngineError as error:
                    refused += "forked child" in str(error)
            os._exit(0 if refused == 2 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
