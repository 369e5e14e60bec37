"""vicort's driver over the real cuda.core, and what a GPU that cannot be used says."""

import ast
from pathlib import Path

import pytest
from cuda.bindings import driver as cu
from support.stand_in_driver import driver_calls

from vicort.runtime.devices.cuda import cuda_core, gpu
from vicort.runtime.errors import DeviceError

SOURCES = [Path(module.__file__) for module in (cuda_core, gpu)]


def calls_of_bindings():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and getattr(node.func.value, "id", "") == "cu"
            ):
                yield node.func.attr, len(node.args)


def test_the_gpu_is_described_as_the_driver_does(gpu_child):
    assert gpu_child.call(driver_calls.facts) == ((9, 0), 132, 13000, 80 << 30)


def test_urgent_streams_get_the_highest_priority(gpu_child):
    assert gpu_child.call(driver_calls.priorities) == [0, -5]


def test_memory_is_taken_at_once_and_given_back_at_once(gpu_child):
    aligned, before, held, after, pinned = gpu_child.call(driver_calls.allocations)
    assert aligned
    assert (before - held, after, pinned) == (2 << 20, before, 0)


def test_full_memory_is_told_from_other_failures(gpu_child):
    full, full_pinned, *failed = gpu_child.call(driver_calls.full_memory)
    assert full.startswith("MemoryError")
    assert full_pinned.startswith("MemoryError")
    expected = "DeviceError: CUDA failed (CUDA_ERROR_INVALID_CONTEXT): see `nvidia-smi`"
    assert failed == [f"{expected}, then run again"] * 2


def test_bytes_go_to_the_device_and_back_in_the_order_of_the_stream(gpu_child):
    assert gpu_child.call(driver_calls.copies) == [1, 1, 7, 7]


def test_events_have_a_time_where_it_is_asked_for(gpu_child):
    passes, done, without = gpu_child.call(driver_calls.events)
    assert passes
    assert done
    assert without.startswith("DeviceError: CUDA failed")


def test_every_thread_may_call(gpu_child):
    assert gpu_child.call(driver_calls.other_threads) == [None] * 3


def test_a_launch_fills_the_parameters_that_the_cubin_lists(gpu_child):
    seen, too_much_shared, no_grid = gpu_child.call(driver_calls.launches)
    pointers = [512 + i for i in range(6)]
    assert seen == [
        "scatter_tokens",
        [3, 2, 1],
        [128, 1, 1],
        100 << 10,
        [*pointers, -3, 512 + 7, 512 + 8],
    ]
    assert too_much_shared.startswith("DeviceError: CUDA failed (CUDA_ERROR_INVALID_VALUE")
    assert no_grid.startswith("DeviceError: CUDA failed")


def test_a_capture_runs_nothing_and_its_graph_does_all_of_it_each_time(gpu_child):
    found, elsewhere, is_clean = gpu_child.call(driver_calls.captures)
    assert found == [1, 5, 5]
    assert elsewhere == [None]  # other threads may allocate and wait meanwhile
    assert is_clean


def test_what_is_illegal_in_a_capture_fails_and_leaves_the_stream_usable(gpu_child):
    for name, (error, afterwards) in gpu_child.call(driver_calls.illegal_in_a_capture).items():
        assert error, name
        assert error.startswith("DeviceError: CUDA failed"), name
        assert afterwards is None, name


def test_every_function_of_cudas_bindings_that_is_named_was_called(gpu_child):
    named = {name for name, _ in calls_of_bindings() if name.startswith("cu")}
    assert len(named) > 10
    assert {
        name.replace("Instantiate", "InstantiateWithFlags") for name in named
    } <= gpu_child.call(driver_calls.called_by_all) | {"cuGetErrorName"}


def test_a_status_that_is_no_success_is_told_by_its_name():
    with pytest.raises(cuda_core.CudaFailure, match="CUDA_ERROR_INVALID_VALUE"):
        cuda_core.checked((cu.CUresult.CUDA_ERROR_INVALID_VALUE, None))
    assert cuda_core.checked((cu.CUresult.CUDA_SUCCESS, 1, 2)) == (1, 2)
    assert cuda_core.checked((cu.CUresult.CUDA_SUCCESS,)) is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            ("CUDA_SUCCESS", 12090, 1, 0),
            "supports CUDA 12.9, version 13.0 is required: install driver 580",
        ),
        (("CUDA_SUCCESS", 13000, 1, 1), "no GPU 1: GPUs 0 to 0 are there"),
        (("CUDA_ERROR_NO_DEVICE", 13000, 0, 0), "no GPU 0: there is none"),
        (
            ("CUDA_ERROR_SYSTEM_NOT_READY", 13000, 0, 0),
            "does not start (CUDA_ERROR_SYSTEM_NOT_READY)",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_in_one_line(found, told):
    with pytest.raises(DeviceError) as failure:
        gpu.check_driver(*found)
    assert told in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "`" in str(failure.value)


def test_a_gpu_that_will_do_passes():
    gpu.check_driver("CUDA_SUCCESS", 13000, 1, 0)


def test_a_machine_without_a_driver_is_told_so_in_one_line(monkeypatch):
    def no_library(flags):
        raise RuntimeError("the library is not there:\nsearch")

    monkeypatch.setattr(cu, "cuInit", no_library)
    with pytest.raises(
        DeviceError,
        match=r"^no NVIDIA driver is installed: install version 580 or newer, "
        r"or [^\n]*`vicort-build[^\n]*$",
    ):
        gpu._open_driver(0)


def test_a_gpu_that_does_not_open_is_told_in_one_line(monkeypatch):
    def mixed(ordinal):
        raise ValueError("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:\nmixed")

    answers = {"cuInit": (), "cuDriverGetVersion": (13000,), "cuDeviceGetCount": (1,)}
    for name, answer in answers.items():
        monkeypatch.setattr(
            cu, name, lambda *args, answer=answer: (cu.CUresult.CUDA_SUCCESS, *answer)
        )
    monkeypatch.setattr(cuda_core, "CudaCoreDriver", mixed)
    with pytest.raises(
        DeviceError,
        match=r"^GPU 0 cannot be opened \(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: mixed\): see `nvid",
    ):
        gpu._open_driver(0)


def test_the_gpu_is_looked_for_once_in_a_process(monkeypatch):
    looked = []

    def look(ordinal):
        looked.append(ordinal)
        raise DeviceError("no driver")

    monkeypatch.setattr(gpu, "_found", {})
    monkeypatch.setattr(gpu, "_open_driver", look)
    for _ in range(3):
        with pytest.raises(DeviceError, match="no driver"):
            gpu.open_gpu()
    assert looked == [0]
