"""BoundedAttention inside a program that AOTInductor compiles: the Triton kernel on a GPU, the
plain PyTorch form on a CPU.

The operator is tested in Triton's interpreter; a program with it has been compiled for no GPU yet
but in a dry run without one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.library import triton_op, wrap_triton

from vicort.export.bounded_attention import attend
from vicort.export.kernels.attention_kernel import bounded_attention as kernel
from vicort.export.kernels.attention_kernel import combine as combine_kernel
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.kernels import MAX_SHARES

FREQUENCIES = "rotary_frequencies"  # buffer of the language model, which the kernel reads
COMBINE_BLOCK, COMBINE_WARPS = 16, 4  # as vicort.export.kernels.compile has them


@dataclass(frozen=True)
class KernelTile:
    """The kernel's compile parameters for a model on a GPU, and the GPU's multiprocessors."""

    vectors: int  # BLOCK_M, query vectors of a program
    keys: int  # BLOCK_N
    warps: int
    stages: int
    multiprocessors: int

    def numbers(self) -> list[int]:
        return [self.vectors, self.keys, self.warps, self.stages, self.multiprocessors]


@triton_op("vicort::attend_with_kernel", mutates_args={})
def attend_with_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    segment: Tensor,
    pool: Tensor,
    where: Tensor,
    table: Tensor,
    frequencies: Tensor,
    layer: int,
    scale: float,
    sections: Sequence[int],
    tile: Sequence[int],
) -> Tensor:
    """`vicort.export.bounded_attention.attend` by the Triton kernel, where all layers and heads
    share positions and table.

    where: [P,1,1,T,3]; table: [1,1,1,N]; frequencies: [D/2] float32; tile: of
    `KernelTile.numbers`. The rest is as there.
    """
    rows, query_heads, dim = q.shape
    layers, heads, page = pool.shape[1], pool.shape[2], pool.shape[4]
    block_m, block_n, warps, stages, multiprocessors = tile
    group = query_heads // heads
    tiles, vectors = cdiv(rows * group, block_m), rows * query_heads
    shares = shares_of(tiles * heads, multiprocessors)
    out = torch.empty_like(q)
    partial = torch.empty((shares * vectors * (dim + 2),), dtype=torch.float32, device=q.device)
    wrap_triton(kernel)[(tiles, heads, shares)](
        q,
        k,
        v,
        pos,
        segment,
        pool[:, layer],
        frequencies,  # in the place of the scales of an int8 pool
        where,
        table,
        out,
        partial,
        frequencies,
        rows,
        table.shape[3],
        1,
        layers * heads,
        3 * page,
        0,
        0,
        0,
        scale * math.log2(math.e),
        D=dim,
        GROUP=group,
        PAGE=page,
        SECTION_T=sections[0],
        SECTION_H=sections[1],
        INTERLEAVED=0,
        INT8=0,
        POSITIONS=0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        PRECISION="ieee",
        num_warps=warps,
        num_stages=stages,
    )
    wrap_triton(combine_kernel)[(vectors,)](
        partial, out, vectors, shares, D=dim, BLOCK=COMBINE_BLOCK, num_warps=COMBINE_WARPS
    )
    return out


def shares_of(programs: int, multiprocessors: int) -> int:
    """Among how many programs the keys of one are split: what fills the GPU once. At least two, so
    that there always is something to combine, and the number of rows alone decides: the program is
    compiled for all of them."""
    return torch.sym_max(2, torch.sym_min(MAX_SHARES, multiprocessors // programs))


def cdiv(a: int, b: int) -> int:
    return (a + b - 1) // b


def prepare(language: nn.Module, theta: float, sections: Sequence[int]) -> None:
    """Adds the buffer that the kernel reads to a language model, before its export."""
    language.register_buffer(
        FREQUENCIES, torch.tensor(rotary_frequencies(theta, sum(sections))), persistent=False
    )


def with_kernel(program: ExportedProgram, tile: KernelTile) -> ExportedProgram:
    """The program with the Triton kernel in the place of each BoundedAttention. Its module was
    prepared."""
    graph = program.graph
    (name,) = (
        name
        for name, buffer in program.graph_signature.inputs_to_buffers.items()
        if buffer == FREQUENCIES
    )
    frequencies = next(node for node in graph.nodes if node.name == name)
    for node in graph.find_nodes(
        op="call_function", target=torch.ops.vicort.bounded_attention.default
    ):
        *tensors, _, layer, scale, sections, _ = node.args[:13]  # without the scales of int8
        with graph.inserting_before(node):
            arguments = (*tensors, frequencies, layer, scale, sections, tile.numbers())
            replacement = graph.call_function(
                torch.ops.vicort.attend_with_kernel.default, arguments
            )
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()
    return program


def in_pytorch(program: ExportedProgram) -> ExportedProgram:
    """The program with the plain PyTorch form in the place of each BoundedAttention."""
    return program.run_decompositions(
        torch.export.default_decompositions() | {torch.ops.vicort.bounded_attention.default: attend}
    )
