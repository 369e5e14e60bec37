"""One kernel compiled by Triton for one architecture."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError
from triton.errors import TritonError
from triton.runtime.jit import JITFunction

from vicort.export.kernels.architectures import SHARED_KIB
from vicort.export.kernels.attention_kernel import bounded_attention, combine
from vicort.export.kernels.rotated_attention import rotate_tokens, rotated_attention
from vicort.export.kernels.scatter import scatter_tokens, set_places
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.kernels import ArgumentKind, CompiledKernel, Form, KernelName, KernelSpec
from vicort.runtime.safe_text import brief

KERNELS: dict[KernelName, JITFunction] = {
    each.__name__: each
    for each in (
        bounded_attention,
        rotate_tokens,
        rotated_attention,
        combine,
        scatter_tokens,
        set_places,
    )
}
# arguments that point at the model's own type
TENSORS = ("q", "k", "v", "out", "queries", "keys", "values")
MULTIPLES = ("segment_tokens", "cached", "new_tokens", "vectors")  # of 16: whole blocks
ALIGNED = (*TENSORS, *MULTIPLES, "pool", "partial", "rotary", "bias")  # pointers: to 16 bytes
TYPES = {
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "float32": "*fp32",
    "int8": "*i8",
    "pointer": "*i32",
    "i32": "i32",
    "f32": "fp32",
}
PTX_KINDS: dict[str, ArgumentKind] = {"u64 .ptr": "pointer", "u32": "i32", "f32": "f32"}


@dataclass(frozen=True)
class Tile:
    """How much of the work one program holds, and on what."""

    warps: int
    stages: int = 1  # of the software pipeline
    blocks: tuple[int, int] | None = None  # query vectors, keys; of attention only


@dataclass(frozen=True)
class Task:
    """One kernel to be compiled for one architecture."""

    kernel: KernelName
    form: Form
    architecture: int
    constants: dict[str, int | str]
    # the best first: the first is taken that does not spill and has the shared memory that it takes
    tiles: tuple[Tile, ...]

    @property
    def label(self) -> str:
        return f"{' '.join(filter(None, (self.kernel, self.form)))} for sm_{self.architecture}"


@dataclass(frozen=True)
class Built:
    index: CompiledKernel
    cubin: bytes
    ptx: str


def compile_task(spec: KernelSpec, task: Task) -> Built:
    """The kernel with the first of its tiles that fits the architecture and does not spill, else
    with the tile that spills least.

    Not for several threads of one process: CPython 3.11 counts the recursion depth of all threads'
    syntax trees in one place, and fails with a SystemError. Raises EngineError, in one line, if
    Triton or ptxas fails.
    """
    if not isinstance(KERNELS[task.kernel], JITFunction):
        raise ConfigError(
            "TRITON_INTERPRET is set, so that the kernels cannot be compiled: unset it"
        )
    try:
        with knobs.compilation.scope():
            # it names the source's folder, and makes cubins five times as large
            knobs.compilation.disable_line_info = True
            return _compile(spec, task)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"{task.label} does not compile ({_reason(error)}): build without the plugin"
        ) from error


def _reason(error: Exception) -> str:
    """Triton's message without the source that it quotes."""
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    message = error.error_message if isinstance(error, CompilationError) else None
    return f"{type(error).__name__}: {brief(RuntimeError(message or str(error)))}"


def _compile(spec: KernelSpec, task: Task) -> Built:
    best: tuple[int, Built] | None = None
    for tile in task.tiles:
        built = _compile_tile(spec, task, tile)
        if built.index.shared_bytes > SHARED_KIB[task.architecture] * 1024:
            continue
        _, stack = resources(built.cubin) if len(task.tiles) > 1 else (0, 0)
        if best is None or stack < best[0]:
            best = stack, built
        if stack == 0:
            break
    if best is None:
        raise RuntimeError("no tile fits its shared memory")
    return best[1]


def _compile_tile(spec: KernelSpec, task: Task, tile: Tile) -> Built:
    function = KERNELS[task.kernel]
    constants = task.constants | (
        dict(zip(("BLOCK_M", "BLOCK_N"), tile.blocks, strict=True)) if tile.blocks else {}
    )
    signature = {name: _type(name, spec, constants) for name in function.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(function.arg_names)
        if name in ALIGNED
    }
    source = ASTSource(function, signature, constants, aligned)
    options = {
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
        "maxnreg": 255,
    }
    compiled = triton.compile(
        source, target=GPUTarget("cuda", task.architecture, 32), options=options
    )
    name = "-".join(filter(None, (task.kernel, task.form)))
    index = CompiledKernel(
        kernel=task.kernel,
        form=task.form,
        architecture=task.architecture,
        file=f"sm_{task.architecture}/{name}.cubin",
        function=compiled.metadata.name,
        warps=tile.warps,
        shared_bytes=compiled.metadata.shared,
        arguments=_arguments(compiled.asm["ptx"]),
        constants=constants,
    )
    return Built(index, compiled.asm["cubin"], compiled.asm["ptx"])


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and its bytes of stack: these kernels have no arrays of their own, so
    a stack is for what did not fit into registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump did not name registers and stack: {said}")
    return int(found[1]), int(found[2])


def _type(name: str, spec: KernelSpec, constants: dict[str, int | str]) -> str:
    """Triton's word for the type of a kernel's argument, by its name."""
    if name in constants:
        return "constexpr"
    if name in TENSORS:
        return TYPES[spec.dtype]
    if name == "pool":
        return TYPES[spec.pool_dtype]
    if name in ("partial", "rotary", "scales", "bias"):
        return "*fp32"
    if name in ("pos", "segment", "until", "where", "table", "slots", "cells", "places"):
        return "*i32"
    return "fp32" if name == "scale" else "i32"


def _arguments(ptx: str) -> tuple[ArgumentKind, ...]:
    """The kinds of all arguments of the entry, hidden ones included: those that Triton adds for its
    scratch memory come last."""
    entry = re.search(r"\.entry \w+\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise RuntimeError("the PTX has no entry")
    return tuple(PTX_KINDS[kind] for kind in re.findall(r"\.param \.(u64 \.ptr|u32|f32)", entry[1]))
