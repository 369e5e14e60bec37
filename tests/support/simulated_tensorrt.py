"""The real `TensorRTEngine` on a simulated GPU: execution contexts whose plans are NumPy functions.

A context is held to what TensorRT asks for: its state is not changed while a captured graph of it
may still be replayed, and its memory is written by every run, so that two runs at once in one block
are a race.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from support.fake_tensorrt import FakeContext, FakePlan, FakeTensorRT
from support.simulated_cuda import OUTPUTS, Misuse, SimulatedEngineSet, poison

from vicort.runtime.devices.cuda import DeviceArray
from vicort.runtime.engines.tensorrt import TensorRTEngine
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec

TYPES = {"float32": "FLOAT", "int32": "INT32", "uint8": "UINT8"}
BYTES_PER_ROW = 1000  # of context memory


def graph_specs(model) -> dict[str, GraphSpec]:
    """The graphs of a toy model in float32."""
    m = model
    tokens, sized = m.unit_tokens, {"frames": ("uint8", "2*U", *(m.fixed_size or ()), 3)}
    if m.fixed_size is None:
        of_token = m.merge**2
        segments, patches = f"{of_token * m.patch}*P", f"{of_token}*P"
        tokens, sized = (
            "P",
            {
                "frames": ("uint8", "2*U", segments, 3 * m.patch),
                "segments": ("int32", segments),
                "places": ("int32", patches, 2),
                "windows": ("int32", "W", of_token * m.window**2),
                "cells": ("int32", patches),
                "row_major": ("int32", "P"),
            },
        )
    tensors = {
        "vision": (
            sized,
            {"features": ("float32", "U", tokens, m.width)},
        ),
        "tokens": (
            {
                "features": ("float32", "U", tokens, m.width),
                "threshold": ("float32", 1),
                "positions": ("int32", 1),
                "before": ("float32", tokens, m.width),
                "mode": ("int32", 1),
            },
            {
                "kept": ("int32", "U*P"),
                "count": ("int32", 1),
                "compact": ("float32", "U*P", m.width),
                "mean": ("float32", m.width),
            },
        ),
        "llm": (
            {
                "features": ("float32", "C", m.width),
                "pos": ("int32", "C", 3),
                "segment": ("int32", "C"),
                "until": ("int32", "C"),
                "ends": ("int32", "E"),
                "pool": ("float32", "P", m.layers, m.kv_heads, 2, m.page_tokens, m.head_dim),
                "where": ("int32", "P", 1, 1, m.page_tokens, 3),
                "table": ("int32", 1, 1, 1, "N"),
            },
            {
                "hidden": ("float32", "E", m.width),
                "k": ("float32", m.layers, "C", m.kv_heads, m.head_dim),
                "v": ("float32", m.layers, "C", m.kv_heads, m.head_dim),
                "q": ("float32", m.layers, m.query_heads, m.head_dim),
                "queries": ("float32", m.layers, m.observed_rows, m.query_heads, m.head_dim),
            },
        ),
        "head": (
            {"hidden": ("float32", "E", m.width)},
            {"logits": ("float32", "E", m.vocabulary)},
        ),
    }
    return {name: _graph(name, *sides) for name, sides in tensors.items()}


def _graph(name, inputs, outputs):
    sides = [
        tuple(TensorSpec(name=n, dtype=d, shape=shape) for n, (d, *shape) in side.items())
        for side in (inputs, outputs)
    ]
    sizes = {
        size for spec in (*sides[0], *sides[1]) for size in spec.shape if isinstance(size, str)
    }
    dimensions = {size: Dimension(min=1, opt=8, max=1 << 20) for size in sizes}
    return GraphSpec(file=f"{name}.plan", inputs=sides[0], outputs=sides[1], dimensions=dimensions)


class SimulatedPlan(FakePlan):
    def __init__(self, module, driver, name, spec, function):
        sides = [(each, "input") for each in spec.inputs] + [
            (each, "output") for each in spec.outputs
        ]
        tensors = [
            (t.name, mode, TYPES[t.dtype], tuple(-1 if isinstance(s, str) else s for s in t.shape))
            for t, mode in sides
        ]
        super().__init__(module, tensors)
        self.driver = driver
        self.name = name
        self.spec = spec
        self.function = function
        self.bytes_per_row = BYTES_PER_ROW

    def create_execution_context(self, strategy):
        return SimulatedContext(self, next(self._numbers))


class SimulatedContext(FakeContext):
    def __init__(self, engine, number):
        super().__init__(engine, number)
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None  # address, bytes
        self.version = 0  # of its state
        self.frozen = False  # by a graph

    def set_input_shape(self, name, shape):
        self.version += 1
        return super().set_input_shape(name, shape)

    def set_tensor_address(self, name, pointer):
        self.version += 1
        self.addresses[name] = pointer
        return True

    def set_device_memory(self, pointer, size):
        self.version += 1
        self.memory = pointer, size

    def execute_async_v3(self, stream):
        driver, version = self.engine.driver, self.version
        addresses, shapes, memory = dict(self.addresses), dict(self.shapes), self.memory

        def run():
            if self.frozen and version != self.version:
                raise Misuse("the context of a CUDA graph was changed")
            self._run(addresses, shapes, memory)

        raw = driver.stream_of(stream)
        self.frozen = self.frozen or raw.captured is not None
        driver.enqueue(raw, run, self.engine.name)
        if self.profiler:  # which waits for the run
            driver.synchronize(driver.record(raw))
            self.profiler.report_layer_time(f"all of {self.engine.name}", 1.0)
        return True

    def _run(self, addresses, shapes, memory):
        engine, driver = self.engine, self.engine.driver
        driver.bytes_at(
            memory[0], engine.bytes_per_row * next(iter(shapes.values()))[0], write=True
        )[:] = 0
        inputs = {
            spec.name: driver.array_at(
                DeviceArray(None, addresses[spec.name], shapes[spec.name], spec.dtype),
                watched=spec.name not in ("pool", "where"),
            )
            for spec in engine.spec.inputs
        }
        for name in ("pool", "where") if "table" in inputs else ():
            whole = DeviceArray(None, addresses[name], shapes[name], inputs[name].dtype)
            for slot in np.unique(inputs["table"][inputs["table"] >= 0]).tolist():
                driver.array_at(whole[slot : slot + 1])
        results = engine.function(**inputs, **dict.fromkeys(OUTPUTS[engine.name]))
        for spec in engine.spec.outputs:
            out = driver.array_at(
                DeviceArray(None, addresses[spec.name], results[spec.name].shape, spec.dtype),
                write=True,
            )
            poison(out.reshape(-1).view(np.uint8))
            out[...] = results[spec.name]


class SimulatedTensorRTSet(SimulatedEngineSet):
    """`SimulatedEngineSet` with the real engines of the runtime around it."""

    def __init__(self, seed=0, order=0, lag=0.0, **model_changes):
        super().__init__(seed, order, lag, **model_changes)
        with tempfile.TemporaryDirectory() as folder:
            for name, spec in graph_specs(self.model).items():
                path = Path(folder) / spec.file
                path.write_bytes(b"plan")
                module = FakeTensorRT(())
                module.engine = SimulatedPlan(
                    module, self.driver, name, spec, getattr(self, name).function
                )
                setattr(self, name, TensorRTEngine(path, spec, self.manifest, module, self.kernels))
