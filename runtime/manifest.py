"""The manifest of an engine set: what was built, from what, with what, and what the runtime may
rely on.

Written by `vicort.export`, read by `vicort.runtime`; it is the only thing that the two share
besides `core`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vicort.runtime.errors import EngineError
from vicort.runtime.safe_text import read_text, shown

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"
Backend = Literal["onnxruntime", "openvino", "tensorrt"]
# the module that built plans and runs them: TensorRT, or TensorRT for RTX
Flavour = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "bf16"]
GraphName = Literal["vision", "tokens", "llm", "vision_pruned"]  # the last is optional

# bytes: larger files are fingerprinted by samples, so that opening a 10 GB set stays quick
SAMPLED_ABOVE = 64 << 20
SAMPLE_BYTES = 1 << 20
SAMPLES = 16
MAX_BYTES = 16 << 20  # of a manifest
# what errors tell the user to type: no other program, no shell
COMMAND = re.compile(r"vicort-build [\w ./:=,@+~'-]{0,2000}", re.ASCII)


def _inside(name: str) -> str:
    """The name, if it is that of a file in the folder, not beside or above it."""
    path = PurePosixPath(name)
    if (
        not name.isprintable()
        or "\\" in name
        or path.is_absolute()
        or ".." in path.parts
        or str(path) in (".", "")
    ):
        raise ValueError(f"{shown(name)} is no name of a file in the engine folder")
    return name


Size = Annotated[int, Field(gt=0, le=2**24)]  # of a part of a model: more than any has
Rate = Annotated[float, Field(gt=0, le=1e6)]
Theta = Annotated[float, Field(gt=0, le=1e12)]
FileName = Annotated[str, AfterValidator(_inside)]
Count = Annotated[int, Field(ge=0, le=2**40)]  # bytes, rows: of any model there may be


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Strict):
    """One tensor at an engine's border."""

    name: str
    dtype: str  # NumPy's name of it, or "bfloat16"
    shape: tuple[int | str, ...]  # a fixed size, or the name of a dimension that varies


class Dimension(Strict):
    """The sizes that a varying dimension may take: a TensorRT profile, and what the other backends
    are checked against."""

    min: int
    opt: int
    max: int


class GraphSpec(Strict):
    file: FileName  # in the engine folder
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: dict[str, Dimension]
    attention_layers: int = 0  # BoundedAttention nodes of the exported graph
    # BoundedAttention nodes that a plugin runs; 0 where its function body was expanded
    plugin_layers: int = 0
    # of a TensorRT plan: layers of its network, by TensorRT's name of their type
    layer_types: dict[str, int] = Field(default_factory=dict)
    # of tensors that a TensorRT plan calls otherwise
    plan_names: dict[str, str] = Field(default_factory=dict)
    # of a stripped plan: the ONNX file in the folder whose weights it is to be given before it runs
    refit_from: FileName | None = None


class EmbeddingSpec(Strict):
    """Where the token embeddings lie: a raw row-major array in a file of the set, which the
    language graph uses too."""

    file: FileName
    offset: Count  # bytes
    dtype: str
    rows: Count
    width: Count


class ModelSpec(Strict):
    """The facts about the model that the runtime needs."""

    name: str
    layers: Size
    width: Size
    query_heads: Size
    kv_heads: Size
    head_dim: Size
    vocabulary: Size
    image_height: Size  # pixels of a frame as the vision graph takes it
    image_width: Size
    grid_height: Size  # merged tokens down a unit
    grid_width: Size  # merged tokens across a unit
    fps: Rate  # frames a second the model was trained to see
    # steps of the temporal position in a second (vision_config.tokens_per_second)
    tokens_per_second: Rate
    chunk_frames: Size  # most frames in a chunk
    page_tokens: Size  # T, cells in a page
    max_rows: Size  # most new tokens in one run of the language graph
    # last rows of a run whose queries the language graph gives one by one; at most max_rows
    observed_rows: Size
    max_position: Size  # positions stay below this: the range that the model was trained in
    # rotary frequencies that turn with t, h and w; they sum to head_dim / 2
    rotary_sections: tuple[Size, Size, Size]
    rotary_theta: Theta  # base of the rotary frequencies
    eos_tokens: tuple[int, ...]
    video_token: int  # id of the placeholder that visual tokens stand for

    @property
    def unit_tokens(self) -> int:
        """Visual tokens in a temporal unit, before any are dropped."""
        return self.grid_height * self.grid_width


class FileSpec(Strict):
    bytes: Count
    fingerprint: str


class Manifest(Strict):
    schema_version: int = SCHEMA_VERSION
    backend: Backend
    flavour: Flavour | None = None  # of backend tensorrt
    precision: Precision
    model: ModelSpec
    graphs: dict[GraphName, GraphSpec]
    embedding: EmbeddingSpec
    checkpoint: str  # hash over the source checkpoint's configuration and weights
    target: str  # GPU architectures, or the CPU's instruction sets
    versions: dict[str, str]  # of the tools that built it
    build_command: str
    files: dict[FileName, FileSpec] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n")


def fingerprint(path: Path) -> FileSpec:
    """Size and hash of a file; above 64 MiB the hash is over 16 evenly spaced blocks of 1 MiB."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= SAMPLED_ABOVE:
            while block := file.read(SAMPLE_BYTES):
                digest.update(block)
        else:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return FileSpec(bytes=size, fingerprint=digest.hexdigest())


def backend_of(folder: Path) -> str | None:
    """The backend that an engine set is for, without checking the set; None if there is no
    telling."""
    try:
        return json.loads(read_text(folder / FILE_NAME, MAX_BYTES))["backend"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an engine set, checked against its schema and its files.

    Raises EngineError, with the command that rebuilds, if anything is missing, of another schema,
    or damaged.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise EngineError(
            f"no engine folder {folder}: build one with `vicort-build tiny`, or name another "
            "with --engine-dir"
        )
    if not path.is_file():
        raise EngineError(
            f"{folder} holds no {FILE_NAME}, so it is no engine set: build one with "
            f"`vicort-build MODEL --out {folder}`"
        )
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise EngineError(
            f"{path} is not JSON ({why}): rebuild with `vicort-build MODEL --out {folder}`"
        ) from error
    command = _command(content, folder)
    rebuild = f"rebuild with `{command}`"
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        found = (
            content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        )
        raise EngineError(
            f"{path} has schema version {shown(found)}, this vicort reads {SCHEMA_VERSION}: "
            f"{rebuild}"
        )
    try:
        manifest = Manifest.model_validate(
            content | {"build_command": command} if "build_command" in content else content
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(shown(part).strip("'") for part in first["loc"])
        raise EngineError(f"{path}: {place}: {first['msg']}: {rebuild}") from error
    for file in folder.rglob("*"):  # whatever is read of a set, named in its manifest or not
        if file.is_symlink() and not _leads_into(file, folder):
            raise EngineError(
                f"{file} is a link that leads out of its folder: copy the file there, or {rebuild}"
            )
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise EngineError(f"{file} is missing: {rebuild}")
        if fingerprint(file) != expected:
            raise EngineError(
                f"{file} is damaged ({file.stat().st_size} bytes, {expected.bytes} were built): "
                f"{rebuild}"
            )
    return manifest


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # it leads round
        return False


def _command(content: Any, folder: Path) -> str:
    """The command that rebuilds, as the manifest has it, if it is one."""
    told = content.get("build_command") if isinstance(content, dict) else None
    return (
        told
        if isinstance(told, str) and COMMAND.fullmatch(told)
        else f"vicort-build MODEL --out {folder}"
    )
