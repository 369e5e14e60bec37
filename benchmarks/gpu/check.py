"""`make gpu-check`: correctness and speed of vicort on a GPU, in one JSON report.

Each step runs in a child process, so that a crash, a hang or a broken GPU context stops no other
step. A step passes, fails with an error, or is skipped with the reason; exit code 0 = nothing
failed and something passed, 1 = something failed, 4 = nothing could be checked, 130 = interrupted.
Steps of earlier calls on the same machine stay in the report, which is written before and after
each step, and beside it as text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.children import ChildFailed, in_child, one_line
from vicort.benchmarks.common.machine import now, version_of
from vicort.benchmarks.common.settings import REAL_SIDES
from vicort.benchmarks.gpu import cuda_toolkit, nvidia_smi
from vicort.benchmarks.gpu.gpu_report import lines
from vicort.runtime.errors import ConfigError, VicortError

if TYPE_CHECKING:
    from vicort.benchmarks.gpu.lab import Lab
    from vicort.runtime.sources.opening import Decode

SCHEMA = 3
OUT = Path("benchmarks/results/gpu-check.json")
CACHE = Path("build/gpu-check")
FAILED, NOTHING, INTERRUPTED = 1, 4, 130  # exit codes
MINUTE = 60.0


LIBRARIES = (
    "vicort",
    "torch",
    "triton",
    "numpy",
    "transformers",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "cuda-bindings",
    "nvidia-dali-cuda130",
    "PyNvVideoCodec",
    "onnxruntime",
    "av",
    "tokenizers",
)

Found = dict[str, Any]  # what a step reports
Run = Callable[[str, Path, float], Found]  # a step's name, the cache, seconds that it may take


@dataclass(frozen=True)
class Step:
    question: str  # that it answers
    run: Callable[[Lab], Found]  # raises Skip; child processes load it by its name
    seconds: float = 10 * MINUTE  # timeout
    expected: float = MINUTE  # seconds that it takes, estimated


# Steps import their modules late: --list then imports no PyTorch, and a library that is missing or
# broken fails the steps that use it and no others.


def environment(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.environment(lab)


def plan(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.plan(lab)


def inductor(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.inductor(lab)


def kernels(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import kernel_steps

    return kernel_steps.correctness(lab)


def engines(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.engines(lab)


def graphs(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.graphs(lab)


def streams(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.streams(lab)


def pipeline(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import engine_steps

    return engine_steps.pipeline(lab)


def ceilings(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import kernel_steps

    return kernel_steps.ceilings(lab)


def products(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import product_steps

    return product_steps.products(lab)


def kernel_speed(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import kernel_steps

    return kernel_steps.speed(lab)


def preprocess(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import video_steps

    return video_steps.preprocess(lab)


def nvdec(lab: Lab) -> Found:
    from vicort.benchmarks.gpu import video_steps

    return video_steps.nvdec(lab)


def real_build(lab: Lab, size: str, side: int) -> Found:
    from vicort.benchmarks.gpu import real_models

    return real_models.build(lab, size, side)


def real_stages(lab: Lab, size: str, side: int) -> Found:
    from vicort.benchmarks.gpu import pipeline_steps

    return pipeline_steps.stages(lab, size, side)


def real_pipeline(lab: Lab, size: str, side: int) -> Found:
    from vicort.benchmarks.gpu import pipeline_steps

    return pipeline_steps.pipeline(lab, size, side)


def real_questions(lab: Lab, size: str, side: int) -> Found:
    from vicort.benchmarks.gpu import pipeline_steps

    return pipeline_steps.questions(lab, size, side)


def real_encoded(lab: Lab, size: str, side: int, decode: Decode) -> Found:
    from vicort.benchmarks.gpu import pipeline_steps

    return pipeline_steps.encoded(lab, size, side, decode)


def real_transformers(lab: Lab, size: str, side: int, compiled: bool) -> Found:
    from vicort.benchmarks.gpu import transformers_steps

    return transformers_steps.transformers(lab, size, side, compiled)


def real_profile(lab: Lab, size: str, side: int) -> Found:
    from vicort.benchmarks.gpu import layer_profile

    return layer_profile.profile(lab, size, side)


def real_size_steps(size: str, slower: float) -> dict[str, Step]:
    """The pipeline at real size. slower: expected time, relative to the 3B model's."""
    small, large = REAL_SIDES

    def step(
        question: str, run: Callable[..., Found], minutes: float, expected: float, **given: Any
    ) -> Step:
        """minutes: timeout; expected: seconds for the 3B model."""
        bound = partial(run, size=size, **given)
        return Step(f"{size}: {question}", bound, minutes * MINUTE, slower * expected)

    steps = {
        # Of 3B widths with 2 and 10 layers, built on two cores without a GPU: 0.7 s a language
        # layer to export and 1.3 s to build, 2 s and 0.8 s a vision layer, and the child that
        # builds a plan takes three times its weights of memory: 19 GB for 3B, 46 GB for 7B.
        # By AOTInductor, of full depth with narrow MLPs, on two busy cores: 240 s for vision, 385 s
        # for language, which both sizes of frames share.
        "build": step(
            f"can random weights of this size be drawn and built, {small}x{small}?",
            real_build,
            20,
            480,
            side=small,
        ),
        f"build-{large}": step(f"and {large}x{large}?", real_build, 20, 240, side=large),
        "stages": step(
            f"how long does each stage take, {small}x{small}?", real_stages, 5, 45, side=small
        ),
        f"stages-{large}": step(f"and {large}x{large}?", real_stages, 5, 60, side=large),
        "pipeline": step(
            f"how fast is the whole of it, {small}x{small}?", real_pipeline, 8, 90, side=small
        ),
        f"pipeline-{large}": step(f"and {large}x{large}?", real_pipeline, 8, 160, side=large),
        "questions": step(
            "how long does a first token take, idle and while ingesting?",
            real_questions,
            10,
            240,
            side=small,
        ),
        "decode-gpu": step(
            "how fast is it with NVDEC?", real_encoded, 5, 45, side=small, decode="gpu"
        ),
        "decode-cpu": step(
            "and with FFmpeg on the CPU?", real_encoded, 5, 60, side=small, decode="cpu"
        ),
        "transformers": step(
            "how long does transformers take for the same job?",
            real_transformers,
            8,
            120,
            side=small,
            compiled=False,
        ),
        "transformers-compiled": step(
            "and under torch.compile?", real_transformers, 15, 300, side=small, compiled=True
        ),
        "profile": step("where does the time go?", real_profile, 6, 60, side=small),
    }
    return {f"{size}-{name}": step for name, step in steps.items()}


