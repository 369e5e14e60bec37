"""One graph of an engine set, run on arrays of the host."""

from __future__ import annotations

import numpy as np

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import GraphName

Arrays = dict[str, np.ndarray]


def run_engine(engines: EngineSet, graph: GraphName, inputs: Arrays, runs: int = 1) -> Arrays:
    """The outputs of the last of `runs` runs with the same addresses, on a new device of the
    set."""
    device = engines.new_device()
    try:
        stream = device.stream("verify")
        return stream.run(_run_engine, device, stream, engines.engine(graph), inputs, runs).done()
    finally:
        device.close()


def _run_engine(
    device: Device, stream: Stream, engine: Engine, inputs: Arrays, runs: int
) -> Arrays:
    bound = bind(device, stream, engine, inputs)
    for _ in range(runs):
        engine.enqueue(bound, stream)
    names = [spec.name for spec in engine.signature.outputs]
    return {
        name: np.array(array)
        for name, array in zip(
            names, device.read(stream, *(bound[name] for name in names)), strict=True
        )
    }


def bind(device: Device, stream: Stream, engine: Engine, inputs: Arrays) -> dict[str, Array]:
    """Inputs on the device in the engine's types, and arrays for its outputs. Call from the
    stream's work."""
    bound: dict[str, Array] = {}
    for spec in engine.signature.inputs:
        array = inputs[spec.name].astype(numpy_dtype(spec.dtype))
        bound[spec.name] = device.empty(array.shape, array.dtype)
        device.upload(bound[spec.name], array, stream)
    for name, array in output_arrays(engine, inputs).items():
        bound[name] = device.zeros(array.shape, array.dtype)
    return bound


def output_arrays(engine: Engine, inputs: Arrays) -> Arrays:
    """Zero arrays for a graph's outputs, with sizes that follow from its inputs."""
    sizes = {
        name: size
        for spec in engine.signature.inputs
        for name, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
        if isinstance(name, str)
    }
    if "2*U" in sizes:
        sizes["U"] = sizes["2*U"] // UNIT_FRAMES
    if "U" in sizes and "features" in inputs:
        sizes["U*P"] = sizes["U"] * inputs["features"].shape[1]
    return {
        spec.name: np.zeros(
            [size if isinstance(size, int) else sizes[size] for size in spec.shape],
            numpy_dtype(spec.dtype),
        )
        for spec in engine.signature.outputs
    }
