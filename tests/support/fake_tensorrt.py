"""A stand-in for a TensorRT module and a CUDA stream: it records every call in order, and can be
told to fail."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from vicort.runtime.engines.tensorrt import PluginHost
from vicort.runtime.errors import DeviceError


class FakeArray:
    """What an engine needs of a device array."""

    _next = itertools.count(1)
    flags = SimpleNamespace(c_contiguous=True)

    def __init__(self, shape, dtype, pointer=None) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.pointer = next(self._next) * 4096 if pointer is None else pointer

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * self.dtype.itemsize


class FakeStream:
    """Runs work at once. calls: the log that it shares with the engine's contexts."""

    def __init__(self, calls, handle=7) -> None:
        self.calls = calls
        self.handle = handle
        self.device = self
        self.notices = []
        self.refuses_capture = False

    def run(self, work, *args):
        value = work(*args)
        return SimpleNamespace(done=lambda: value)

    def empty(self, shape, dtype):
        self.calls.append(("allocate", shape[0]))
        return FakeArray(shape, dtype)

    def capture(self, work):
        self.calls.append(("begin capture",))
        work()
        if self.refuses_capture:
            raise DeviceError("the driver does not capture this")
        self.calls.append(("end capture",))
        return FakeGraph(self.calls)

    def memory(self):
        pass

    def notify(self, work, *args, failed=None):
        self.notices.append((work, args))


class FakeGraph:
    def __init__(self, calls) -> None:
        self.calls, self.closed = calls, False

    def launch(self, stream):
        assert not self.closed
        self.calls.append(("replay", stream.handle))

    def close(self):
        self.closed = True


class FakeContext:
    def __init__(self, engine, number) -> None:
        self.engine, self.number = engine, number
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profiler = None

    def _note(self, *call):
        self.engine.calls.append((self.number, *call))

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        self._note("shape", name, shape)
        return name not in self.engine.refused

    def update_device_memory_size_for_shapes(self):
        self._note("size")
        return self.engine.bytes_per_row * next(iter(self.shapes.values()))[0]

    def set_device_memory(self, pointer, size):
        self._note("memory", size)

    def set_tensor_address(self, name, pointer):
        self._note("address", name, pointer)
        return True

    def execute_async_v3(self, stream):
        self._note("execute", stream)
        if self.profiler:
            for name, ms in self.engine.layer_ms:
                self.profiler.report_layer_time(name, ms)
        if self.engine.host_failure:
            self.engine.module.host.keep(self.engine.host_failure)
        return self.engine.host_failure is None and not self.engine.fails


class FakePlan:
    """tensors: (name, mode, type, shape) of each."""

    def __init__(self, module, tensors) -> None:
        self.module, self.tensors = module, {name: facts for name, *facts in tensors}
        self.calls: list[tuple] = []
        self.refused: set[str] = set()
        self.bytes_per_row = 1000
        self.device_memory_size_v2 = 1 << 40  # of the largest run
        self.fails = False
        self.host_failure = None
        # that a profiler is told, in this order
        self.layer_ms = [("norm", 0.5), ("product", 2.0), ("norm", 0.25)]
        self._numbers = itertools.count()

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_shape(self, name):
        return self.tensors[name][2]

    def create_execution_context(self, strategy):
        self.calls.append(("context", strategy))
        return FakeContext(self, next(self._numbers))


class FakeTensorRT:
    """In the place of a vicort.runtime.engines.tensorrt.TensorRT, of the full flavour."""

    flavour, version = "tensorrt", "11.4.0"
    IProfiler = object

    def __init__(self, tensors) -> None:
        self.module = self
        self.engine: FakePlan | None = FakePlan(self, tensors)
        self.logger = SimpleNamespace(reason=lambda: "the log's first error")
        self.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.host: PluginHost | None = None

    @contextmanager
    def plugins(self, kernels):
        self.host = PluginHost(kernels)
        yield self.host

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine)
