"""What the model computes for some inputs, stored in an engine set: engines are compared with it
where neither PyTorch nor the checkpoint is.

A compiler may get a graph wrong on one kind of GPU and at one size alone, which no build shows.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vicort.runtime.engines.bindings import BindingsCheck, numpy_dtype
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_run import Arrays, output_arrays, run_engine
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphName
from vicort.runtime.safe_text import is_real, shown

REFERENCE_FILE = "reference.npz"
INDEX = "index"  # array of the file: JSON that says what the others are


@dataclass(frozen=True)
class ReferenceRun:
    """One run of a graph, as the model does it."""

    name: str
    graph: GraphName
    inputs: Arrays
    wanted: Arrays  # float32 or int32, by the outputs' names
    rows: dict[str, np.ndarray]  # output -> [C] bool, of [L,C,…]: the rows that are compared
    allowed: dict[str, float]  # output -> maximum difference, relative to the maximum value


@dataclass(frozen=True)
class Difference:
    """One output of one run, compared with the model's."""

    run: str
    output: str
    absolute: float  # maximum difference
    relative: float  # relative to the maximum value
    allowed: float  # maximum of `relative`

    @property
    def passed(self) -> bool:
        return self.relative <= self.allowed  # False for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "TOO LARGE"
        return (
            f"{self.run:<12} {self.output:<9} abs {self.absolute:.2e}  rel {self.relative:.2e} "
            f"(allowed {self.allowed:.0e})  {verdict}"
        )


def differences(engines: EngineSet, run: ReferenceRun) -> Iterator[Difference]:
    """One for each output of a run of these engines."""
    outputs = run_engine(engines, run.graph, run.inputs)
    for name, wanted in run.wanted.items():
        real, want = outputs[name].astype(np.float64), wanted.astype(np.float64)
        if name in run.rows:
            real, want = real[:, run.rows[name]], want[:, run.rows[name]]
        absolute = float(np.abs(real - want).max())
        relative = absolute / max(float(np.abs(want).max()), 1e-12)
        yield Difference(run.name, name, absolute, relative, run.allowed[name])


def check_reference(engines: EngineSet) -> list[Difference]:
    """Compare engines with the model, by the runs that are stored in their set.

    Raises EngineError if an output differs by more than is allowed, or if none are stored.
    """
    found = []
    for run in read_runs(engines.folder / REFERENCE_FILE, engines):
        for difference in differences(engines, run):
            if not difference.passed:
                raise EngineError(
                    f"{engines.folder}: `{run.name}` gives {difference.output} that differs from "
                    f"the model's by {difference.relative:.2g} of its maximum, and "
                    f"{difference.allowed:.2g} is allowed: these engines compute something else on "
                    f"this machine: rebuild with `{engines.manifest.build_command}`, or with "
                    "another version of its compiler"
                )
            found.append(difference)
    return found


def write_runs(runs: Iterable[ReferenceRun], path: Path) -> None:
    arrays, index = dict[str, Any](), []
    for number, run in enumerate(runs):
        index.append({"name": run.name, "graph": run.graph, "allowed": run.allowed})
        for kind, group in (("in", run.inputs), ("out", run.wanted), ("rows", run.rows)):
            arrays |= {f"{number}.{kind}.{name}": _plain(each) for name, each in group.items()}
    np.savez(path, **arrays | {INDEX: np.array(json.dumps(index))})


def read_runs(path: Path, engines: EngineSet) -> Iterator[ReferenceRun]:
    """Raises EngineError if there is no such file, or it does not fit the engines."""
    rebuild = f"rebuild with `{engines.manifest.build_command}`"
    if not path.is_file():
        if engines.manifest.backend != "tensorrt":  # a build stores none
            rebuild = f"compare while they are built: `{engines.manifest.build_command} --verify`"
        raise EngineError(
            f"{engines.folder} has no {path.name} to compare its engines with: {rebuild}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            entries = json.loads(str(stored[INDEX]))
            if not entries:
                raise ValueError("it has no runs")
            for number, entry in enumerate(entries):
                yield _run(stored, number, entry, engines)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path} is damaged ({error}): {rebuild}") from error


def _run(stored: Any, number: int, entry: dict[str, Any], engines: EngineSet) -> ReferenceRun:
    def group(kind: str) -> Arrays:
        start = f"{number}.{kind}."
        return {name.removeprefix(start): stored[name] for name in stored if name.startswith(start)}

    signature, inputs = engines.manifest.graphs[entry["graph"]], group("in")
    for spec in signature.inputs:
        dtype = numpy_dtype(spec.dtype)
        if dtype.name == "bfloat16":
            inputs[spec.name] = inputs[spec.name].view(dtype)
    run = ReferenceRun(
        entry["name"], entry["graph"], inputs, group("out"), group("rows"), entry["allowed"]
    )
    _check_fits(run, engines.engine(run.graph))
    return run


def _check_fits(run: ReferenceRun, engine: Engine) -> None:
    """Raises ValueError or KeyError if the engine does not take the inputs, or if there is nothing
    to compare with one of its outputs."""
    outputs = output_arrays(engine, run.inputs)
    BindingsCheck(engine.signature)(run.inputs | outputs)
    for name, output in outputs.items():
        wanted = run.wanted[name]
        if wanted.shape != output.shape or not wanted.size:
            raise ValueError(f"{run.name}: {name} has shape {wanted.shape}, not {output.shape}")
        if not is_real(run.allowed[name]):
            raise ValueError(f"{run.name}: {name} may differ by {shown(run.allowed[name])}")
        rows = run.rows.get(name)
        if rows is not None and (
            rows.dtype != bool or rows.shape != output.shape[1:2] or not rows.any()
        ):
            raise ValueError(f"{run.name}: no rows of {name} are compared")


def _plain(array: np.ndarray) -> np.ndarray:
    """bfloat16, which the file format does not know, as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
