"""Traces of modules that torch.onnx.export translates as they are. It would trace a program twice
more to decompose its operators, which takes longer than all the rest of an export."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

ATEN = torch.ops.aten
# operators that the exporter knows under another name, with the same arguments
RENAMED = {
    ATEN.__and__.Tensor: ATEN.bitwise_and.Tensor,
    ATEN.__or__.Tensor: ATEN.bitwise_or.Tensor,
}


class TracedProgram(torch.export.ExportedProgram):
    """Decomposed only where an operator needs it."""

    def run_decompositions(self, decomp_table: Any = None, **options: Any) -> Any:
        """decomp_table: of all operators that cannot be translated."""
        if decomp_table is None or any(_needs(node, decomp_table) for node in self.graph.nodes):
            return super().run_decompositions(decomp_table, **options)
        return self


def _needs(node: fx.Node, table: dict) -> bool:
    if node.op != "call_function" or node.target.__module__ == "_operator":
        return False  # arithmetic of sizes, or one of several outputs
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable or node.target in table


def trace(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], dimensions: tuple[dict[int, Any], ...]
) -> TracedProgram:
    """dimensions: of each input, its dynamic axes."""
    # a size may be 1, as where torch.onnx.export makes the trace
    with fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(module, inputs, dynamic_shapes=dimensions)
    program.__class__ = TracedProgram
    for node in list(program.graph.nodes):
        if node.op == "call_function":
            _simplify(node)
    program.graph_module.recompile()
    return program


def _simplify(node: fx.Node) -> None:
    """What a decomposition makes of one node, in place."""
    if node.target is ATEN._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif node.target is ATEN.to.dtype and len(node.args) == 2 and not node.kwargs:
        value, kind = node.args
        if value.meta["val"].dtype == kind and all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(value)
            node.graph.erase_node(node)
        else:
            node.target, node.args = ATEN._to_copy.default, (value,)
            node.kwargs = {"dtype": kind}
    elif node.target is ATEN.square.default:
        node.target, node.args = ATEN.pow.Tensor_Scalar, (node.args[0], 2)
    elif node.target is ATEN.rsub.Scalar and len(node.args) == 2:
        node.target, node.args = ATEN.sub.Tensor, node.args[::-1]
    elif node.target is ATEN.chunk.default and len(node.args) == 3:
        (value, _, axis), first = node.args, node.meta["val"][0]
        if isinstance(first.shape[axis], int):
            node.target, node.args = ATEN.split.Tensor, (value, first.shape[axis], axis)
    else:
        node.target = RENAMED.get(node.target, node.target)
