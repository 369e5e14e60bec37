"""The integers of a graph that is written, for another graph with the same matrices: these are
quantised once."""

from __future__ import annotations

import numpy as np
import onnx_ir
import torch

from vicort.export.weight_compression import SCALE_TYPES, Quantised


def written_integers(graph: onnx_ir.Graph) -> dict[str, Quantised]:
    """The int8 matrices that `compress` made of a graph, by the names of their parameters. Values
    are mapped from the file that they were written to."""
    found = {}
    for name, value in graph.initializers.items():
        parameter = name.removesuffix(".values")
        values, scales = value.const_value, graph.initializers.get(f"{parameter}.scales")
        if (
            parameter != name
            and isinstance(values, onnx_ir.ExternalTensor)
            and values.dtype == onnx_ir.DataType.INT8
            and scales is not None
            and len(scales.shape) == 1  # of columns, not of groups
        ):
            found[parameter] = Quantised(_mapped(values), _floats(scales.const_value), 8)
    return found


def _mapped(tensor: onnx_ir.ExternalTensor) -> torch.Tensor:
    shape = tuple(tensor.shape.numpy())
    return torch.from_numpy(np.memmap(tensor.path, np.int8, "c", tensor.offset or 0, shape))


def _floats(tensor: onnx_ir.TensorProtocol) -> torch.Tensor:
    return torch.frombuffer(bytearray(tensor.tobytes()), dtype=SCALE_TYPES[tensor.dtype])
