"""The compiled GPU kernels of an engine set: the file format, and the launch geometry.

`kernels.zip` contains cubins for several architectures, and `kernels.json`, which describes them.
`vicort.export.kernels` compiles them, `vicort.runtime.devices.cuda.loaded_kernels` launches them.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import KV, Strict
from vicort.runtime.safe_text import brief, printable, shown

FILE_NAME = "kernels.zip"
INDEX = "kernels.json"
SCHEMA_VERSION = 4
# limits on an archive: bytes of the file, of the index, and of all that is read; members
MAX_BYTES = 256 << 20
MAX_INDEX_BYTES = 4 << 20
MAX_READ_BYTES = 512 << 20
MAX_MEMBERS = 4096
MEMBER = b"PK\x01\x02"  # how an entry of the directory of a ZIP archive begins
REBUILD = "rebuild the engine set with the command in its manifest"

Dtype = Literal["bfloat16", "float16", "float32"]
ArgumentKind = Literal["pointer", "i32", "i64", "f32"]
KernelName = Literal[
    "bounded_attention",
    "rotate_tokens",
    "rotated_attention",
    "combine",
    "scatter_tokens",
    "set_places",
]
# of bounded_attention: tiles of many query vectors, or of few
Form = Literal["wide", "narrow", ""]

NARROW_VECTORS = 32  # per KV head: up to here the narrow form is used
MAX_SHARES = 128  # parts that the keys are split into (flash decoding)
# with this many programs the GPU is busy without a split; it bounds the workspace
MAX_SPLIT_PROGRAMS = 512
# fixed cost of a program in tiles of keys: loading queries, storing and merging results
SHARE_TILES = 3
RESIDENT = {"wide": 1, "narrow": 2, "": 1}  # programs that are resident on a multiprocessor
TILED: tuple[KernelName, ...] = ("bounded_attention", "rotated_attention")
# Scores (query vectors times tokens) of a multiprocessor from which keys are rotated once, by a
# kernel of its own: four tiles of 128 x 64. Counted in the cubins for sm_90, bf16, heads of 128:
# such a tile takes 1,643 instructions of each of 8 warps in bounded_attention and 443 in
# rotated_attention, at 4 a cycle, and 1,024 cycles of the matrix units in both: 4,300 and 1,900
# cycles if nothing overlaps. Four tiles save 9,600, and the second launch, its chain of loads
# (table, slot, position, key) and rotating, 700 cycles a program, cost 5 us, about 9,000.
ROTATED_FROM = 4 * 128 * 64
# of the memory for rotated keys and values; a larger table is read by bounded_attention
MAX_SCRATCH_BYTES = 64 << 20
SCRATCH_ALIGNMENT = 256

Grid = tuple[int, int, int]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# what zipfile and json raise for archives that are none
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    ValueError,
)


class KernelSpec(Strict):
    """The model parameters that kernels are compiled for."""

    kv_heads: int = Field(ge=1, le=1 << 16)
    groups: int = Field(ge=1, le=1 << 16)  # query heads that share a KV head
    head_dim: int = Field(ge=32, le=256)
    page_tokens: int = Field(ge=1, le=1 << 16)
    dtype: Dtype
    kv: KV = "float"  # what pages hold
    sections: tuple[int, int, int]
    interleaved: bool = False  # how t, h and w are assigned to the frequencies
    frequencies: Annotated[tuple[Finite, ...], Field(max_length=128)]  # D/2, each a float32
    # 0: cos and sin are computed; otherwise the number of positions in precomputed tables
    positions: int = Field(default=0, ge=0, le=1 << 24)

    @property
    def pool_dtype(self) -> str:
        return self.dtype if self.kv == "float" else self.kv

    @property
    def pool_item_bytes(self) -> int:
        return {"float32": 4, "int8": 1}.get(self.pool_dtype, 2)

    @property
    def item_bytes(self) -> int:
        """Of the model's own numbers."""
        return 4 if self.dtype == "float32" else 2

    def rotary(self) -> np.ndarray:
        """The kernel argument `rotary`, float32: frequencies [D/2], or tables of cos and sin
        [2,positions,D/2]."""
        frequencies = np.array(self.frequencies, np.float32)
        if not self.positions:
            return frequencies
        angles = (np.arange(self.positions, dtype=np.float32)[:, None] * frequencies).astype(
            np.float64
        )
        return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


