"""The compiled kernels of an engine set, loaded on one GPU."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Protocol

from vicort.runtime.errors import EngineError
from vicort.runtime.kernels import (
    ArgumentKind,
    AttentionPlan,
    Form,
    Grid,
    KernelName,
    Kernels,
    Scratch,
)

Argument = tuple[ArgumentKind, "int | float"]


NEEDED: tuple[tuple[KernelName, Form], ...] = (
    ("bounded_attention", "wide"),
    ("bounded_attention", "narrow"),
    ("rotate_tokens", ""),
    ("rotated_attention", ""),
    ("combine", ""),
    ("scatter_tokens", ""),
    ("set_places", ""),
)

# the names of a kernel's arguments, in order
PARAMETERS: dict[KernelName, tuple[str, ...]] = {
    "bounded_attention": (
        *("q", "k", "v", "pos", "segment", "until", "pool", "scales", "where", "table", "out"),
        "partial",
        *("rotary", "rows", "pages", "segments", "slot_cells", "where_slot", "where_head"),
        *("table_segment", "table_head", "scale"),
    ),
    "rotate_tokens": (
        *("q", "k", "v", "pos", "pool", "scales", "where", "table"),
        *("queries", "keys", "values", "bias", "rotary", "rows", "pages", "slot_cells"),
        *("where_slot", "where_head", "table_segment", "table_head"),
        *("segment_tokens", "cached", "new_tokens", "vectors"),
    ),
    "rotated_attention": (
        *("queries", "keys", "values", "bias", "pos", "segment", "until", "out", "partial"),
        *("rows", "segments", "segment_tokens", "cached", "new_tokens", "vectors", "scale"),
    ),
}

MAX_PLANS = 4096  # a cache limit: a stream needs a few dozen


class Launcher(Protocol):
    """The GPU functions that the kernels use."""

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> object:
        """A kernel of a cubin. shared_bytes: maximum dynamic shared memory of a launch."""
        ...

    def launch(
        self,
        kernel: object,
        grid: Grid,
        threads: int,
        shared_bytes: int,
        stream_handle: int,
        args: Sequence[Argument],
    ) -> None:
        """Enqueue one launch on a raw stream."""
        ...

    def constant(self, data: bytes) -> int:
        """Address of a copy of `data` in device memory, aligned to 256 bytes. It lives as long as
        the launcher."""
        ...


class LoadedKernels:
    """Kernels on one GPU. Methods only enqueue, without host waits or allocations; grids depend on
    shapes alone."""

    def __init__(
        self,
        kernels: Kernels,
        *,
        capability: tuple[int, int],
        multiprocessors: int,
        launcher: Launcher,
        rotate_first: bool | None = None,
    ) -> None:
        """capability: (9, 0) for sm_90; multiprocessors: of the GPU; rotate_first: as of
        `Kernels.plan`. Raises EngineError if no cubin fits."""
        self.kernels = kernels
        self.spec = kernels.spec
        self.capability = capability
        self.multiprocessors = multiprocessors
        self._launcher = launcher
        self._rotate_first = rotate_first
        architecture = kernels.architecture(capability)
        self._ready = {}
        for kernel, form in NEEDED:
            found = kernels.find(architecture, kernel, form)
            self._ready[kernel, form] = (
                found,
                launcher.load(kernels.cubins[found.file], found.function, found.shared_bytes),
            )
        self._rotary = launcher.constant(self.spec.rotary().tobytes())
        self._plans: dict[tuple[int, int, int], AttentionPlan] = {}

    def attention(
        self,
        *,
        q: int,
        k: int,
        v: int,
        pos: int,
        segment: int,
        until: int,
        pool: int,
        where: int,
        table: int,
        out: int,
        workspace: int,
        rows: int,
        pool_shape: Sequence[int],
        where_shape: Sequence[int],
        table_shape: Sequence[int],
        layer: int,
        scale: float,
        stream: int,
        scales: int | None = None,
    ) -> None:
        """vicort::BoundedAttention of `rows` new tokens. All tensors are device addresses. scales:
        of an int8 pool.

        workspace: at least the bytes that `Kernels.plan` gives for these shapes. Raises
        EngineError if the kernels do not fit the shapes.
        """
        if rows == 0:
            return
        spec, (segments, table_layers, table_heads, pages) = self.spec, table_shape
        self._check(pool_shape, where_shape, table_shape)
        self._check_scales(scales)
        plan = self.plan(rows, pages, segments)
        scratch = plan.scratch
        partial = workspace + (scratch.bytes if scratch else 0)
        layers, cell = pool_shape[1], spec.page_tokens * 3
        vectors = layer * spec.kv_heads * 2 * spec.page_tokens  # before the layer's own
        pointers = {
            **{"q": q, "k": k, "v": v, "pos": pos, "segment": segment, "until": until},
            "pool": pool + vectors * spec.head_dim * spec.pool_item_bytes,
            "scales": 0 if scales is None else scales + vectors * 4,
            "where": where + min(layer, where_shape[1] - 1) * where_shape[2] * cell * 4,
            "table": table + min(layer, table_layers - 1) * table_heads * pages * 4,
            **{"out": out, "partial": partial, "rotary": self._rotary},
        }
        integers = {
            **{"rows": rows, "pages": pages, "segments": segments},
            "slot_cells": layers * spec.kv_heads,
            "where_slot": where_shape[1] * where_shape[2] * cell,
            "where_head": cell if where_shape[2] > 1 else 0,
            "table_segment": table_layers * table_heads * pages,
            "table_head": pages if table_heads > 1 else 0,
        }
        log_scale: Argument = ("f32", _float32(scale * math.log2(math.e)))
        values = {"scale": log_scale} | _named(pointers, integers)
        if scratch:
            values |= _named(
                {name: workspace + offset for name, offset in scratch.offsets.items()},
                scratch.sizes,
            )
            self._launch_named("rotate_tokens", "", self._rotate_grid(scratch), stream, values)
            self._launch_named("rotated_attention", "", plan.grid, stream, values)
        else:
            self._launch_named("bounded_attention", plan.form, plan.grid, stream, values)
        if plan.shares > 1:
            vectors = rows * spec.groups * spec.kv_heads
            self._launch(
                "combine",
                "",
                (vectors, 1, 1),
                stream,
                (*_pointers(partial, out), *_integers(vectors, plan.shares)),
            )

    def scatter_tokens(
        self,
        *,
        k: int,
        v: int,
        slots: int,
        cells: int,
        pool: int,
        count: int,
        rows: int,
        layers: int,
        stream: int,
        scales: int | None = None,
    ) -> None:
        """The first `count` of the new tokens k, v [L,rows,Hkv,D] into the pool, at slots, cells
        [count] int32; slot -1: nowhere. scales: of an int8 pool, for which they are quantised."""
        if count:
            self._check_scales(scales)
            pointers = _pointers(k, v, slots, cells, pool, scales or 0)
            values = (*pointers, *_integers(rows))
            self._launch("scatter_tokens", "", (count, layers, 1), stream, values)

    def set_places(self, *, slots: int, places: int, where: int, count: int, stream: int) -> None:
        """Positions [count,T,3] int32 of all tokens of `count` pages into where [P,1,1,T,3], at
        slots [count] int32; slot -1: nowhere."""
        if count:
            self._launch("set_places", "", (count, 1, 1), stream, _pointers(slots, places, where))

    def _launch_named(
        self, kernel: KernelName, form: Form, grid: Grid, stream: int, values: dict[str, Argument]
    ) -> None:
        self._launch(kernel, form, grid, stream, [values[name] for name in PARAMETERS[kernel]])

    def _rotate_grid(self, scratch: Scratch) -> Grid:
        block = int(self._ready["rotate_tokens", ""][0].constants["BLOCK"])
        vectors = sum(scratch.sizes[name] for name in ("cached", "new_tokens", "vectors"))
        return vectors // block, self.spec.kv_heads, 1

    def plan(self, rows: int, pages: int, segments: int) -> AttentionPlan:
        """Of `Kernels.plan`, on this GPU."""
        key = (rows, pages, segments)
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = self.kernels.plan(
                rows, pages, self.multiprocessors, self.capability, segments, self._rotate_first
            )
        return self._plans[key]

    def _check_scales(self, scales: int | None) -> None:
        if (scales is None) != (self.spec.kv == "float"):
            raise EngineError(
                f"the kernels are for pages of {self.spec.kv}, with scales only where that is int8"
            )

    def _check(self, pool: Sequence[int], where: Sequence[int], table: Sequence[int]) -> None:
        spec, layers = self.spec, pool[1]
        wanted = (layers, spec.kv_heads, 2, spec.page_tokens, spec.head_dim)
        if tuple(pool[1:]) != wanted:
            raise EngineError(
                f"a pool of shape {tuple(pool)} does not fit the kernels, which take (pages, "
                f"{', '.join(map(str, wanted))})"
            )
        for name, found, tail in (
            ("where", where[1:], (spec.page_tokens, 3)),
            ("table", table[1:], tuple(table[3:])),
        ):
            if (
                found[0] not in (1, layers)
                or found[1] not in (1, spec.kv_heads)
                or tuple(found[2:]) != tail
            ):
                shape = f"(1 or {layers}, 1 or {spec.kv_heads}, {', '.join(map(str, tail))})"
                raise EngineError(
                    f"`{name}` of shape {tuple(found)} for each slot does not fit the kernels, "
                    f"which take {shape}"
                )

    def _launch(
        self, kernel: KernelName, form: Form, grid: Grid, stream: int, values: Sequence[Argument]
    ) -> None:
        compiled, handle = self._ready[kernel, form]
        added = len(compiled.arguments) - len(values)
        self._launcher.launch(
            handle,
            grid,
            32 * compiled.warps,
            compiled.shared_bytes,
            stream,
            (*values, *(("pointer", 0),) * added),
        )


def _pointers(*values: int) -> tuple[Argument, ...]:
    return tuple(("pointer", value) for value in values)


def _integers(*values: int) -> tuple[Argument, ...]:
    return tuple(("i32", value) for value in values)


def _named(pointers: dict[str, int], integers: dict[str, int]) -> dict[str, Argument]:
    named: dict[str, Argument] = {name: ("pointer", value) for name, value in pointers.items()}
    return named | {name: ("i32", value) for name, value in integers.items()}


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
