"""What quantised weights and int8 pages cost in accuracy on the embedded model, and in error of
the products of a 3B model with random weights.

    python -m vicort.benchmarks.studies.number_formats \\
        --out benchmarks/results/number_formats.json

Answers: engine sets of `tiny` in each format are asked the same questions about streams of the
synthetic world. Sets are built where they are missing; answers are recorded by stream, and the same
command resumes. Products: see product_errors.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, with_budget
from vicort.benchmarks.evaluation.ages import Row, by_age, rows_of, wilson
from vicort.benchmarks.evaluation.items import Dataset
from vicort.benchmarks.evaluation.shapestream import load
from vicort.benchmarks.evaluation.watching import Candidate
from vicort.benchmarks.studies.paired_answers import compare, pair
from vicort.benchmarks.studies.product_errors import product_errors
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import Backend, Precision, read_manifest

REFERENCE: Precision = "fp32"
CLIP = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "shapes.mp4"
FORMATS: dict[str, tuple[str, ...]] = {  # options of vicort-build
    REFERENCE: (),
    "int8": ("--weights", "int8"),
    "int4": ("--weights", "int4"),
    "int4-calibrated": ("--weights", "int4", "--calibration", str(CLIP)),
    "kv-int8": ("--kv", "int8"),
    "int4-kv-int8": ("--weights", "int4", "--kv", "int8"),
    "activations-int8": ("--weights", "int8", "--activations", "int8"),
}
ONE_BACKEND: dict[str, Backend] = {"activations-int8": "onnxruntime"}
BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")
SYSTEM = "full-history"  # reads all that was kept, so that int8 pages have most to say
AGES = (0, 4, 16, 32, 64)  # units


@dataclass(frozen=True)
class FormatSet:
    """One number format on one backend."""

    backend: Backend
    format: str

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.format}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    chosen = [
        FormatSet(backend, each)
        for backend in options.backends
        for each in (REFERENCE, *options.formats)
        if ONE_BACKEND.get(each, backend) == backend
    ]
    result: dict[str, Any] = {"conditions": machine.conditions()}
    if "answers" in options.parts:
        options.work.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + options.seconds
        for candidate in chosen:
            build(candidate, options.work)
            if not ask(candidate, options, ends):
                print("the time is up; the same command resumes", file=sys.stderr)
                return 1
        result["answers"] = answers(chosen, options)
    if "products" in options.parts:
        result["products"] = product_errors(options.products)
    return finish(result, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    both = ("answers", "products")
    parser.add_argument("--parts", nargs="+", choices=both, default=both)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    formats = [each for each in FORMATS if each != REFERENCE]
    parser.add_argument("--formats", nargs="+", choices=formats, default=formats)
    words = "streams of the synthetic world, 36 questions each (default: %(default)s)"
    parser.add_argument("--streams", type=int, default=30, help=words)
    words = "keep only products whose name has this word"
    parser.add_argument("--products", default="", metavar="WORD", help=words)
    words = "engine sets and records (default: %(default)s)"
    parser.add_argument("--work", type=Path, default=Path("build/number_formats"), help=words)
    words = "stop asking after so many seconds; the same command resumes"
    parser.add_argument("--seconds", type=float, default=float("inf"), help=words)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser


def build(chosen: FormatSet, work: Path) -> None:
    """Builds a set unless it is there and up to date. Raises EngineError if that fails."""
    from vicort.export import build as builder
    from vicort.export.checkpoint import TINY

    options = ("--precision", REFERENCE, *FORMATS[chosen.format])
    command = [TINY, "--backend", chosen.backend, *options, "--out", str(work / chosen.name)]
    if builder.main(command):
        raise EngineError(f"{work / chosen.name} was not built: see the line above")


def ask(candidate: FormatSet, options: argparse.Namespace, ends: float) -> bool:
    """Asks about the streams that the record does not hold; False if the time is up before."""
    record = _record(options.work, candidate)
    done = {row.stream for row in read_rows(record)}
    if done.issuperset(range(options.streams)):
        return True
    with EngineSet.open(options.work / candidate.name, threads=1) as engines:
        asked = Candidate.of(engines, with_budget(SYSTEM, host_mb=0), threads=1)
        for stream, video in enumerate(dataset(options, engines).videos):
            if stream in done:
                continue
            if time.monotonic() > ends:
                return False
            rows = rows_of(candidate.name, video, asked)
            with record.open("a") as file:  # one write, so that a stream is whole or missing
                file.write("".join(json.dumps(vars(row)) + "\n" for row in rows))
            print(candidate.name, video.name, len(rows), file=sys.stderr, flush=True)
    return True


def dataset(options: argparse.Namespace, engines: EngineSet) -> Dataset:
    cache = options.work / "streams"
    return load(engines.manifest.model, options.streams, AGES, cache=cache)


def _record(work: Path, candidate: FormatSet) -> Path:
    return work / f"{candidate.name}.jsonl"


def read_rows(record: Path) -> list[Row]:
    """Rows of a record; none if it is not there."""
    if not record.is_file():
        return []
    return [Row(**json.loads(line)) for line in record.read_text().splitlines()]


def answers(chosen: Sequence[FormatSet], options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of each candidate, and its comparison with fp32 on the same backend."""
    rows = {
        each: [
            row for row in read_rows(_record(options.work, each)) if row.stream < options.streams
        ]
        for each in chosen
    }
    return {
        "system": SYSTEM,
        "streams": options.streams,
        "ages, units": list(AGES),
        "threads": 1,
        "candidates": {
            each.name: candidate_of(each, rows) | stored(options.work / each.name)
            for each in chosen
        },
    }


def candidate_of(candidate: FormatSet, rows: Mapping[FormatSet, Sequence[Row]]) -> dict[str, Any]:
    own, reference = rows[candidate], rows[FormatSet(candidate.backend, REFERENCE)]
    right = sum(row.right for row in own)
    shares = (right / len(own), *wilson(right, len(own)))
    accuracy = dict(
        zip(("percent", "low", "high"), (round(100 * s, 2) for s in shares), strict=True)
    )
    ages = {
        age: {key: cell[key] for key in ("accuracy", "asked", "low", "high")}
        for age, cell in by_age(own)[candidate.name].items()
    }
    compared = {} if own is reference else {"beside fp32": compare(pair(reference, own))}
    return {"accuracy": accuracy, "errors": sum(bool(row.error) for row in own)} | {
        "by age": ages,
        **compared,
    }


def stored(folder: Path) -> dict[str, Any]:
    """How a set keeps its matrices and pages."""
    manifest = read_manifest(folder)
    counts = {
        name: dict(Counter(kinds(folder / graph.file))) for name, graph in manifest.graphs.items()
    }
    return {
        "integer matrices": {name: each for name, each in counts.items() if each},
        "pages": manifest.kv,
    }


def kinds(path: Path) -> Iterator[str]:
    """The type of each integer matrix of a graph."""
    graph = onnx.load(str(path), load_external_data=False).graph
    types = {
        each.name: onnx.TensorProto.DataType.Name(each.data_type).lower()
        for each in graph.initializer
    }
    for node in graph.node:
        match node.op_type:
            case "DequantizeLinear" if node.input[0] in types:
                yield types[node.input[0]]
            case "MatMulNBits":
                yield next(f"int{each.i}" for each in node.attribute if each.name == "bits")
            case "MatMulIntegerToFloat":
                yield "int8, activations too"


if __name__ == "__main__":
    sys.exit(main())
