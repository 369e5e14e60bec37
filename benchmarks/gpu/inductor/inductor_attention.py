"""BoundedAttention inside a program that AOTInductor compiles: the Triton kernels on a GPU, the
plain PyTorch form on a CPU.

The operator is tested in Triton's interpreter. A program with it was compiled for sm_90, captured
and replayed over a stand-in for the driver, which runs no kernel; it has run on no GPU yet.
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
from vicort.runtime.kernels import (
    MAX_SCRATCH_BYTES,
    MAX_SHARES,
    NARROW_VECTORS,
    ROTATED_FROM,
    Dtype,
    KernelSpec,
    Scratch,
)

FREQUENCIES = "rotary_frequencies"  # buffer of the language model, which the kernel reads
# as vicort.export.kernels.compile has them
COMBINE_BLOCK, COMBINE_WARPS, ROTATE_WARPS = 16, 4, 4
TYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


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
    until: Tensor,
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
    tile, rotated, multiprocessors = KernelTile(*tiles[:4]), KernelTile(*tiles[4:8]), tiles[8]
    spec = KernelSpec.model_construct(
        kv_heads=heads,
        groups=query_heads // heads,
        head_dim=dim,
        page_tokens=page,
        dtype=TYPE_NAMES[q.dtype],
        sections=tuple(sections),
    )
    programs = torch.sym_max(*(cdiv(rows * spec.groups, each.vectors) for each in (tile, rotated)))
    shares, vectors = shares_of(programs * heads, multiprocessors), rows * query_heads
    out = torch.empty_like(q)
    partial = torch.empty((shares * vectors * (dim + 2),), dtype=torch.float32, device=q.device)
    call = _Call(
        spec=spec,
        new=(q, k, v, pos),
        blocks=(segment, until),
        paged=(pool[:, layer], frequencies, where, table),  # no scales: the pool is not int8
        frequencies=frequencies,
        results=(out, partial),
        sizes=(rows, table.shape[3]),
        strides=(layers * heads, 3 * page, 0, 0, 0),
        shares=shares,
        log_scale=scale * math.log2(math.e),
    )
    first = call.rotate_first(rotated, multiprocessors) if may_rotate_first(q.dtype) else 0
    call.attend_at_once(tile, 1 - first)
    wrap_triton(combine_kernel)[(vectors,)](
        partial, out, vectors, shares, D=dim, BLOCK=COMBINE_BLOCK, num_warps=COMBINE_WARPS
    )
    return out


@dataclass(frozen=True)
class _Call:
    """What the kernels of one call have in common."""

    spec: KernelSpec
    new: tuple[Tensor, ...]  # q, k, v, pos
    blocks: tuple[Tensor, Tensor]  # segment, until
    paged: tuple[Tensor, ...]  # pool of the layer, frequencies, where, table
    frequencies: Tensor
    results: tuple[Tensor, Tensor]  # out, partial
    sizes: tuple[int, int]  # rows, pages
    strides: tuple[int, ...]
    shares: int
    log_scale: float

    def attend_at_once(self, tile: KernelTile, wanted: int) -> None:
        """One kernel that rotates keys as it reads them. wanted: 0 or 1."""
        spec, (rows, _) = self.spec, self.sizes
        programs = cdiv(rows * spec.groups, tile.vectors)
        wrap_triton(kernel)[(programs * wanted, spec.kv_heads, self.shares)](
            *(*self.new, *self.blocks, *self.paged, *self.results, self.frequencies),
            *(*self.sizes, 1, *self.strides, self.log_scale),
            **self._rotary(),
            D=spec.head_dim,
            GROUP=spec.groups,
            PAGE=spec.page_tokens,
            BLOCK_M=tile.vectors,
            BLOCK_N=tile.keys,
            PRECISION="ieee",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def rotate_first(self, tile: KernelTile, multiprocessors: int) -> int:
        """A kernel that rotates the keys and one that attends over them, where sizes want them.
        Returns 0 or 1: whether they do. Otherwise they have no scratch memory either."""
        spec, (rows, pages) = self.spec, self.sizes
        wanted = rotates_keys_first(spec, tile, rows, pages, multiprocessors)
        layout = Scratch.of(spec, (tile.vectors, tile.keys), rows, pages, 1).sizes
        sizes = tuple(
            layout[name] for name in ("segment_tokens", "cached", "new_tokens", "vectors")
        )
        scratch = self._scratch(layout, wanted)
        every = layout["cached"] + layout["new_tokens"] + layout["vectors"]
        wrap_triton(rotate_kernel)[(every // ROTATED_TOGETHER * wanted, spec.kv_heads, 1)](
            *(*self.new, *self.paged, *scratch, self.frequencies),
            *(*self.sizes, *self.strides, *sizes),
            **self._rotary(),
            D=spec.head_dim,
            GROUP=spec.groups,
            PAGE=spec.page_tokens,
            BLOCK=ROTATED_TOGETHER,
            num_warps=ROTATE_WARPS,
            num_stages=1,
        )
        programs = layout["vectors"] // tile.vectors
        wrap_triton(rotated_kernel)[(programs * wanted, spec.kv_heads, self.shares)](
            *(*scratch, self.new[3], *self.blocks, *self.results, rows, 1, *sizes, self.log_scale),
            D=spec.head_dim,
            GROUP=spec.groups,
            BLOCK_M=tile.vectors,
            BLOCK_N=tile.keys,
            PRECISION="ieee",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return wanted

    def _rotary(self) -> dict[str, int]:
        sections = self.spec.sections
        return {
            **{"SECTION_T": sections[0], "SECTION_H": sections[1]},
            **{"INTERLEAVED": 0, "INT8": 0, "POSITIONS": 0},
        }

    def _scratch(self, layout: dict[str, int], wanted: int) -> tuple[Tensor, ...]:
        """Queries, keys, values and bias."""
        heads, like = self.spec.kv_heads, self.new[0]
        every = layout["cached"] + layout["new_tokens"]

        def empty(count: int, dtype: torch.dtype) -> Tensor:
            # at least 2: the compiler would take sizes of 0 and 1 for constants
            return torch.empty((wanted * heads * count + 2,), dtype=dtype, device=like.device)

        vectors = (layout["vectors"], every, every)
        of_vectors = [empty(count * self.spec.head_dim, like.dtype) for count in vectors]
        return (*of_vectors, empty(layout["cached"], torch.float32))


def may_rotate_first(dtype: torch.dtype) -> bool:
    """As vicort.runtime.kernels.rotates_first: in float32 products take most of the time, and
    programs of it do not have the kernels that rotate keys first."""
    return dtype != torch.float32


def rotates_keys_first(
    spec: KernelSpec, tile: KernelTile, rows: int, pages: int, multiprocessors: int
) -> int:
    """0 or 1: whether `vicort.runtime.kernels.Kernels.plan` has scratch memory in half precision,
    for sizes that are not known when the program is compiled. tile: of rotated_attention."""
    tokens = pages * spec.page_tokens + rows
    scores = rows * spec.groups * spec.kv_heads * tokens
    enough = scores // (ROTATED_FROM * multiprocessors)
    wide = rows * spec.groups // (NARROW_VECTORS + 1)
    scratch = Scratch.of(spec, (tile.vectors, tile.keys), rows, pages, 1).bytes
    has_memory = MAX_SCRATCH_BYTES // scratch
    return torch.sym_min(1, enough) * torch.sym_min(1, wide) * torch.sym_min(1, has_memory)


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
        *tensors, _, layer, scale, sections, _ = node.args[:14]  # without the scales of int8
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
