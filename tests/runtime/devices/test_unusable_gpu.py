"""A GPU that cannot be used, or not by everything: one line each, over the real cuda.core and a
stand-in for NVIDIA's driver."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support import processes
from support.manifests import manifest
from support.stand_in_driver.child import environment
from support.stand_in_driver.failing_streams import (
    opened_with,
    resized_where_dali_fails,
    room_for,
    stream_with_memory,
    told_without_captures,
)

from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import FILE_NAME, fingerprint
from vicort.runtime.packages import check_version

MB = 1_000_000
ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = PROJECT["optional-dependencies"]["tensorrt"]


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (
            {"driver_version": 12090},
            r"supports CUDA 12\.9, version 13\.0 is required: install driver",
        ),
        ({"devices": 0}, "no GPU 0: there is none: see `nvidia-smi`, or run on a CPU"),
        ({"init_result": 802}, r"does not start \(CUDA_ERROR_SYSTEM_NOT_READY\): see `nvidia-smi`"),
    ],
)
def test_a_driver_that_cannot_be_used_is_one_line(switches, said, gpu_child):
    assert re.search(said, line := gpu_child.call(opened_with, **switches))
    assert "\n" not in line


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (46, "GPU 0 is held by another process, .*: end that process"),
        (2, "GPU 0 has no memory left for this process: end a process"),
    ],
)
def test_a_gpu_that_another_process_holds_is_one_line(result, said):
    ended = processes.python(
        "-c",
        "from vicort.runtime.devices.cuda import open_gpu; open_gpu()",
        text=True,
        environment=environment() | {"STAND_IN_DRIVER": f"context_result={result}"},
    )
    _, printed = ended.communicate(timeout=60)
    assert ended.returncode
    kind, _, line = printed.splitlines()[-1].partition(": ")
    assert kind.endswith("DeviceError")
    assert re.search(said, line)


def test_vicort_run_says_it_in_one_line_and_ends_with_2(tmp_path):
    """Before engines are loaded, on a machine whose driver is too old."""
    pytest.importorskip("tensorrt_rtx")
    files = {}
    for name in ("llm.onnx", "embedding.bin"):
        (tmp_path / name).write_bytes(bytes(256))
        files[name] = fingerprint(tmp_path / name).model_dump()
    written = manifest(backend="tensorrt", flavour="tensorrt_rtx", precision="bf16", files=files)
    (tmp_path / FILE_NAME).write_text(json.dumps(written))
    ended = processes.python(
        *("-m", "vicort.runtime.cli.run", "testsrc:", "--engine-dir", str(tmp_path)),
        text=True,
        environment=environment() | {"STAND_IN_DRIVER": "driver_version=12090"},
    )
    _, printed = ended.communicate(timeout=60)
    assert ended.returncode == 2
    assert re.fullmatch(r"vicort-run: the NVIDIA driver supports CUDA 12\.9[^\n]*\n", printed)


# ---- memory ----


PLANS = {
    name: {"file": f"{name}.plan", "inputs": [], "outputs": [], "dimensions": {}}
    for name in ("llm", "vision")
}
SET = manifest(backend="tensorrt", precision="bf16", graphs=PLANS, build_command="vicort-build m")


@pytest.mark.parametrize(
    ("changes", "total", "others", "advice"),
    [
        ({}, 9000, 0, None),
        (
            {},
            9000,
            2900,
            "end the processes that hold the rest.*--weights int8.*int4.*smaller model",
        ),
        ({}, 6000, 0, "build with --weights int8, or build with --weights int4, or take a smaller"),
        ({}, 3000, 0, "free: build with --weights int4, or take a smaller model"),
        ({}, 1000, 0, "free: take a smaller model"),
        ({"weights": "int8"}, 6000, 0, "free: build with --weights int4, or take a smaller model"),
        ({"weights": "int4"}, 6000, 0, "free: take a smaller model"),
    ],
)
def test_engines_that_do_not_fit_name_what_would(changes, total, others, advice, gpu_child):
    sizes = {"llm.plan": 6000 * MB, "vision.plan": 500 * MB}
    line = gpu_child.call(room_for, sizes, SET | changes, total * MB, others * MB)
    if advice is None:
        assert line == ""
        return
    assert line.startswith(
        f"the engines of FOLDER and their runs take 6500 MB, and stand-in GPU has "
        f"{total - others} of {total} MB"
    )
    assert re.search(advice, line)
    assert line.endswith("(it was built by `vicort-build m`)")


def test_a_stripped_plan_needs_room_for_the_weights_that_it_is_given(gpu_child):
    graphs = {"llm": PLANS["llm"] | {"refit_from": "llm.onnx"}}
    sizes = {"llm.plan": 2 * MB, "llm.onnx": MB, "llm.onnx.data": 900 * MB}
    line = gpu_child.call(room_for, sizes, SET | {"graphs": graphs}, 800 * MB, 0)
    assert "take 903 MB, and stand-in GPU has 800 of 800 MB free" in line


def test_the_workspace_of_each_stream_counts(gpu_child):
    """Of chunks and of questions; of the largest run, whose rotated keys take 64 MiB."""
    tensors = {"features": ["C", 4], "table": ["S", 1, 1, "N"]}
    inputs = [{"name": n, "dtype": "int32", "shape": shape} for n, shape in tensors.items()]
    largest = {"C": 2048, "S": 1, "N": 1 << 16}
    dimensions = {name: {"min": 1, "opt": 1, "max": size} for name, size in largest.items()}
    llm = PLANS["llm"] | {"inputs": inputs, "dimensions": dimensions}
    lines = [
        gpu_child.call(room_for, {"llm.plan": 500 * MB}, SET | {"graphs": {"llm": graph}}, MB, 0)
        for graph in (llm, llm | {"plugin_layers": 1})
    ]
    without, taken = (int(re.search(r"their runs take (\d+) MB", line)[1]) for line in lines)
    assert without == 500
    assert taken >= 500 + 2 * (64 << 20) // MB


@pytest.mark.parametrize(
    ("free", "pinned", "said"),
    [
        (
            500_000,
            1 << 30,
            r"^stand-in GPU has 0 of \d+ MB free, the pages .* take 1: give --memory",
        ),
        (
            930_000,
            1 << 30,
            r"^out of device memory: buffers requested .*hold \d+\.\d of \d+\.\d MB",
        ),
        (1 << 30, 1 << 14, r"^the driver cannot lock .* give less --host-memory"),
    ],
)
def test_memory_that_other_processes_hold_is_told_from_a_gpu_that_is_too_small(
    free, pinned, said, gpu_child
):
    outcome = gpu_child.call(stream_with_memory, free, pinned)
    ((call, kind, line),) = outcome.errors
    assert (call, kind) == ("open", "DeviceError")
    assert re.search(said, line)
    assert "\n" not in line
    assert outcome.threads == []
    assert outcome.printed == ""


# ---- captures, and packages ----


def test_where_nothing_can_be_captured_answers_are_the_same_and_one_warning_says_so(gpu_child):
    is_equal, printed = gpu_child.call(told_without_captures, "vicostream")
    assert is_equal
    lines = printed.splitlines()
    engines = {line.partition(":")[0] for line in lines}
    assert engines == {"llm.plan", "vision.plan", "tokens.plan", "head.plan"}
    assert len(lines) == len(engines)
    for line in lines:
        assert "not captured in a CUDA graph" in line
        assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in line


def test_where_dali_cannot_use_the_gpu_frames_are_resized_on_the_cpu_and_one_warning_says_so(
    gpu_child,
):
    (warned,), seen = gpu_child.call(resized_where_dali_fails)
    assert re.search(r"^NVIDIA DALI cannot use the gpu .*; frames are resized on the CPU", warned)
    assert seen == [7, 9]


@pytest.mark.parametrize(
    ("found", "suits"),
    [("0.7.0", False), ("1.0.0", False), ("1.0.1", True), ("1.2.2", True), ("2.0.0", False)],
)
def test_a_version_of_cuda_core_that_does_not_work_is_refused(found, suits, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: found)
    wanted = next(each for each in REQUIRED if each.startswith("cuda-core"))
    monkeypatch.setattr(metadata, "requires", lambda name: [f"{wanted}; extra == 'tensorrt'"])
    if suits:
        check_version("cuda-core")
        return
    with pytest.raises(
        ConfigError, match=rf"^cuda-core {found} is installed.*`pip install 'cuda-c"
    ):
        check_version("cuda-core")