STEPS: dict[str, Step] = {  # the cheapest and most informative first
    "environment": Step("which GPU, driver and libraries?", environment, 2 * MINUTE, 15),
    "plan": Step("does TensorRT take plans that were built without this GPU?", plan),
    "inductor": Step(
        "where it does not: do AOTInductor's engines run?", inductor, 20 * MINUTE, 180
    ),
    "kernels": Step("do the kernels compute what they should?", kernels, 20 * MINUTE, 120),
    "engines": Step("do engines with the plugin give what the CPU's give?", engines, expected=40),
    "graphs": Step("are runs captured in CUDA graphs, and replays equal?", graphs, expected=40),
    "streams": Step("do two engines overlap on two streams?", streams, expected=40),
    "pipeline": Step(
        "does the pipeline answer as on the CPU, overlapped and not?", pipeline, 20 * MINUTE
    ),
    "ceilings": Step(
        "how fast are a large matrix product and a large copy?", ceilings, expected=40
    ),
    "products": Step("how fast are products of the 3B model's own shapes?", products),
    "kernel-speed": Step("how near do the kernels come to that?", kernel_speed, 20 * MINUTE, 150),
    "preprocess": Step("does DALI resize on the GPU as on the CPU?", preprocess),
    "nvdec": Step("does NVDEC decode as FFmpeg does?", nvdec),
    **real_size_steps("3b", 1.0),
    **real_size_steps("7b", 1.8),
}


