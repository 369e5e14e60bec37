"""The files beside an ONNX graph that hold its weights, found without loading it.

onnxruntime and OpenVINO follow these names by themselves, so they are looked at before. A graph is
read as protobuf wire format: only the fields that lead to a tensor are entered, so embedded weights
cost nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import FILE_NAME, Manifest
from vicort.runtime.safe_text import shown

MAX_DEPTH = 64  # of messages in messages: graphs in the attributes of nodes
# message -> field -> the message in it; the names are those of onnx.proto
CHILDREN = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def check_external_data(folder: Path, manifest: Manifest) -> None:
    """Raises EngineError unless every file that the set's ONNX graphs name for their weights lies
    in the folder and is listed in the manifest, or if a CPU graph has another format."""
    graphs = manifest.graphs.values()
    names = {graph.file for graph in graphs} | {graph.refit_from for graph in graphs}
    for name in sorted(name for name in names if name):
        if name.endswith(".onnx"):
            _check_graph(folder, manifest, name)
        elif manifest.backend != "tensorrt":  # of other formats the names are not looked at
            raise EngineError(
                f"{folder / name} is no .onnx file: rebuild with `{manifest.build_command}`"
            )


def external_files(path: Path) -> set[str]:
    """The names as the graph has them. Raises EngineError for a file that is no protobuf."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_locations(data, 0, len(data), "Model", 0))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is no ONNX graph ({error})") from error


def _check_graph(folder: Path, manifest: Manifest, name: str) -> None:
    rebuild = f"rebuild with `{manifest.build_command}`"
    try:
        found = external_files(folder / name)
    except EngineError as error:
        raise EngineError(f"{error}: {rebuild}") from error
    for location in sorted(found):
        path = PurePosixPath(location)
        if not location.isprintable() or path.is_absolute() or ".." in path.parts:
            raise EngineError(
                f"{folder / name} reads weights from {shown(location)}, which is not a file name "
                f"in the engine folder: {rebuild}"
            )
        if str(PurePosixPath(name).parent / path) not in manifest.files:
            raise EngineError(
                f"{folder / FILE_NAME} lists no {shown(location)} in its files, but {name} reads "
                f"weights from it: {rebuild}"
            )


def _locations(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    children = CHILDREN[kind]
    for field, first, last in _fields(data, start, end):
        child = children.get(field)
        if child == "Entry":
            entry = {number: data[a:b] for number, a, b in _fields(data, first, last)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()
        elif child:
            yield from _locations(data, first, last, child, depth + 1)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: their numbers, where they begin and end."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError("it is cut off")
            yield (key >> 3) & 0x1FFFFFFF, at, at + length
            at += length
        else:
            raise ValueError("it is not in protobuf's format")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is not in protobuf's format")
