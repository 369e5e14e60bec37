"""The manifest of an engine set: its files, how they were built, and what the runtime relies on.

`vicort.export` writes it, `vicort.runtime` reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vicort.runtime.errors import EngineError
from vicort.runtime.frame_grid import MIN_TOKENS, Grid, fit_grid
from vicort.runtime.safe_text import brief, printable, read_text, shown

SCHEMA_VERSION = 6
FILE_NAME = "manifest.json"
# written to a set after it was built; so it is not listed, and names the manifest that it is for
CALIBRATION_FILE = "calibration.json"
Backend = Literal["onnxruntime", "openvino", "tensorrt"]
# the module that builds and runs plans: TensorRT, or TensorRT for RTX
Flavour = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "bf16"]
Activations = Literal["int8"]  # in products with integer weights
Weights = Literal["int8", "int4", "fp8"]  # of matrix products, where they are not of the precision
# keys and values in pages: numbers of the set's precision, or int8 with a scale for each vector
KV = Literal["float", "int8"]
GraphName = Literal["vision", "tokens", "llm", "head", "vision_pruned"]  # the last is optional

# bytes: larger files are fingerprinted by samples, so that a set of 10 GB opens quickly
SAMPLED_ABOVE = 64 << 20
SAMPLE_BYTES = 1 << 20
SAMPLES = 16
MAX_BYTES = 16 << 20  # of a manifest
# commands that an error may show: only vicort-build, without shell syntax
# what is read beside the graphs and embeddings, where it is there. A chat template may be copied to
# a set that has none, so it need not be listed.
ALSO_READ = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "kernels.zip")
COMMAND = re.compile(r"vicort-build [\w ./:=,@+~'-]{0,2000}", re.ASCII)


def _inside(name: str) -> str:
    """Returns the name. Raises ValueError unless it is a relative path inside the folder."""
    path = PurePosixPath(name)
    if (
        not name.isprintable()
        or "\\" in name
        or path.is_absolute()
        or ".." in path.parts
        or str(path) in (".", "")
    ):
        raise ValueError(f"{shown(name)} is not a file name in the engine folder")
    return name


Size = Annotated[int, Field(gt=0, le=2**24)]  # of a part of a model; above all known models
Rate = Annotated[float, Field(gt=0, le=1e6)]
Theta = Annotated[float, Field(gt=0, le=1e12)]
FileName = Annotated[str, AfterValidator(_inside)]
Count = Annotated[int, Field(ge=0, le=2**40)]  # bytes or rows; above all known models
Length = Annotated[int, Field(ge=0, le=2**31 - 1)]  # of a dimension
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
MAX_ENDS = 64  # rows of a run of the language graph whose hidden states leave
MAX_NUMBERS = 2**36  # in one tensor, in one page, or in the pictures of a chunk


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Strict):
    """One input or output of an engine."""

    name: str
    dtype: str  # NumPy's name, or "bfloat16"
    # fixed sizes, or names of dynamic dimensions
    shape: Annotated[tuple[Length | str, ...], Field(max_length=16)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if math.prod(size for size in self.shape if isinstance(size, int)) > MAX_NUMBERS:
            raise ValueError(f"a tensor has more than {MAX_NUMBERS} numbers")
        return self


class Dimension(Strict):
    """Allowed sizes of a dynamic dimension, used as a TensorRT profile and for checks in the other
    backends."""

    min: Length
    opt: Length
    max: Length

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError("a dimension needs min <= opt <= max")
        return self


class GraphSpec(Strict):
    file: FileName  # in the engine folder
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: dict[str, Dimension]
    attention_layers: Length = 0  # BoundedAttention nodes in the exported graph
    # BoundedAttention nodes that a plugin runs; 0 where the function body is inlined
    plugin_layers: Length = 0
    # of a TensorRT plan: number of layers by TensorRT's layer type
    layer_types: dict[str, Length] = Field(default_factory=dict)
    # tensor name -> name in the TensorRT plan, where they differ
    plan_names: dict[str, str] = Field(default_factory=dict)
    # of a stripped plan: the ONNX file in the folder whose weights are loaded before it runs
    refit_from: FileName | None = None


class EmbeddingSpec(Strict):
    """The token embeddings: a raw row-major array in a file, of which a tied output head may be a
    part too."""

    file: FileName
    offset: Count  # bytes
    dtype: str
    rows: Count
    width: Count


class ModelSpec(Strict):
    """The properties of the model that the runtime needs."""

    name: str
    layers: Size
    width: Size
    query_heads: Size
    kv_heads: Size
    head_dim: Size
    vocabulary: Size
    patch: Size  # pixels, side of a patch of the vision encoder
    merge: Size  # patches, side of a visual token
    window: Size  # visual tokens, side of an attention window of the vision encoder
    max_pixels: Size  # area of the largest frame that the vision graph takes
    # height and width in pixels to which all frames are letterboxed; None: `grid` says their size
    fixed_size: tuple[Size, Size] | None
    fps: Rate  # frames per second in training
    # steps of the temporal position per second (vision_config.tokens_per_second)
    tokens_per_second: Rate
    chunk_frames: Size  # maximum number of frames in a chunk
    page_tokens: Size  # T, cells in a page
    max_rows: Size  # maximum number of new tokens in one run of the language graph
    # last rows of a run whose queries the language graph returns separately; at most max_rows
    observed_rows: Size
    max_position: Size  # positions stay below this: the range of training
    # rotary frequencies for t, h and w; they sum to head_dim / 2
    rotary_sections: tuple[Size, Size, Size]
    rotary_theta: Theta  # base of the rotary frequencies
    eos_tokens: tuple[TokenId, ...]
    video_token: TokenId  # id of the placeholder for visual tokens

    @model_validator(mode="after")
    def _fits(self) -> Self:
        products = {
            "chunk_frames x max_pixels": self.chunk_frames * self.max_pixels,
            "layers x kv_heads x head_dim x page_tokens": self.layers
            * self.kv_heads
            * self.head_dim
            * self.page_tokens,
            "vocabulary x width": self.vocabulary * self.width,
            "max_rows x width": self.max_rows * self.width,
            "max_rows x query_heads x head_dim": self.max_rows * self.query_heads * self.head_dim,
            "max_position x head_dim": self.max_position * self.head_dim,
        }
        for name, product in products.items():
            if product > MAX_NUMBERS:
                raise ValueError(f"{name} is {product}, at most {MAX_NUMBERS} is read")
        return self

    @model_validator(mode="after")
    def _holds_a_frame(self) -> Self:
        side = self.token_pixels
        if self.fixed_size is None:
            if self.max_pixels < MIN_TOKENS * side**2:
                raise ValueError(f"max_pixels is less than {MIN_TOKENS} visual tokens")
            return self
        height, width = self.fixed_size
        if height % side or width % side or height * width != self.max_pixels:
            raise ValueError(
                f"fixed_size must be multiples of {side} pixels with an area of max_pixels"
            )
        return self

    @property
    def token_pixels(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch * self.merge

    @property
    def unit_tokens(self) -> int:
        """Visual tokens in a temporal unit of the largest frames, before any are dropped."""
        return self.max_pixels // self.token_pixels**2

    @property
    def fixed_grid(self) -> Grid | None:
        """Of all frames; None where it follows their size."""
        if self.fixed_size is None:
            return None
        height, width = self.fixed_size
        return Grid(height // self.token_pixels, width // self.token_pixels)

    @property
    def frame_size(self) -> str:
        """The size of frames in words."""
        if self.fixed_size:
            height, width = self.fixed_size
            return f"{width}x{height}"
        height, width = self.grid(9000, 16000).pixels(self.token_pixels)
        return (
            f"up to {self.max_pixels} pixels in the shape of the source, {width}x{height} at 16:9"
        )

    def grid(self, height: int, width: int) -> Grid:
        """Of a frame of the source of height x width pixels. Raises SourceError for an aspect ratio
        that the model does not take."""
        return self.fixed_grid or fit_grid(height, width, self.token_pixels, self.max_pixels)


class FileSpec(Strict):
    bytes: Count
    fingerprint: str


class Manifest(Strict):
    schema_version: int = SCHEMA_VERSION
    backend: Backend
    flavour: Flavour | None = None  # of backend tensorrt
    precision: Precision  # of all that is not quantised
    weights: Weights | None = None  # None: of the precision
    activations: Activations | None = None  # of the vision encoder; None: the backend's own
    # fingerprint of the clip that int4 weights were chosen with, or the scales of the inputs of
    # TensorRT's int8 and fp8 products; None: weights are data-free
    calibration: str | None = None
    kv: KV = "float"
    model: ModelSpec
    graphs: dict[GraphName, GraphSpec]
    embedding: EmbeddingSpec
    checkpoint: str  # hash of the configuration and weights of the source checkpoint
    target: str  # GPU architectures, or CPU instruction sets
    versions: dict[str, str]  # of the build tools
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
    """The backend of an engine set, without checking the set; None if it cannot be read."""
    return _field(folder, "backend")


def precision_of(folder: Path) -> str | None:
    """The precision of an engine set, as `backend_of`."""
    return _field(folder, "precision")


def schema_of(folder: Path) -> int | None:
    """The schema version of an engine set, as `backend_of`."""
    found = _field(folder, "schema_version")
    return found if isinstance(found, int) else None


def is_other_schema(folder: Path) -> bool:
    """Whether another version of vicort built this engine set, and this one cannot read it."""
    return schema_of(folder) not in (None, SCHEMA_VERSION)


def _field(folder: Path, key: str) -> Any:
    try:
        return json.loads(read_text(folder / FILE_NAME, MAX_BYTES))[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _advice(folder: Path) -> str:
    """What to do with a folder that is no engine set."""
    if (folder / "config.json").is_file():
        command = shlex.join(["vicort-build", str(folder)])
        return f"it looks like a model, build its engines with `{command}`"
    return "build one with `vicort-build MODEL`, or name another with --engine-dir"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an engine set, and check its schema and its files.

    Raises EngineError, which names the build command, if anything is missing, damaged or of another
    schema.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise EngineError(
            f"no engine folder {printable(str(folder))}: build one with `vicort-build tiny`, or "
            "name another with --engine-dir"
        )
    if not path.is_file():
        raise EngineError(
            f"{printable(str(folder))} has no {FILE_NAME}, so it is not an engine set: "
            f"{_advice(folder)}"
        )
    try:
        content = _parsed(read_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else brief(error)
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
        if "build_command" in content:
            content["build_command"] = command
        # strict: true is no number, and "8" is none
        manifest = Manifest.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(shown(part).strip("'") for part in first["loc"])
        raise EngineError(f"{path}: {field}: {first['msg']}: {rebuild}") from error
    for file in folder.rglob("*"):  # also files that the manifest does not list
        if file.is_symlink() and not _leads_into(file, folder):
            raise EngineError(
                f"{file} is a link to a file outside the folder: copy the file there, or {rebuild}"
            )
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise EngineError(f"{file} is missing: {rebuild}")
        if file.stat().st_size != expected.bytes or fingerprint(file) != expected:
            raise EngineError(
                f"{file} is damaged ({file.stat().st_size} bytes, {expected.bytes} were built): "
                f"{rebuild}"
            )
    return manifest


def check_all_listed(folder: Path, manifest: Manifest) -> None:
    """Raises EngineError unless every file that engines, embeddings and the tokenizer are read from
    is among those whose size and hash `read_manifest` has compared."""
    used = [manifest.embedding.file, *(graph.file for graph in manifest.graphs.values())]
    used += [graph.refit_from for graph in manifest.graphs.values() if graph.refit_from]
    used += [name for name in ALSO_READ if (folder / name).exists()]
    for name in used:
        if name not in manifest.files:
            raise EngineError(
                f"{folder / FILE_NAME} lists no {shown(name)} in its files, but uses it: rebuild "
                f"with `{manifest.build_command}`"
            )


def _parsed(text: str) -> Any:
    """JSON in which all numbers are finite and no key comes twice in an object. Raises ValueError,
    and RecursionError."""

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{shown(number)} is no finite number")
        return float(number)

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {shown(twice)} comes twice")
        return found

    return json.loads(text, parse_float=finite, parse_constant=finite, object_pairs_hook=distinct)


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # the link forms a loop: an error before Python 3.13
        return False
    return not target.is_symlink() and target.is_relative_to(folder.resolve())


def _command(content: Any, folder: Path) -> str:
    """The build command from the manifest, if it is a plain vicort-build command."""
    command = content.get("build_command") if isinstance(content, dict) else None
    return (
        command
        if isinstance(command, str) and COMMAND.fullmatch(command)
        else f"vicort-build MODEL --out {folder}"
    )
