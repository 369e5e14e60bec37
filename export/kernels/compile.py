"""The Triton kernels compiled ahead of time, without a GPU, to the `kernels.zip` that
vicort.runtime.kernels reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from io import BytesIO
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import triton
from triton.backends.nvidia.compiler import get_ptxas

from vicort.export.kernels.architectures import DEFAULT, SHARED_KIB
from vicort.export.kernels.compile_task import Built, Task, Tile, compile_task
from vicort.runtime.errors import ConfigError, EngineError, VicortError
from vicort.runtime.kernels import INDEX, SCHEMA_VERSION, Dtype, KernelSpec
from vicort.runtime.manifest import KV
from vicort.runtime.safe_text import shown

if TYPE_CHECKING:
    from vicort.export.qwen2_5_vl.configuration import LanguageConfiguration

__all__ = [
    "Built",
    "Task",
    "Tile",
    "build",
    "compile_kernels",
    "kernel_spec",
    "pack",
    "plan_tasks",
    "versions",
]
WORKER = "vicort.export.kernels.compile_worker"
DTYPES: dict[str, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# whose matrix units take operands from shared memory, and leave registers for wider tiles
MATRIX_UNITS_APART = (90, 100, 103, 110)
ROTATED_TOGETHER = 16  # tokens of a program of rotate_tokens: divides all blocks of attention
EPOCH = (1980, 1, 1, 0, 0, 0)  # of the files in the archive, so that equal kernels are equal bytes

Progress = Callable[[int, int, str], None]


def kernel_spec(
    config: LanguageConfiguration,
    page_tokens: int,
    precision: str,
    positions: int = 0,
    kv: KV = "float",
) -> KernelSpec:
    """What the kernels of a language model are compiled for; precision: "bf16", "fp16" or "fp32";
    kv: what pages hold."""
    # late: it takes torch and onnx, which the compilation itself does not need
    from vicort.export.onnx_function import rotary_frequencies

    return KernelSpec(
        kv_heads=config.kv_heads,
        groups=config.query_heads // config.kv_heads,
        head_dim=config.head_dim,
        page_tokens=page_tokens,
        dtype=DTYPES[precision],
        kv=kv,
        sections=config.sections,
        frequencies=tuple(rotary_frequencies(config.theta, config.head_dim // 2)),
        positions=positions,
    )


def compile_kernels(
    spec: KernelSpec, architectures: Sequence[int] = DEFAULT, progress: Progress | None = None
) -> bytes:
    """kernels.zip for a model: equal bytes for equal arguments and tools.

    progress: called as progress(done, total, what) after each kernel. Raises ConfigError if the
    kernels cannot serve the model, EngineError if one does not compile.
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
    rotating: dict[str, int | str] = {
        "D": dim,
        "GROUP": spec.groups,
        "PAGE": page,
        "SECTION_T": spec.sections[0],
        "SECTION_H": spec.sections[1],
        "INTERLEAVED": int(spec.interleaved),
        "INT8": int(spec.kv == "int8"),
        "POSITIONS": spec.positions,
    }
    attention = rotating | {"PRECISION": "ieee"}
    rotated: dict[str, int | str] = {"D": dim, "GROUP": spec.groups, "PRECISION": "ieee"}
    scatter: dict[str, int | str] = {
        "D": dim,
        "HEADS": heads,
        "HEADS_BLOCK": triton.next_power_of_2(heads),
        "PAGE": page,
        "INT8": int(spec.kv == "int8"),
    }
    places: dict[str, int | str] = {"PAGE": page, "BLOCK": triton.next_power_of_2(3 * page)}
    return [
        Task("bounded_attention", "wide", architecture, attention, _wide_tiles(spec, architecture)),
        Task("bounded_attention", "narrow", architecture, attention, _narrow_tiles(spec)),
        Task("rotate_tokens", "", architecture, rotating | {"BLOCK": ROTATED_TOGETHER}, (Tile(4),)),
        Task("rotated_attention", "", architecture, rotated, _rotated_tiles(spec, architecture)),
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
    if architecture in MATRIX_UNITS_APART or spec.head_dim <= 64:
        return Tile(8, 2, (128, 64)), *smaller
    return (Tile(8, 2, (128, 32)), *smaller) if SHARED_KIB[architecture] > 99 else smaller


def _rotated_tiles(spec: KernelSpec, architecture: int) -> tuple[Tile, ...]:
    if spec.dtype == "float32":
        return (
            Tile(8, 2, (64, 32)),
            Tile(8, 1, (64, 32)),
            Tile(8, 1, (32, 32)),
            Tile(8, 1, (16, 16)),
        )
    smaller = (Tile(8, 2, (128, 32)), Tile(8, 2, (64, 64)), Tile(8, 1, (32, 32)))
    if architecture in MATRIX_UNITS_APART or spec.head_dim <= 64:
        return Tile(8, 3, (128, 64)), Tile(8, 2, (128, 64)), *smaller
    return Tile(8, 3, (128, 32)), *smaller


def _narrow_tiles(spec: KernelSpec) -> tuple[Tile, ...]:
    if spec.dtype == "float32":
        return Tile(4, 1, (16, 32)), Tile(8, 1, (16, 32)), Tile(8, 1, (16, 16))
    return Tile(4, 2, (16, 64)), Tile(4, 2, (16, 32)), Tile(4, 1, (16, 32))


def build(spec: KernelSpec, tasks: Iterable[Task]) -> Iterator[Built]:
    """Compile the tasks, in order, on all cores. Raises EngineError, in one line, if one fails."""
    tasks = list(tasks)
    workers = min(len(tasks), len(os.sched_getaffinity(0)))
    if workers > 1:
        yield from _build_in_workers(spec, tasks, workers)
    else:
        for task in tasks:
            yield compile_task(spec, task)


def _build_in_workers(spec: KernelSpec, tasks: list[Task], count: int) -> Iterator[Built]:
    """The results in the order of the tasks, each as soon as it and those before it are there."""
    done: dict[int, Built] = {}
    waiting = list(reversed(range(len(tasks))))
    busy: dict[Any, _Worker] = {}  # by their connection
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        idle = [stack.enter_context(_Worker(folder, number)) for number in range(count)]
        for wanted in range(len(tasks)):
            while wanted not in done:
                while idle and waiting:
                    worker, number = idle.pop(), waiting.pop()
                    worker.start(spec, number, tasks[number])
                    busy[worker.connection] = worker
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)
                    done[worker.number] = worker.result()
                    idle.append(worker)
            yield done.pop(wanted)


class _Worker:
    """A process that compiles one task at a time, and ends with the `with` block.

    It is a command, not a process of `multiprocessing`: spawn would import the caller's script
    again, which without `if __name__ == "__main__"` would start another build, and fork would copy
    locks that torch's threads hold.
    """

    def __init__(self, folder: Path, name: int) -> None:
        """folder: for temporary files, those of Triton included."""
        self.number = -1  # of the task
        self._label = ""
        self._output = folder / f"worker-{name}.txt"
        self.connection, theirs = Pipe()
        with theirs, self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"TMPDIR": str(folder)},
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def start(self, spec: KernelSpec, number: int, task: Task) -> None:
        self.number, self._label = number, task.label
        with suppress(ConnectionError):  # `result` reports how the process ended
            self.connection.send((spec, task))

    def result(self) -> Built:
        """Waits for it. Raises VicortError in one line."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise EngineError(self._abrupt_end()) from None
        if isinstance(answer, VicortError):
            raise answer
        return answer

    def _abrupt_end(self) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        lines = self._output.read_text(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return (
            f"{self._label} does not compile (its process ended with {how}: {shown(last)}): build "
            "without the plugin"
        )


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
