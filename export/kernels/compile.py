"""The Triton kernels compiled ahead of time, without a GPU, to the `kernels.zip` that
vicort.runtime.kernels reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vicort.export.kernels.bounded_attention import bounded_attention, combine
from vicort.export.kernels.scatter import scatter_tokens, set_places
from vicort.export.onnx_function import rotary_frequencies
from vicort.export.qwen2_5_vl.configuration import LanguageConfiguration
from vicort.runtime.errors import ConfigError
from vicort.runtime.kernels import (
    INDEX,
    SCHEMA_VERSION,
    ArgumentKind,
    CompiledKernel,
    Dtype,
    Form,
    KernelName,
    KernelSpec,
)

MEETINGS = 5  # of threads in Python's parser, that the compilation of one kernel survives
ARCHITECTURES = (80, 86, 89, 90, 120)
DTYPES: dict[str, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
KERNELS: dict[KernelName, JITFunction] = {
    each.__name__: each for each in (bounded_attention, combine, scatter_tokens, set_places)
}
TENSORS = ("q", "k", "v", "pool", "out")  # arguments that point at the model's own type
TYPES = {
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "float32": "*fp32",
    "pointer": "*i32",
    "i32": "i32",
    "f32": "fp32",
}
PTX_KINDS: dict[str, ArgumentKind] = {"u64 .ptr": "pointer", "u32": "i32", "f32": "f32"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # of the files in the archive, so that equal kernels are equal bytes

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Tile:
    """How much of the work one program holds, and on what."""

    warps: int
    stages: int = 1  # of the software pipeline
    blocks: tuple[int, int] | None = None  # query vectors, keys; of bounded_attention only


@dataclass(frozen=True)
class Task:
    """One kernel to be compiled for one architecture."""

    kernel: KernelName
    form: Form
    architecture: int
    constants: dict[str, int | str]
    tiles: tuple[Tile, ...]  # the best first: the first that does not spill is taken

    @property
    def label(self) -> str:
        return f"{' '.join(filter(None, (self.kernel, self.form)))} for sm_{self.architecture}"


@dataclass(frozen=True)
class Built:
    index: CompiledKernel
    cubin: bytes
    ptx: str


def kernel_spec(
    config: LanguageConfiguration, page_tokens: int, precision: str, positions: int = 0
) -> KernelSpec:
    """What the kernels of a language model are compiled for; precision: "bf16", "fp16" or
    "fp32"."""
    return KernelSpec(
        kv_heads=config.kv_heads,
        groups=config.query_heads // config.kv_heads,
        head_dim=config.head_dim,
        page_tokens=page_tokens,
        dtype=DTYPES[precision],
        sections=config.sections,
        frequencies=tuple(rotary_frequencies(config.theta, config.head_dim // 2)),
        positions=positions,
    )


def compile_kernels(
    spec: KernelSpec, architectures: Sequence[int] = ARCHITECTURES, progress: Progress | None = None
) -> bytes:
    """kernels.zip for a model: equal bytes for equal arguments and tools.

    progress: called as progress(done, total, what) after each kernel. Raises ConfigError if the
    kernels cannot serve the model.
    """
    tasks = [task for architecture in architectures for task in plan_tasks(spec, architecture)]
    built = []
    for done, result in enumerate(build(spec, tasks), 1):
        built.append(result)
        if progress:
            progress(done, len(tasks), tasks[done - 1].label)
    return pack(spec, built)


def plan_tasks(spec: KernelSpec, architecture: int) -> list[Task]:
    """All kernels of one architecture, with their constants."""
    _check(spec)
    dim, page, heads = spec.head_dim, spec.page_tokens, spec.kv_heads
    attention: dict[str, int | str] = {
        "D": dim,
        "GROUP": spec.groups,
        "PAGE": page,
        "SECTION_T": spec.sections[0],
        "SECTION_H": spec.sections[1],
        "POSITIONS": spec.positions,
        "PRECISION": "ieee",
    }
    scatter: dict[str, int | str] = {
        "D": dim,
        "HEADS": heads,
        "HEADS_BLOCK": triton.next_power_of_2(heads),
        "PAGE": page,
    }
    places: dict[str, int | str] = {"PAGE": page, "BLOCK": triton.next_power_of_2(3 * page)}
    return [
        Task("bounded_attention", "wide", architecture, attention, _wide_tiles(spec, architecture)),
        Task("bounded_attention", "narrow", architecture, attention, _narrow_tiles(spec)),
        Task("combine", "", architecture, {"D": dim, "BLOCK": 16}, (Tile(4),)),
        Task("scatter_tokens", "", architecture, scatter, (Tile(2),)),
        Task("set_places", "", architecture, places, (Tile(1),)),
    ]


def _wide_tiles(spec: KernelSpec, architecture: int) -> tuple[Tile, ...]:
    """Many queries share the cost of rotating a key; no tile takes more shared memory than its
    architecture has."""
    if spec.dtype == "float32":
        return Tile(8, 1, (64, 32)), Tile(8, 1, (32, 32)), Tile(8, 1, (16, 16))
    smaller = (Tile(8, 2, (64, 64)), Tile(8, 2, (64, 32)), Tile(8, 1, (32, 32)))
    if architecture == 90 or spec.head_dim <= 64:
        return Tile(8, 2, (128, 64)), *smaller
    return (Tile(8, 2, (128, 32)), *smaller) if architecture == 80 else smaller


def _narrow_tiles(spec: KernelSpec) -> tuple[Tile, ...]:
    if spec.dtype == "float32":
        return Tile(4, 1, (16, 32)), Tile(8, 1, (16, 32)), Tile(8, 1, (16, 16))
    return Tile(4, 2, (16, 64)), Tile(4, 2, (16, 32)), Tile(4, 1, (16, 32))


def build(spec: KernelSpec, tasks: Iterable[Task]) -> Iterator[Built]:
    """Compile the tasks, in order, on all cores."""
    with knobs.compilation.scope(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        # it names the source's folder, and makes cubins five times as large
        knobs.compilation.disable_line_info = True
        yield from threads.map(lambda task: _compile(spec, task), tasks)


def pack(spec: KernelSpec, built: Sequence[Built]) -> bytes:
    """The archive: an index, then a file a cubin."""
    index = {
        "schema_version": SCHEMA_VERSION,
        "spec": spec.model_dump(),
        "versions": versions(),
        "kernels": [each.index.model_dump() for each in built],
    }
    files = {INDEX: json.dumps(index, indent=1).encode()} | {
        each.index.file: each.cubin for each in built
    }
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def versions() -> dict[str, str]:
    """Of the compilers."""
    return {"triton": triton.__version__} | {
        f"ptxas for sm_{each}": get_ptxas(each).version for each in (80, 120)
    }


def _check(spec: KernelSpec) -> None:
    if spec.head_dim & (spec.head_dim - 1):
        raise ConfigError(
            f"heads of {spec.head_dim} do not fit the GPU kernels, which take powers of two from "
            "32: build without the plugin"
        )
    if 2 * sum(spec.sections) != spec.head_dim or len(spec.frequencies) != sum(spec.sections):
        raise ConfigError(
            f"rotary sections {list(spec.sections)} and {len(spec.frequencies)} frequencies: "
            f"both are {spec.head_dim // 2} in all"
        )


def _compile(spec: KernelSpec, task: Task) -> Built:
    """With the first of the task's tiles that does not spill, else with that which spills least."""
    least: tuple[int, Built] | None = None
    for tile in task.tiles:
        built = _compile_tile(spec, task, tile)
        stack = _stack_bytes(built.cubin) if len(task.tiles) > 1 else 0
        if least is None or stack < least[0]:
            least = stack, built
        if stack == 0:
            break
    if least is None:
        raise RuntimeError(f"no tile for {task.label}")
    return least[1]


