"""The real `InductorEngine` on a simulated GPU: packages whose code is a NumPy function, and which
give new arrays as PyTorch's do."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
from support.simulated_cuda import OUTPUTS, SimulatedEngineSet, bare
from support.simulated_tensorrt import graph_specs

from vicort.benchmarks.gpu.inductor.capture_pools import CapturePools
from vicort.benchmarks.gpu.inductor.inductor_engine import InductorEngine
from vicort.runtime.devices.cuda import DeviceArray


class Result:
    """An output that the package allocated: it has a value once the package's turn on the stream
    has come."""

    def __init__(self):
        self.value = None


class SimulatedPackage:
    """Serves one run at a time, as a package that is loaded for one thread does."""

    def __init__(self, side, name, function):
        self._side = side
        self._name = name
        self._function = function
        self.streams = set()

    def __call__(self, *inputs):
        stream, driver = self._side.stream, self._side.driver
        self.streams.add(id(stream.raw))
        arrays, results = [bare(array) for array in inputs], [Result() for _ in OUTPUTS[self._name]]
        driver.enqueue(stream.raw, lambda: self._run(arrays, results), self._name)
        return results[0] if len(results) == 1 else results

    def _run(self, arrays, results):
        at, names = (
            self._side.driver.array_at,
            [spec.name for spec in self._side.specs[self._name].inputs],
        )
        paged = ("pool", "where")  # of which the table's slots are read, and no others
        inputs = {
            name: at(array, watched=name not in paged)
            for name, array in zip(names, arrays, strict=True)
        }
        if "table" in inputs:
            for slot in np.unique(inputs["table"][inputs["table"] >= 0]).tolist():
                for name, array in zip(names, arrays, strict=True):
                    if name in paged:
                        at(array[slot : slot + 1])
        found = self._function(**inputs, **dict.fromkeys(OUTPUTS[self._name]))
        for name, result in zip(OUTPUTS[self._name], results, strict=True):
            result.value = np.array(found[name])


class SimulatedPool:
    """PyTorch aborts the process where one is destroyed while anything captures."""

    made = 0
    destroyed = 0

    def __init__(self):
        SimulatedPool.made += 1

    def __del__(self):
        SimulatedPool.destroyed += 1


class SimulatedSide:
    """What a lane asks of PyTorch on a GPU, of a simulated one."""

    captures = True
    pools = CapturePools()  # of the process, as PyTorch's

    def __init__(self, driver, specs, functions):
        self.driver = driver
        self.specs = specs
        self._functions = functions
        self._local = threading.local()
        self.loaded = []
        self.pools_used = set()
        self.captured_outside = 0

    @property
    def stream(self):
        return self._local.stream

    def load(self, path, constants):
        package = SimulatedPackage(self, path.stem, self._functions[path.stem])
        self.loaded.append(package)
        return package

    def tensor(self, array):
        return array

    def copy(self, target: DeviceArray, source: Result):
        out = bare(target)

        def run():
            value = source.value
            assert out.shape == value.shape, (out.shape, value.shape)
            self.driver.array_at(out, write=True)[...] = value

        self.captured_outside += self.stream.capturing and not self._local.pool
        self.driver.enqueue(self.stream.raw, run, "output")

    @contextmanager
    def on(self, stream):
        self._local.stream, self._local.pool = stream, None
        try:
            yield
        finally:
            del self._local.stream

    def new_pool(self):
        return SimulatedPool()

    @contextmanager
    def within(self, pool):
        self._local.pool = pool
        self.pools_used.add(id(pool))
        try:
            yield
        finally:
            self._local.pool = None


class SimulatedInductorSet(SimulatedEngineSet):
    """`SimulatedEngineSet` with the benchmarks' engines around it."""

    def __init__(self, seed=0, order=0, lag=0.0, **model_changes):
        super().__init__(seed, order, lag, **model_changes)
        specs = {
            name: spec.model_copy(update={"file": f"{name}.pt2"})
            for name, spec in graph_specs(self.model).items()
        }
        self.side = SimulatedSide(
            self.driver, specs, {name: getattr(self, name).function for name in specs}
        )
        for name, spec in specs.items():
            setattr(self, name, InductorEngine(self.folder / spec.file, spec, {}, self.side))