class CompiledKernel(Strict):
    """One cubin and how to launch it."""

    kernel: KernelName
    form: Form = ""
    architecture: int = Field(ge=1, le=9999)  # 90 for sm_90
    file: str
    function: str
    warps: int = Field(ge=1, le=64)
    shared_bytes: int = Field(ge=0, le=1 << 24)
    # of the cubin, in order; the last ones are pointers that the compiler added, passed as 0
    arguments: tuple[ArgumentKind, ...]
    constants: dict[str, int | str]  # compile-time constants


class _Index(Strict):
    schema_version: int
    spec: KernelSpec
    versions: dict[str, str]
    kernels: tuple[CompiledKernel, ...]

    @model_validator(mode="after")
    def _have_tiles(self) -> Self:
        for kernel in self.kernels:
            for name in ("BLOCK_M", "BLOCK_N") if kernel.kernel in TILED else ():
                block = kernel.constants.get(name)
                if not isinstance(block, int) or not 1 <= block <= 1 << 16:
                    raise ValueError(f"{name} is {shown(block)}, and not 1 to {1 << 16}")
        return self


def _check_members(archive: zipfile.ZipFile) -> None:
    """Raises ValueError for names that come twice or lead elsewhere, and for what unpacks to too
    much."""
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise ValueError("a name comes twice")
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise ValueError(f"{shown(member.filename)} is no name of a file in it")
        if member.filename == INDEX and member.file_size > MAX_INDEX_BYTES:
            raise ValueError(f"{INDEX} has {member.file_size} bytes, at most {MAX_INDEX_BYTES}")
    size = sum(member.file_size for member in members)
    if size > MAX_READ_BYTES:
        raise ValueError(f"its files have {size} bytes, at most {MAX_READ_BYTES}")


