"""The real CUDA driver, as far as names go, and what a GPU that cannot be used says."""

import ast
import ctypes
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import cuda.core
import pytest
from cuda.bindings import driver as cu
from cuda.core._kernel_arg_handler import ParamHolder

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


def test_every_call_of_cudas_bindings_has_the_arguments_that_they_take():
    calls = {call for call in calls_of_bindings() if call[0].startswith("cu")}
    assert len(calls) > 10
    for name, count in calls:
        signature = getattr(cu, name).__doc__.strip().splitlines()[0]
        inside = re.fullmatch(rf"{name}\((.*)\)", signature).group(1)
        depth_free = re.sub(r"\[[^\]]*\]", "", inside)
        assert count == (len(depth_free.split(",")) if inside else 0), signature


def test_every_name_of_cudas_bindings_is_there():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names, root = [], node
                while isinstance(root, ast.Attribute):
                    names.insert(0, root.attr)
                    root = root.value
                if getattr(root, "id", "") == "cu":
                    found = cu
                    for name in [each for each in names if each not in ("name", "value")]:
                        found = getattr(found, name)


@pytest.mark.parametrize(
    ("owner", "method", "arguments"),
    [
        ("Device", "create_stream", ["options"]),
        ("Device", "set_current", []),
        ("Stream", "record", ["options"]),
        ("Stream", "wait", ["event_or_stream"]),
        ("Stream", "sync", []),
        ("Stream", "close", []),
        ("Stream", "from_handle", ["handle"]),
        ("Event", "sync", []),
        ("DeviceMemoryResource", "allocate", ["size", "stream"]),
        ("LegacyPinnedMemoryResource", "allocate", ["size"]),
        ("Buffer", "close", ["stream"]),
        ("ObjectCode", "from_cubin", ["module"]),
        ("ObjectCode", "get_kernel", ["name"]),
    ],
)
def test_cuda_core_has_the_methods_that_the_driver_calls(owner, method, arguments):
    found = getattr(getattr(cuda.core, owner), method)
    signature = (
        found.__doc__.strip().splitlines()[0]
        if "(" in found.__doc__.splitlines()[0]
        else ", ".join(found.__code__.co_varnames)
    )
    assert all(re.search(rf"\b{name}\b", signature) for name in arguments), signature


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Device", ["name", "compute_capability", "properties", "device_id"]),
        ("Stream", ["handle"]),
        ("Event", ["is_done", "__sub__"]),
        ("Buffer", ["handle"]),
        ("Kernel", ["handle"]),
    ],
)
def test_cuda_core_has_the_attributes_that_the_driver_reads(owner, names):
    assert all(hasattr(getattr(cuda.core, owner), name) for name in names)


def test_cuda_core_takes_the_options_and_the_kernel_arguments_that_the_driver_gives():
    cuda.core.StreamOptions(nonblocking=True, priority=-5)
    cuda.core.EventOptions(timing_enabled=True, blocking_sync=True)
    config = cuda.core.LaunchConfig(grid=(1, 2, 3), block=(128, 1, 1), shmem_size=5)
    assert (config.grid, config.block) == ((1, 2, 3), (128, 1, 1))
    values = (("pointer", 1 << 40), ("i32", -3), ("i64", 1 << 40), ("f32", 0.5))
    holder = ParamHolder(tuple(cuda_core.ARGUMENT_TYPES[kind](value) for kind, value in values))
    addresses = (ctypes.c_void_p * 4).from_address(holder.ptr)
    types = (ctypes.c_int64, ctypes.c_int32, ctypes.c_int64, ctypes.c_float)
    assert [kind.from_address(at).value for kind, at in zip(types, addresses, strict=True)] == [
        value for _, value in values
    ]


class FakeCoreStream:
    def __init__(self, calls, handle, options=None):
        self.calls = calls
        self.handle = handle
        self.options = options

    def record(self, options):
        self.calls.append(("record", self.handle, options.timing_enabled, options.blocking_sync))
        return SimpleNamespace(is_done=True, sync=lambda: self.calls.append(("event sync",)))

    def wait(self, event):
        self.calls.append(("wait", self.handle))

    def sync(self):
        self.calls.append(("sync", self.handle))

    def close(self):
        self.calls.append(("close", self.handle))


class FakeBuffer:
    def __init__(self, calls, handle):
        self.calls, self.handle = calls, handle

    def close(self, stream=None):
        self.calls.append(("free", self.handle, stream.handle if stream else None))


