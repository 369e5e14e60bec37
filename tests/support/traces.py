"""Traces of torch.onnx.export, kept from one test run to the next in `build/test-traces/`: they are
most of what building an engine set takes.

A trace is found again by all that it is made of: the weights and settings of the module, the
arguments of the call, the source of what is traced and of what traces it, and the versions of the
libraries. What vicort does before and after it is done each time; names that it gives to values
are other ones then. Remove the folder to trace anew.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "test-traces"
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")
PLACES = {"vicort": ROOT, "support": Path(__file__).parent}  # of packages whose source counts
MAX_BYTES = 64 * 2**20  # of a module's weights
UNUSED_DAYS = 14  # after which a trace is removed
PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, Path)


class NotKept(Exception):
    """The module has something of which it cannot be said whether it is the same."""


def keep_traces() -> None:
    """Let torch.onnx.export return what an equal call returned in an earlier run, if there was
    one."""
    import torch.onnx

    if not hasattr(torch.onnx.export, "__wrapped__"):
        torch.onnx.export = _kept(torch.onnx.export)


def _kept(export: Any) -> Any:
    @functools.wraps(export)
    def export_or_read(module: Any, inputs: Any, **options: Any) -> Any:

        try:
            path = FOLDER / f"{_Digest().of(module, inputs, options)}.onnx"
        except NotKept:
            return export(module, inputs, **options)
        if path.is_file():
            os.utime(path)
            return _Program(_read(path))
        program = export(module, inputs, **options)
        if program is not None:
            _keep(program.model, path)
        return program

    return export_or_read


@dataclasses.dataclass
class _Program:
    """What tests and vicort use of a torch.onnx.ONNXProgram."""

    model: Any

    @property
    def model_proto(self) -> Any:
        from onnx_ir import serde

        return serde.serialize_model(self.model)


def _read(path: Path) -> Any:
    import numpy as np
    import onnx_ir

    model = onnx_ir.load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # in memory that may be written to, as after a trace
            array, kind = np.array(value.const_value.numpy()), value.const_value.dtype
            value.const_value = onnx_ir.tensor(array, dtype=kind, name=value.name)
    return model


def _keep(model: Any, path: Path) -> None:
    import onnx_ir

    FOLDER.mkdir(parents=True, exist_ok=True)
    _remove_unused()
    with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".part", delete=False) as file:
        pass
    onnx_ir.save(model, file.name)
    os.replace(file.name, path)


def _remove_unused() -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in FOLDER.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if path.stat().st_mtime < oldest:
                path.unlink()


class _Digest:
    """Of a module, the arguments of its export, and the source behind both."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._numbers: dict[int, int] = {}  # of modules and tensors, by id: some are shared
        self._bytes = 0
        self._sources: set[Path] = {ROOT / "export" / "graphs.py"}

    def of(self, *values: Any) -> str:
        for value in values:
            self._add(value)
        for library in LIBRARIES:
            self._note(library, version(library))
        for path in sorted(_with_imports(frozenset(self._sources))):
            self._note(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        return self._hash.hexdigest()[:32]

    def _note(self, *words: object) -> None:
        self._hash.update(repr(words).encode())

    def _add(self, value: Any) -> None:
        import numpy as np
        import torch

        if isinstance(value, PLAIN) or type(value) in (torch.dtype, torch.device, torch.Size):
            self._note(type(value).__name__, repr(value))
        elif isinstance(value, tuple | list):
            self._note(type(value).__name__, len(value))
            for each in value:
                self._add(each)
        elif isinstance(value, dict):
            self._add([(str(key), each) for key, each in value.items()])
        elif isinstance(value, set | frozenset):
            self._add(sorted(map(repr, value)))
        elif isinstance(value, torch.nn.Module):
            self._add_module(value)
        elif isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._note(value.dtype.str, value.shape)
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._source_of(type(value))
            self._add({each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
        elif isinstance(value, torch.export.dynamic_shapes.Dim):
            self._note(value.__name__, getattr(value, "min", None), getattr(value, "max", None))
        elif inspect.isfunction(value):
            self._source_of(value)
        else:
            raise NotKept(type(value).__name__)

    def _is_known(self, value: object) -> bool:
        known = id(value) in self._numbers
        self._note(self._numbers.setdefault(id(value), len(self._numbers)))
        return known

    def _add_module(self, module: Any) -> None:
        self._source_of(type(module))
        if not self._is_known(module):
            self._add(vars(module))

    def _add_tensor(self, tensor: Any) -> None:
        import torch

        if self._is_known(tensor):
            return
        self._bytes += tensor.nbytes
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or self._bytes > MAX_BYTES:
            raise NotKept(type(tensor).__name__)
        self._note(tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad)
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._hash.update(plain.numpy())

    def _source_of(self, code: Any) -> None:
        self._note(code.__module__, code.__qualname__)
        if code.__module__.partition(".")[0] != "torch":
            self._sources.add(Path(inspect.getfile(code)))


@functools.cache
def _with_imports(files: frozenset[Path]) -> frozenset[Path]:
    """Files, and the files of this repository that they import, and so on."""
    found, new = set(), set(files)
    while new:
        found |= new
        new = {path for each in new for path in _imported(each)} - found
    return frozenset(found)


@functools.cache
def _imported(file: Path) -> frozenset[Path]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {
        PLACES[package].joinpath(*rest.split(".")).with_suffix(".py")
        for package, _, rest in (name.partition(".") for name in names)
        if package in PLACES and rest
    }
    return frozenset(path for path in paths if path.is_file())
