"""The arrays of one run of an engine, checked against its signature."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vicort.runtime.devices.device import Array
from vicort.runtime.manifest import GraphSpec, TensorSpec

Bindings = Mapping[str, Array]  # by tensor name, inputs and outputs


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy type of a manifest's type name; "bfloat16" is of ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # late: version 0.7 takes a second to import

    return np.dtype(ml_dtypes.bfloat16)


class BindingsCheck:
    """Checks, in microseconds, that every tensor of a graph is bound to a contiguous array of its
    type and of an allowed shape."""

    def __init__(self, graph: GraphSpec) -> None:
        self._graph = graph
        self._tensors = [
            (spec, numpy_dtype(spec.dtype)) for spec in (*graph.inputs, *graph.outputs)
        ]

    def __call__(self, bindings: Bindings) -> None:
        """Raises ValueError, which names the tensor and the reason: a bug in the caller, not a
        wrong user input."""
        sizes: dict[str, int] = {}
        for spec, dtype in self._tensors:
            array = bindings.get(spec.name)
            if array is None:
                raise ValueError(f"{self._graph.file}: nothing is bound to {spec.name!r}")
            if array.dtype != dtype:
                raise ValueError(
                    f"{self._graph.file}: {spec.name!r} is {array.dtype}, the engine takes "
                    f"{spec.dtype}"
                )
            if array.ndim != len(spec.shape) or not array.flags.c_contiguous:
                raise ValueError(
                    f"{self._graph.file}: {spec.name!r} {array.shape} is no contiguous array of "
                    f"shape {spec.shape}"
                )
            for size, wanted in zip(array.shape, spec.shape, strict=True):
                if size != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size)):
                    raise ValueError(
                        f"{self._graph.file}: {spec.name!r} has shape {array.shape}, the engine "
                        f"takes {spec.shape} with {sizes}"
                    )
        if len(bindings) != len(self._tensors):
            unknown = sorted(set(bindings) - {spec.name for spec, _ in self._tensors})
            raise ValueError(f"{self._graph.file}: the engine has no tensor {unknown}")
        for name, allowed in self._graph.dimensions.items():
            if not allowed.min <= sizes[name] <= allowed.max:
                raise ValueError(
                    f"{self._graph.file}: dimension {name} is {sizes[name]}, the engine takes "
                    f"{allowed.min} to {allowed.max}"
                )


def describe_mismatch(
    graph: GraphSpec, found_inputs: list[TensorSpec], found_outputs: list[TensorSpec]
) -> str | None:
    """The first difference between a manifest's signature and the tensors of a loaded engine; None
    if they agree.

    A dynamic dimension of the engine may be fixed in the manifest; the reverse only where the
    manifest allows a single size.
    """
    for side, expected, found in (
        ("input", graph.inputs, found_inputs),
        ("output", graph.outputs, found_outputs),
    ):
        real = {spec.name: spec for spec in found}
        if sorted(real) != sorted(spec.name for spec in expected):
            return f"its {side}s are {sorted(real)}, not {sorted(spec.name for spec in expected)}"
        for spec in expected:
            other = real[spec.name]
            if other.dtype != spec.dtype:
                return f"its {side} {spec.name!r} is {other.dtype}, not {spec.dtype}"
            if not _takes(other.shape, tuple(_only(graph, size) for size in spec.shape)):
                return (
                    f"its {side} {spec.name!r} has shape {list(other.shape)}, not "
                    f"{list(spec.shape)}"
                )
    return None


def _only(graph: GraphSpec, size: int | str) -> int | str:
    """The only value of a size, where it has one: exporters make it constant."""
    allowed = graph.dimensions.get(size) if isinstance(size, str) else None
    return allowed.max if allowed and allowed.min == allowed.max else size


def _takes(real: tuple[int | str, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether the shape of a loaded tensor allows the expected one: a dynamic dimension allows
    every size."""
    return len(real) == len(expected) and all(
        isinstance(size, str) or size == wanted for size, wanted in zip(real, expected, strict=True)
    )
