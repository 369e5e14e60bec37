"""What TensorRT's int8 and fp8 products cost in accuracy on the embedded model, on the CPU.

    python -m vicort.benchmarks.studies.eight_bit_answers \\
        --out benchmarks/results/eight_bit_answers.json

The ONNX graphs that TensorRT is given, but in fp32, are run by onnxruntime as they are written:
QuantizeLinear and DequantizeLinear around products of fp32. Its own int8 products stay off, because
they saturate on CPUs without VNNI. Sets are calibrated with a stream that nobody is asked about;
the questions and the comparison with fp32 are those of number_formats.py. Answers are recorded by
stream, and the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish
from vicort.benchmarks.studies.calibrated_products import FIRST_SEED, write_clip_of_world
from vicort.benchmarks.studies.number_formats import REFERENCE, FormatSet, answers, ask
from vicort.benchmarks.studies.number_formats import build as build_reference
from vicort.export.calibration_clip import CalibrationClip, read_clip
from vicort.export.checkpoint import TINY, resolve
from vicort.export.engine_set_writer import (
    PlanOptions,
    building,
    draft_manifest,
    seal,
    write_engine_set,
)
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.recipe import load_recipe, model_spec
from vicort.runtime.engines import onnxruntime
from vicort.runtime.manifest import FILE_NAME, ModelSpec, Weights
from vicort.runtime.set_folders import publish

KINDS: tuple[Weights, ...] = ("int8", "fp8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    sets = [FormatSet("onnxruntime", each) for each in (REFERENCE, *options.formats)]
    build_reference(sets[0], options.work)
    for kind, candidate in zip(options.formats, sets[1:], strict=True):
        build(kind, options.work / candidate.name)
    for candidate in sets:
        with products_as_written():
            if not ask(candidate, options, ends):
                print("the time is up; the same command resumes", file=sys.stderr)
                return 1
    result: dict[str, Any] = {"conditions": machine.conditions()}
    return finish(result | {"answers": answers(sets, options)}, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--formats", nargs="+", choices=KINDS, default=KINDS)
    words = "streams of the synthetic world, 71 questions each (default: %(default)s)"
    parser.add_argument("--streams", type=int, default=15, help=words)
    words = "engine sets and records (default: %(default)s)"
    parser.add_argument("--work", type=Path, default=Path("build/eight_bit_answers"), help=words)
    words = "stop asking after so many seconds; the same command resumes"
    parser.add_argument("--seconds", type=float, default=float("inf"), help=words)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser


def build(kind: Weights, folder: Path) -> None:
    """A set for onnxruntime whose graphs are those of a TensorRT set, unless it is there."""
    if (folder / FILE_NAME).is_file():
        return
    checkpoint = resolve(TINY)
    spec = model_spec(TINY, read_configuration(checkpoint), load_recipe(TINY))
    clip = world_clip(spec, checkpoint)
    cpu = draft_manifest(checkpoint, spec, "onnxruntime", REFERENCE, "vicort-build tiny")
    graphs = {name: graph for name, graph in cpu.graphs.items() if name != "vision_pruned"}
    plans = draft_manifest(
        checkpoint,
        spec,
        "tensorrt",
        REFERENCE,
        "vicort-build tiny",
        PlanOptions("tensorrt_rtx", plugin=False),
        weights=kind,
        clip=clip,
    ).model_copy(update={"graphs": graphs})
    with building(folder.parent) as temporary:
        write_engine_set(temporary, checkpoint, plans, _say, clip=clip)
        seal(temporary, cpu.model_copy(update={"graphs": graphs, "embedding": plans.embedding}))
        publish(temporary, folder)


def world_clip(spec: ModelSpec, checkpoint: Path) -> CalibrationClip:
    """A stream of the synthetic world that neither training nor the questions have."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip_of_world(path, FIRST_SEED)
        return read_clip(str(path), spec, checkpoint)


@contextmanager
def products_as_written() -> Iterator[None]:
    """Let onnxruntime multiply what DequantizeLinear gives, in fp32."""
    usual = onnxruntime._options

    def options(threads: int) -> Any:
        changed = usual(threads)
        changed.add_session_config_entry("session.disable_quant_qdq", "1")
        return changed

    with mock.patch.object(onnxruntime, "_options", options):
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
