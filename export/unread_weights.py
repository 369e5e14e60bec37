"""Graphs of an engine set whose weights stay in their files until each is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir

from vicort.runtime.errors import EngineError

FOUR_BITS = (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)


def load_unread(path: Path) -> onnx_ir.Model:
    """A model whose weights are read when they are asked for, and not kept. `onnx_ir` would keep
    four-bit integers as a byte each, and refuses files of several hard links.

    Raises EngineError, here or when a weight is read, if it is not in a file of the same folder.
    """
    model = onnx_ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            value.const_value = _in_file(value.const_value, path.parent)
    return model


def _in_file(tensor: onnx_ir.ExternalTensor, folder: Path) -> onnx_ir.LazyTensor:
    path = folder / Path(tensor.location).name
    if str(tensor.location) != path.name or path.is_symlink() or not path.is_file():
        raise EngineError(
            f"{folder} has no weights {str(tensor.location)!r} of its own: build the set again"
        )
    dtype, size, start = tensor.dtype, tensor.nbytes, tensor.offset or 0
    shape, name = onnx_ir.Shape(tensor.shape.numpy()), tensor.name

    def read() -> onnx_ir.TensorProtocol:
        content = np.fromfile(path, np.uint8, size, offset=start)
        if len(content) < size:
            raise EngineError(f"{path} is cut off: build the set again")
        if dtype in FOUR_BITS:
            return onnx_ir.PackedTensor(content, dtype, shape=shape, name=name)
        array = content.view(dtype.numpy()).reshape(shape.numpy())
        return onnx_ir.Tensor(array, dtype, shape=shape, name=name)

    return onnx_ir.LazyTensor(read, dtype, shape, name=name)