def _compile_tile(spec: KernelSpec, task: Task, tile: Tile) -> Built:
    function = KERNELS[task.kernel]
    if not isinstance(function, JITFunction):
        raise ConfigError(
            "TRITON_INTERPRET is set, so that the kernels cannot be compiled: unset it"
        )
    constants = task.constants | (
        dict(zip(("BLOCK_M", "BLOCK_N"), tile.blocks, strict=True)) if tile.blocks else {}
    )
    signature = {name: _type(name, spec, constants) for name in function.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(function.arg_names)
        if name in (*TENSORS, "partial", "rotary")
    }
    source = ASTSource(function, signature, constants, aligned)
    options = {
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
        "maxnreg": 255,
    }
    compiled = _compiled(source, GPUTarget("cuda", task.architecture, 32), options)
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


def _compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> Any:
    """As `triton.compile`; again where threads met in Python's parser: CPython 3.11 counts the
    depth of all their trees in one place."""
    for _ in range(MEETINGS):
        try:
            return triton.compile(source, target=target, options=options)
        except SystemError as error:
            if "recursion depth mismatch" not in str(error):
                raise
    return triton.compile(source, target=target, options=options)


def _stack_bytes(cubin: bytes) -> int:
    """Of a thread: these kernels have no arrays of their own, so a stack is for what did not fit
    into registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump did not name the stack: {said}")
    return int(found[1])


def _type(name: str, spec: KernelSpec, constants: dict[str, int | str]) -> str:
    """Triton's word for the type of a kernel's argument, by its name."""
    if name in constants:
        return "constexpr"
    if name in TENSORS:
        return TYPES[spec.dtype]
    if name in ("partial", "rotary"):
        return "*fp32"
    if name in ("pos", "where", "table", "slots", "cells", "places"):
        return "*i32"
    return "fp32" if name == "scale" else "i32"


def _arguments(ptx: str) -> tuple[ArgumentKind, ...]:
    """The kinds of all arguments of the entry, hidden ones included: those that Triton adds for its
    scratch memory come last."""
    entry = re.search(r"\.entry \w+\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise RuntimeError("the PTX has no entry")
    return tuple(PTX_KINDS[kind] for kind in re.findall(r"\.param \.(u64 \.ptr|u32|f32)", entry[1]))


def ptxas_report(built: Built) -> str:
    """What `ptxas -v` says of a kernel's PTX: registers and spills."""
    target = re.search(r"\.target (\w+)", built.ptx)
    if target is None:
        raise RuntimeError("the PTX names no target")
    command = [
        get_ptxas(built.index.architecture).path,
        "-v",
        "--regAllocOptLevel=2",
        f"--gpu-name={target[1]}",
        "-",
        "-o",
        os.devnull,
    ]
    return subprocess.run(
        command, input=built.ptx, capture_output=True, text=True, check=True
    ).stderr