@pytest.fixture
def real_driver(monkeypatch):
    """The driver on stand-ins of `cuda.core`'s classes and of `cuda.bindings`' functions, which
    record their calls in `.calls`."""
    calls, handles = [], iter(range(1, 100))
    device = SimpleNamespace(
        name="H200",
        device_id=0,
        compute_capability=SimpleNamespace(major=9, minor=0),
        properties=SimpleNamespace(multiprocessor_count=132),
        set_current=lambda: calls.append(("current", threading.get_ident())),
        create_stream=lambda options: FakeCoreStream(calls, next(handles), options),
    )
    pool = SimpleNamespace(allocate=lambda size, stream: FakeBuffer(calls, 256 * size))
    code = SimpleNamespace(get_kernel=lambda name: SimpleNamespace(handle=77, name=name))
    stand_ins = {
        "Device": lambda ordinal: device,
        "DeviceMemoryResource": lambda device, options: pool,
        "LegacyPinnedMemoryResource": lambda: SimpleNamespace(
            allocate=lambda size: FakeBuffer(calls, 4096)
        ),
        "Stream": SimpleNamespace(from_handle=lambda handle: FakeCoreStream(calls, handle)),
        "ObjectCode": SimpleNamespace(from_cubin=lambda cubin: code),
        "launch": lambda stream, config, kernel, *args: calls.append(
            ("launch", stream.handle, config, kernel.name, args)
        ),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(cuda_core, name, stand_in)
    answers = {
        "cuDriverGetVersion": (13000,),
        "cuCtxGetStreamPriorityRange": (0, -5),
        "cuMemGetInfo": (3, 4),
        "cuStreamEndCapture": ("graph",),
        "cuGraphInstantiate": ("exec",),
    }
    for name in {name for name, _ in calls_of_bindings() if name.startswith("cu")}:

        def call(*args, name=name):
            calls.append((name, *args))
            return (cu.CUresult.CUDA_SUCCESS, *answers.get(name, ()))

        monkeypatch.setattr(cu, name, call)
    driver = cuda_core.CudaCoreDriver(0)
    driver.calls, driver.pool, driver.answers = calls, pool, answers
    calls.clear()
    return driver


def test_the_real_driver_gives_urgent_streams_the_highest_priority(real_driver):
    assert [real_driver.create_stream(urgent).options.priority for urgent in (False, True)] == [
        0,
        -5,
    ]


def test_the_real_driver_allocates_in_the_order_of_its_own_stream_and_waits_for_it(real_driver):
    pointer = real_driver.allocate(10)
    real_driver.free(pointer)
    own = real_driver._allocations.handle
    assert real_driver.calls == [("sync", own), ("free", pointer, own), ("sync", own)]


def test_the_real_driver_tells_full_memory_from_other_failures(real_driver):
    def refuse(message):
        def allocate(size, stream):
            raise cuda.core._utils.cuda_utils.CUDAError(message)

        return allocate

    real_driver.pool.allocate = refuse("CUDA_ERROR_OUT_OF_MEMORY: The API call failed")
    with pytest.raises(MemoryError):
        real_driver.allocate(10)
    real_driver.pool.allocate = refuse("CUDA_ERROR_ILLEGAL_ADDRESS:\n while loading")
    with pytest.raises(
        DeviceError,
        match=r"^CUDA failed \(CUDA_ERROR_ILLEGAL_ADDRESS: while loading\): see `nvidia-smi`",
    ):
        real_driver.allocate(10)


def test_the_real_driver_makes_the_gpu_current_once_on_each_thread(real_driver):
    threads = [
        threading.Thread(target=lambda: [real_driver.memory() for _ in range(3)]) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    assert [call[0] for call in real_driver.calls].count("current") == 2


def test_the_real_driver_launches_with_typed_arguments_on_the_stream_of_that_handle(real_driver):
    kernel = real_driver.load(b"cubin", "attention", 100 << 10)
    real_driver.launch(
        kernel, (3, 2, 1), 128, 100 << 10, 4711, (("pointer", 5), ("i32", -1), ("f32", 0.5))
    )
    attribute, call = real_driver.calls
    assert attribute[:2] == (
        "cuKernelSetAttribute",
        cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
    )
    assert attribute[2:4] == (100 << 10, 77)
    _, handle, config, name, args = call
    assert (handle, config.grid, config.block, config.shmem_size, name) == (
        4711,
        (3, 2, 1),
        (128, 1, 1),
        100 << 10,
        "attention",
    )
    assert [getattr(arg, "value", arg) for arg in args] == [5, -1, 0.5]
    assert [type(arg) for arg in args] == [int, ctypes.c_int32, ctypes.c_float]


def test_the_real_driver_asks_for_no_shared_memory_that_every_kernel_has(real_driver):
    real_driver.load(b"cubin", "scatter", 48 << 10)
    assert real_driver.calls == []


def test_the_real_driver_captures_what_its_own_thread_does_alone(real_driver):
    stream = real_driver.create_stream(False)
    real_driver.begin_capture(stream)
    graph = real_driver.end_capture(stream)
    real_driver.launch_graph(graph, stream)
    real_driver.close_graph(graph)
    assert [call[0] for call in real_driver.calls] == [
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]
    assert real_driver.calls[0][2] == cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert graph == "exec"


def test_a_status_that_is_no_success_is_told_by_its_name():
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_VALUE"):
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
    def busy(ordinal):
        raise ValueError("CUDA_ERROR_DEVICE_UNAVAILABLE:\nbusy")

    answers = {"cuInit": (), "cuDriverGetVersion": (13000,), "cuDeviceGetCount": (1,)}
    for name, answer in answers.items():
        monkeypatch.setattr(
            cu, name, lambda *args, answer=answer: (cu.CUresult.CUDA_SUCCESS, *answer)
        )
    monkeypatch.setattr(cuda_core, "CudaCoreDriver", busy)
    with pytest.raises(
        DeviceError,
        match=r"^GPU 0 cannot be opened \(CUDA_ERROR_DEVICE_UNAVAILABLE: busy\): see `nvidia-smi`",
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
