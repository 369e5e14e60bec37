"""BoundedAttention inside a program that AOTInductor compiles: the Triton kernels on a GPU, the
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
from vicort.export.kernels.compile import ROTATED_TOGETHER
from vicort.export.kernels.rotated_attention import rotate_tokens as rotate_kernel
from vicort.export.kernels.rotated_attention import rotated_attention as rotated_kernel
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.kernels import MAX_SHARES, NARROW_VECTORS, ROTATED_FROM

FREQUENCIES = "rotary_frequencies"  # buffer of the language model, which the kernel reads
# as vicort.export.kernels.compile has them
COMBINE_BLOCK, COMBINE_WARPS, ROTATE_WARPS = 16, 4, 4


@dataclass(frozen=True)
class KernelTile:
    """Compile parameters of a kernel for a model on a GPU."""

    vectors: int  # BLOCK_M, query vectors of a program
    keys: int  # BLOCK_N
    warps: int
    stages: int

    def numbers(self) -> list[int]:
        return [self.vectors, self.keys, self.warps, self.stages]


@dataclass(frozen=True)
class KernelTiles:
    """Of bounded_attention and of rotated_attention, and the GPU's multiprocessors."""

    at_once: KernelTile
    rotated: KernelTile
    multiprocessors: int

    def numbers(self) -> list[int]:
        return [*self.at_once.numbers(), *self.rotated.numbers(), self.multiprocessors]


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
    tiles: Sequence[int],
) -> Tensor:
    """`vicort.export.bounded_attention.attend` by the Triton kernels, where all layers and heads
    share positions and table.

    where: [P,1,1,T,3]; table: [1,1,1,N]; frequencies: [D/2] float32; tiles: of
    `KernelTiles.numbers`. The rest is as there. The program is compiled for all numbers of rows
    and pages, so the launches that these do not want have a grid of 0 and are left out.
    """
    rows, query_heads, dim = q.shape
    layers, heads, page = pool.shape[1], pool.shape[2], pool.shape[4]
    at_once, rotated, multiprocessors = KernelTile(*tiles[:4]), KernelTile(*tiles[4:8]), tiles[8]
    group, pages = query_heads // heads, table.shape[3]
    first = rotates_keys_first(rows, query_heads, group, pages * page + rows, multiprocessors)
    programs, rotated_programs = (cdiv(rows * group, tile.vectors) for tile in (at_once, rotated))
    shares = shares_of(torch.sym_max(programs, rotated_programs) * heads, multiprocessors)
    vectors = rows * query_heads
    out = torch.empty_like(q)
    partial = torch.empty((shares * vectors * (dim + 2),), dtype=torch.float32, device=q.device)
    turned = {
        **{"SECTION_T": sections[0], "SECTION_H": sections[1]},
        **{"INTERLEAVED": 0, "INT8": 0, "POSITIONS": 0},
    }
    paged = (pool[:, layer], frequencies, where, table)  # no scales: the pool is not int8
    strides = (layers * heads, 3 * page, 0, 0, 0)
    log_scale = scale * math.log2(math.e)
    wrap_triton(kernel)[(programs * (1 - first), heads, shares)](
        *(q, k, v, pos, segment, *paged, out, partial, frequencies, rows, pages, 1),
        *(*strides, log_scale),
        **turned,
        D=dim,
        GROUP=group,
        PAGE=page,
        BLOCK_M=at_once.vectors,
        BLOCK_N=at_once.keys,
        PRECISION="ieee",
        num_warps=at_once.warps,
        num_stages=at_once.stages,
    )
    cached, new = cdiv(pages * page, rotated.keys) * rotated.keys, cdiv(rows, rotated.keys)
    new, padded = new * rotated.keys, rotated_programs * rotated.vectors
    queries, keys, values = (
        torch.empty((heads * count * dim,), dtype=q.dtype, device=q.device)
        for count in (padded, cached + new, cached + new)
    )
    bias = torch.empty((heads * cached + 1,), dtype=torch.float32, device=q.device)
    scratch, sizes = (queries, keys, values, bias), (cached, cached, new, padded)
    wrap_triton(rotate_kernel)[((cached + new + padded) // ROTATED_TOGETHER * first, heads, 1)](
        *(q, k, v, pos, *paged, *scratch, frequencies, rows, pages, *strides, *sizes),
        **turned,
        D=dim,
        GROUP=group,
        PAGE=page,
        BLOCK=ROTATED_TOGETHER,
        num_warps=ROTATE_WARPS,
        num_stages=1,
    )
    wrap_triton(rotated_kernel)[(rotated_programs * first, heads, shares)](
        *(*scratch, pos, segment, out, partial, rows, 1, *sizes, log_scale),
        D=dim,
        GROUP=group,
        BLOCK_M=rotated.vectors,
        BLOCK_N=rotated.keys,
        PRECISION="ieee",
        num_warps=rotated.warps,
        num_stages=rotated.stages,
    )
    wrap_triton(combine_kernel)[(vectors,)](
        partial, out, vectors, shares, D=dim, BLOCK=COMBINE_BLOCK, num_warps=COMBINE_WARPS
    )
    return out


def rotates_keys_first(
    rows: int, query_heads: int, group: int, tokens: int, multiprocessors: int
) -> int:
    """0 or 1: what vicort.runtime.kernels.rotates_first says of half precision, for sizes that are
    not known when the program is compiled."""
    enough = rows * query_heads * tokens // (ROTATED_FROM * multiprocessors)
    wide = rows * group // (NARROW_VECTORS + 1)
    return torch.sym_min(1, enough) * torch.sym_min(1, wide)


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


def with_kernel(program: ExportedProgram, tiles: KernelTiles) -> ExportedProgram:
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
            arguments = (*tensors, frequencies, layer, scale, sections, tiles.numbers())
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