def fitting_architecture(available: Iterable[int], capability: tuple[int, int]) -> int | None:
    """The architecture whose cubins run best on a GPU: its own, else the highest lower one of the
    same major version; None if there is none.

    From 9.0 on, Triton compiles for architecture-specific features (sm_90a), and such cubins run
    on no other.
    """
    major, minor = capability
    fitting = [
        each
        for each in available
        if each == 10 * major + minor or (each < 90 and each // 10 == major and each % 10 < minor)
    ]
    return max(fitting, default=None)


@dataclass(frozen=True)
class Scratch:
    """Where rotate_tokens leaves what rotated_attention reads, as described in
    vicort.export.kernels.rotated_attention."""

    sizes: dict[str, int]  # segment_tokens, cached, new_tokens, vectors: arguments of both kernels
    offsets: dict[str, int]  # queries, keys, values, bias: in bytes, multiples of SCRATCH_ALIGNMENT
    bytes: int

    @staticmethod
    def of(
        spec: KernelSpec, blocks: tuple[int, int], rows: int, pages: int, segments: int
    ) -> Scratch:
        """blocks: of rotated_attention; pages: of each segment."""
        block_m, block_n = blocks
        segment_tokens = _up(pages * spec.page_tokens, block_n)
        cached, new_tokens = segments * segment_tokens, _up(rows, block_n)
        vectors = _up(rows * spec.groups, block_m)
        token_bytes = spec.kv_heads * spec.head_dim * spec.item_bytes
        offsets, end = {}, 0
        for name, size in {
            "queries": vectors * token_bytes,
            "keys": (cached + new_tokens) * token_bytes,
            "values": (cached + new_tokens) * token_bytes,
            "bias": cached * spec.kv_heads * 4,
        }.items():
            offsets[name] = end
            end += _up(size, SCRATCH_ALIGNMENT)
        sizes = {
            **{"segment_tokens": segment_tokens, "cached": cached},
            **{"new_tokens": new_tokens, "vectors": vectors},
        }
        return Scratch(sizes, offsets, end)


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


@dataclass(frozen=True)
class AttentionPlan:
    """How one call of the operator is launched: bounded_attention in a form, or, with `scratch`,
    rotate_tokens and rotated_attention."""

    form: Form
    grid: Grid  # tiles of query vectors, KV heads, shares of the keys
    workspace_bytes: int  # first the scratch memory, then partial results
    scratch: Scratch | None = None

    @property
    def shares(self) -> int:
        return self.grid[2]


@dataclass(frozen=True)
class Kernels:
    """The content of a kernels.zip."""

    name: str
    spec: KernelSpec
    versions: dict[str, str]
    compiled: tuple[CompiledKernel, ...]
    cubins: dict[str, bytes]

    @staticmethod
    def read(path: Path) -> Kernels:
        """Raises EngineError if the file is missing, damaged, or of another schema."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read ({error.strerror}): rebuild the engine set with the "
                "command in its manifest"
            ) from error
        return Kernels.parse(data, str(path))

    @staticmethod
    def parse(data: bytes, name: str = FILE_NAME) -> Kernels:
        """Like `read`, from the bytes of the file."""
        try:
            # counted first: the archive's directory takes more memory once it is read
            if len(data) > MAX_BYTES or data.count(MEMBER) > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_BYTES} bytes or {MAX_MEMBERS} files")
            with zipfile.ZipFile(BytesIO(data)) as archive:
                _check_members(archive)
                content = json.loads(archive.read(INDEX))
                if isinstance(content, dict) and content.get("schema_version") != SCHEMA_VERSION:
                    found = content.get("schema_version")
                    raise EngineError(
                        f"{name} has schema version {shown(found)}, this vicort reads "
                        f"{SCHEMA_VERSION}: {REBUILD}"
                    )
                index = _Index.model_validate(content)
                files = {kernel.file for kernel in index.kernels}
                cubins = {file: archive.read(file) for file in sorted(files)}
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part)[:80] for part in first["loc"])
            raise EngineError(f"{name}: {printable(place)}: {first['msg']}: {REBUILD}") from error
        except DAMAGE as error:
            raise EngineError(f"{name} is damaged ({brief(error)}): {REBUILD}") from error
        return Kernels(name, index.spec, index.versions, index.kernels, cubins)

    def architecture(self, capability: tuple[int, int]) -> int:
        """The architecture to use on a GPU, see `fitting_architecture`. Raises EngineError if
        there is none."""
        available = sorted({kernel.architecture for kernel in self.compiled})
        fitting = fitting_architecture(available, capability)
        if fitting is None:
            major, minor = capability
            names = ", ".join(f"sm_{each}" for each in available)
            raise EngineError(
                f"{self.name} has no kernels for sm_{major}{minor}, only for {names}: use a GPU "
                "of one of these, or rebuild the engine set for this one with --target"
            )
        return fitting

    def find(self, architecture: int, kernel: KernelName, form: Form = "") -> CompiledKernel:
        for each in self.compiled:
            if (each.architecture, each.kernel, each.form) == (architecture, kernel, form):
                return each
        raise EngineError(
            f"{self.name} has no {f'{kernel} {form}'.strip()} for sm_{architecture}: {REBUILD}"
        )

    def plan(
        self,
        rows: int,
        pages: int,
        multiprocessors: int,
        capability: tuple[int, int],
        segments: int = 1,
        rotate_first: bool | None = None,
    ) -> AttentionPlan:
        """How to launch the operator for `rows` new tokens over `pages` pages of each of
        `segments`. It depends on nothing else, so a CUDA graph may contain it.

        rotate_first: by which kernels, if there is memory for it; None = as `rotates_first` says.
        """
        spec, architecture = self.spec, self.architecture(capability)
        scratch = None
        if rotate_first is None:
            rotate_first = rotates_first(spec, rows, segments * pages, multiprocessors)
        if rotate_first:
            blocks = self._blocks(architecture, "rotated_attention", "")
            scratch = Scratch.of(spec, blocks, rows, pages, segments)
            scratch = scratch if scratch.bytes <= MAX_SCRATCH_BYTES else None
        form: Form = "narrow" if is_narrow(spec, rows) else "wide"
        if scratch:
            form = ""
        else:
            blocks = self._blocks(architecture, "bounded_attention", form)
        block_m, block_n = blocks
        programs = math.ceil(rows * spec.groups / block_m) * spec.kv_heads
        tiles = math.ceil(segments * pages * spec.page_tokens / block_n) + math.ceil(rows / block_n)
        most = max(1, min(MAX_SHARES, tiles, MAX_SPLIT_PROGRAMS // max(1, programs)))
        slots = multiprocessors * RESIDENT[form]
        shares = min(
            range(1, most + 1),
            key=lambda count: (
                math.ceil(programs * count / slots) * (math.ceil(tiles / count) + SHARE_TILES)
            ),
        )
        vectors = rows * spec.groups * spec.kv_heads
        workspace = shares * vectors * (spec.head_dim + 2) * 4 if shares > 1 else 0
        workspace += scratch.bytes if scratch else 0
        return AttentionPlan(
            form, (programs // spec.kv_heads, spec.kv_heads, shares), workspace, scratch
        )

    def workspace_bytes(self, max_rows: int, max_table: int, max_segments: int = 1) -> int:
        """Maximum workspace of any plan on any GPU, for up to `max_rows` new tokens and `max_table`
        pages of each of `max_segments`."""
        spec = self.spec
        most = 0
        for kernel in self.compiled:
            if kernel.kernel in TILED:
                block_m, block_n = self._blocks(kernel.architecture, kernel.kernel, kernel.form)
                rows = (
                    min(max_rows, NARROW_VECTORS // spec.groups)
                    if kernel.form == "narrow"
                    else max_rows
                )
                tiles = math.ceil(max_segments * max_table * spec.page_tokens / block_n)
                tiles += math.ceil(rows / block_n)
                every = rows * spec.groups * spec.kv_heads * min(MAX_SHARES, tiles)
                found = min(MAX_SPLIT_PROGRAMS * block_m, every) * (spec.head_dim + 2) * 4
                if kernel.kernel == "rotated_attention":
                    scratch = Scratch.of(spec, (block_m, block_n), rows, max_table, max_segments)
                    found += min(scratch.bytes, MAX_SCRATCH_BYTES)
                most = max(most, found)
        return most

    def _blocks(self, architecture: int, kernel: KernelName, form: Form) -> tuple[int, int]:
        constants = self.find(architecture, kernel, form).constants
        return int(constants["BLOCK_M"]), int(constants["BLOCK_N"])


def is_narrow(spec: KernelSpec, rows: int) -> bool:
    """Whether so few query vectors share a KV head that small tiles serve them, as in decoding:
    reading the keys takes the time there."""
    return rows * spec.groups <= NARROW_VECTORS


def rotates_first(spec: KernelSpec, rows: int, pages: int, multiprocessors: int) -> bool:
    """Whether to rotate the keys once before attention, see ROTATED_FROM; pages: of all
    segments."""
    tokens = pages * spec.page_tokens + rows
    scores = rows * spec.groups * spec.kv_heads * tokens
    # products in float32 take most of the time there, and the tiles of both forms are small
    if spec.dtype == "float32" or is_narrow(spec, rows):
        return False
    return scores >= ROTATED_FROM * multiprocessors