def check(
    names: Sequence[str],
    folder: Path,
    out: Path,
    run: Run,
    within: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs these steps, one after another, and writes `out` before and after each.

    within: seconds; a step that is not expected to end in time is skipped, and one that takes
    longer is ended. Outcomes in `out` of the same machine and libraries stay until their step runs
    again and is not skipped. An interruption is the outcome of the step that it ended, and raised.
    """
    start = clock()
    report: dict[str, Any] = {"schema": SCHEMA, "conditions": conditions(), "steps": {}}
    report["steps"] = earlier_steps(out, report)
    earlier = out.is_file()
    versions = report["conditions"]["libraries"] | {"code": code_hash()}
    ran: dict[str, Any] = {}

    def keep() -> None:
        if not earlier or exit_code(report["steps"]) != NOTHING:
            write(out, report)

    for name in names:
        print(f"{name:24} {STEPS[name].question} …", end=" ", file=sys.stderr, flush=True)
        left = None if within is None else within - (clock() - start)
        measured = now() | {"versions": versions}
        report["under_way"] = {"step": name, **measured}
        began, interruption = time.monotonic(), None
        try:
            keep()
            outcome = _outcome(name, folder, run, left)
        except KeyboardInterrupt as error:  # also one that comes before the step has begun
            outcome, interruption = _interrupted(time.monotonic() - began), error
        ran[name] = outcome = outcome | {"measured": measured}
        del report["under_way"]
        print(
            outcome["outcome"] + (f": {outcome['reason']}" if "reason" in outcome else ""),
            file=sys.stderr,
            flush=True,
        )
        if outcome["outcome"] != "skipped" or name not in report["steps"]:
            report["steps"][name] = outcome
        report["steps"] = {step: report["steps"][step] for step in STEPS if step in report["steps"]}
        keep()
        if interruption:
            raise interruption
    return report | {"ran": ran}


def _outcome(name: str, folder: Path, run: Run, left: float | None) -> Found:
    """left: seconds; None = without end."""
    step = STEPS[name]
    if left is not None and step.expected > left:
        return {"outcome": "skipped", "reason": too_late(name, left)}
    return run(name, folder, min(step.seconds, left or step.seconds))


def _interrupted(took: float) -> Found:
    """took: seconds."""
    reason = f"it was interrupted after {took:.0f} s, before it ended"
    return {"outcome": "failed", "reason": reason, "seconds": round(took, 2)}


def too_late(name: str, left: float) -> str:
    return (
        f"it is expected to take {STEPS[name].expected:.0f} s, {max(left, 0):.0f} are left "
        f"of --within: run it with --only {name}"
    )


def earlier_steps(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Outcomes in `out` that can stay; none if it holds no such report, or one of another
    machine."""
    try:
        earlier = json.loads(out.read_text())
        comparable = ("cpu", "cores", "memory_gb", "python", "libraries")
        there, here = earlier["conditions"], report["conditions"]
        same = all(there[key] == here[key] for key in comparable) and gpu_of(there) == gpu_of(here)
        return earlier["steps"] if same and earlier["schema"] == report["schema"] else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def gpu_of(conditions: dict[str, Any]) -> Any:
    """Its name and driver: clocks and temperature change all the time."""
    found = conditions["nvidia_smi"]
    return (found["name"], found["driver_version"]) if isinstance(found, dict) else found


def conditions() -> dict[str, Any]:
    return machine.conditions() | {
        "nvidia_smi": nvidia_smi.nvidia_smi(),
        "libraries": {name: version for name in LIBRARIES if (version := version_of(name))},
    }


def code_hash() -> str:
    """Of vicort's own code, since it may run from a copy without a version."""
    digest = hashlib.sha256()
    for room in ("benchmarks", "export", "runtime"):
        folder = Path(__file__).parents[2] / room
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def write(path: Path, report: dict[str, Any]) -> None:
    """As JSON and, beside it, as text; each atomically."""
    replace(path, json.dumps(report, indent=1) + "\n")
    replace(path.with_suffix(".txt"), "\n".join(lines(report)) + "\n")


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def exit_code(outcomes: Mapping[str, Mapping[str, Any]]) -> int:
    found = {outcome["outcome"] for outcome in outcomes.values()}
    return FAILED if "failed" in found else 0 if "passed" in found else NOTHING


def run_here(name: str, folder: Path, step: Step | None = None) -> dict[str, Any]:
    """A step's outcome, in this process."""
    from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed

    start = time.perf_counter()
    found: Found
    try:
        found = {"outcome": "passed"} | (step or STEPS[name]).run(Lab(folder))
    except Skip as skip:
        found = {"outcome": "skipped", "reason": one_line(skip)}
    except VicortError as error:
        found = {"outcome": "failed", "reason": one_line(error)}
        found |= error.found if isinstance(error, StepFailed) else {}
    except Exception as error:  # noqa: BLE001 (whatever a step raises is its outcome)
        traceback.print_exc()
        found = {
            "outcome": "failed",
            "reason": one_line(error),
            "trace": traceback.format_exc().splitlines()[-12:],
        }
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def run_apart(name: str, folder: Path, seconds: float, step: Step | None = None) -> dict[str, Any]:
    """A step's outcome from a child process, or how the process ended. seconds: timeout."""
    try:
        return in_child(run_prepared, name, folder, step or STEPS[name], seconds=seconds)
    except ChildFailed as failure:
        return {"outcome": "failed", "reason": str(failure)}


def run_prepared(name: str, folder: Path, step: Step) -> dict[str, Any]:
    """A step's outcome, in a process that imported no PyTorch yet."""
    cuda_toolkit.prepare(folder)
    # At its end PyTorch may wait 300 s for a pool of processes that it has only just started.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return run_here(name, folder, step)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vicort.benchmarks.gpu.check", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    words = f"run this step alone (may be repeated): {', '.join(STEPS)}"
    add("--only", action="append", default=[], metavar="STEP", help=words)
    add("--out", type=Path, default=OUT, help="the report (%(default)s)")
    words = "folder for engine sets and kernels (%(default)s)"
    add("--cache", type=Path, default=CACHE, help=words)
    words = "start no step that is not expected to end in this time, and end one that takes longer"
    add("--within", type=float, metavar="SECONDS", help=words)
    words = "only list the steps, with the seconds that each is expected to take"
    add("--list", action="store_true", help=words)
    options = parser.parse_args(arguments)
    try:
        return _main(options)
    except VicortError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.only if name not in STEPS]:
        raise ConfigError(f"--only {unknown[0]}: unknown step: choose from {', '.join(STEPS)}")
    names = [name for name in STEPS if name in options.only or not options.only]
    if options.list:
        print(
            "\n".join(
                f"{name:24} {STEPS[name].expected:5.0f} s  {STEPS[name].question}" for name in names
            )
        )
        return 0
    if not options.out.parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: the folder {options.out.parent} does not exist: make it, or "
            "name another file"
        )
    options.cache.mkdir(parents=True, exist_ok=True)
    with interruptible():
        report = check(names, options.cache.resolve(), options.out, run_apart, options.within)
    return say(report, options.out)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, also where a shell started this in the
    background, which ignores the first."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(report: dict[str, Any], out: Path) -> int:
    """Prints the whole report and the outcomes of this call; returns the exit code."""
    print("\n".join(lines(report)))
    counts = [outcome["outcome"] for outcome in report["ran"].values()]
    code = exit_code(report["ran"])
    summary = ", ".join(f"{counts.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
    print(
        f"gpu-check: {summary}; written: {out}"
        + ("; NOTHING WAS CHECKED" if code == NOTHING else "")
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
