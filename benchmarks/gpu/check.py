"""`make gpu-check`: what a GPU makes of vicort, checked and measured in one go; one JSON report.

Each step runs in a process of its own, so that one which crashes, hangs or breaks the GPU's context
stops no other. A step passes, fails with an error, or is skipped with the reason; exit code 0 =
nothing failed and something passed, 1 = something failed, 4 = nothing could be checked. A report is
added to: steps of earlier calls on the same machine stay in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.settings import REAL_SIDES
from vicort.runtime.errors import ConfigError, VicortError

SCHEMA = 2
OUT = Path("benchmarks/results/gpu-check.json")
CACHE = Path("build/gpu-check")
FAILED, NOTHING = 1, 4  # exit codes
MINUTE = 60.0


@dataclass(frozen=True)
class Step:
    question: str  # that it answers
    function: str  # module:name, takes a Lab, returns a dict or raises Skip
    seconds: float = 10 * MINUTE  # after which it counts as hung
    arguments: tuple[Any, ...] = ()  # of the function, behind the Lab
    expected: float = MINUTE  # seconds that it takes: estimated, as none of them has run

    def run(self, lab: Any) -> dict[str, Any]:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)(lab, *self.arguments)


REAL = "vicort.benchmarks.gpu.pipeline_steps"


def real_size_steps(size: str, slower: float) -> dict[str, Step]:
    """The pipeline at real size. slower: how many times as long as the 3B model's steps they are
    expected to take."""
    small, large = REAL_SIDES
    transformers = "vicort.benchmarks.gpu.transformers_steps:transformers"
    steps = {
        # Of 3B widths with 2 and 10 layers, built on two cores without a GPU: 0.7 s a language
        # layer to export and 1.3 s to build, 2 s and
        # 0.8 s a vision layer, and the child that builds a plan takes three times its weights of
        # memory: 19 GB for 3B, 46 GB for 7B.
        "build": Step(
            "can random weights of this size be drawn and built?",
            "vicort.benchmarks.gpu.real_models:build",
            20 * MINUTE,
            (),
            300,
        ),
        "stages": Step(
            f"how long does each stage take, {small}x{small}?",
            f"{REAL}:stages",
            5 * MINUTE,
            (small,),
            45,
        ),
        f"stages-{large}": Step(
            f"and {large}x{large}?", f"{REAL}:stages", 5 * MINUTE, (large,), 60
        ),
        "pipeline": Step(
            f"how fast is the whole of it, {small}x{small}?",
            f"{REAL}:pipeline",
            8 * MINUTE,
            (small,),
            90,
        ),
        f"pipeline-{large}": Step(
            f"and {large}x{large}?", f"{REAL}:pipeline", 8 * MINUTE, (large,), 160
        ),
        "questions": Step(
            "how long does a first token take, idle and while ingesting?",
            f"{REAL}:questions",
            8 * MINUTE,
            (small,),
            150,
        ),
        "decode-gpu": Step(
            "how fast is it with NVDEC?", f"{REAL}:encoded", 5 * MINUTE, (small, "gpu"), 45
        ),
        "decode-cpu": Step(
            "and with FFmpeg on the CPU?", f"{REAL}:encoded", 5 * MINUTE, (small, "cpu"), 60
        ),
        "transformers": Step(
            "how long does transformers take for the same job?",
            transformers,
            8 * MINUTE,
            (small, False),
            120,
        ),
        "transformers-compiled": Step(
            "and under torch.compile?", transformers, 15 * MINUTE, (small, True), 300
        ),
        "profile": Step(
            "where does the time go?",
            "vicort.benchmarks.gpu.layer_profile:profile",
            6 * MINUTE,
            (small,),
            60,
        ),
    }
    return {
        f"{size}-{name}": replace(
            step,
            question=f"{size}: {step.question}",
            arguments=(size, *step.arguments),
            expected=slower * step.expected,
        )
        for name, step in steps.items()
    }


STEPS: dict[str, Step] = {  # the cheapest and most telling first
    "environment": Step(
        "which GPU, driver and libraries?",
        "vicort.benchmarks.gpu.engine_steps:environment",
        2 * MINUTE,
    ),
    "plan": Step(
        "does TensorRT take plans that were built without this GPU?",
        "vicort.benchmarks.gpu.engine_steps:plan",
    ),
    "inductor": Step(
        "where it does not: do AOTInductor's engines run?",
        "vicort.benchmarks.gpu.engine_steps:inductor",
        20 * MINUTE,
    ),
    "kernels": Step(
        "do the kernels compute what they should?",
        "vicort.benchmarks.gpu.kernel_steps:correctness",
        20 * MINUTE,
    ),
    "engines": Step(
        "do engines with the plugin give what the CPU's give?",
        "vicort.benchmarks.gpu.engine_steps:engines",
    ),
    "graphs": Step(
        "are runs captured in CUDA graphs, and replays equal?",
        "vicort.benchmarks.gpu.engine_steps:graphs",
    ),
    "streams": Step(
        "do two engines overlap on two streams?", "vicort.benchmarks.gpu.engine_steps:streams"
    ),
    "pipeline": Step(
        "does the pipeline answer as on the CPU, overlapped and not?",
        "vicort.benchmarks.gpu.engine_steps:pipeline",
        20 * MINUTE,
    ),
    "ceilings": Step(
        "how fast are a large matrix product and a large copy?",
        "vicort.benchmarks.gpu.kernel_steps:ceilings",
    ),
    "kernel-speed": Step(
        "how near do the kernels come to that?",
        "vicort.benchmarks.gpu.kernel_steps:speed",
        20 * MINUTE,
    ),
    "preprocess": Step(
        "does DALI resize on the GPU as on the CPU?", "vicort.benchmarks.gpu.video_steps:preprocess"
    ),
    "nvdec": Step("does NVDEC decode as FFmpeg does?", "vicort.benchmarks.gpu.video_steps:nvdec"),
    **real_size_steps("3b", 1.0),
    **real_size_steps("7b", 1.8),
}
Run = Callable[[str, Path], dict[str, Any]]


def check(
    names: Sequence[str],
    folder: Path,
    out: Path,
    run: Run,
    within: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run these steps, one after another; what is done is in `out` even if a later step kills this
    process.

    within: seconds; a step that is not expected to end in time is skipped. Outcomes that `out`
    holds of the same machine and libraries stay, until their step runs again; a step that is
    skipped takes nothing's place.
    """
    from vicort.benchmarks.common.machine import now

    start = clock()
    report: dict[str, Any] = {"schema": SCHEMA, "conditions": conditions(), "steps": {}}
    report["steps"] = earlier_steps(out, report)
    earlier = out.is_file()
    ran: dict[str, Any] = {}
    for name in names:
        print(f"{name:24} {STEPS[name].question} …", end=" ", file=sys.stderr, flush=True)
        left = None if within is None else within - (clock() - start)
        late = left is not None and STEPS[name].expected > left
        outcome: dict[str, Any] = (
            {"outcome": "skipped", "reason": too_late(name, left)} if late else run(name, folder)
        )
        ran[name] = outcome = outcome | {"measured": now()}
        print(
            outcome["outcome"] + (f": {outcome['reason']}" if "reason" in outcome else ""),
            file=sys.stderr,
            flush=True,
        )
        if outcome["outcome"] != "skipped" or name not in report["steps"]:
            report["steps"][name] = outcome
        report["steps"] = {step: report["steps"][step] for step in STEPS if step in report["steps"]}
        if not earlier or exit_code(report["steps"]) != NOTHING:
            write(out, report)
    return report | {"ran": ran}


def too_late(name: str, left: float | None) -> str:
    return (
        f"it is expected to take {STEPS[name].expected:.0f} s, {max(left or 0, 0):.0f} are left "
        f"of --within: run it with --only {name}"
    )


def earlier_steps(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Outcomes in `out` that may stand beside those of `report`; none where it holds no such
    report, or one of another machine."""
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
    told = conditions["nvidia_smi"]
    return (told["name"], told["driver_version"]) if isinstance(told, dict) else told


def conditions() -> dict[str, Any]:
    from vicort.benchmarks.common import machine
    from vicort.benchmarks.gpu.engine_steps import nvidia_smi

    return machine.conditions() | {"nvidia_smi": nvidia_smi()}


def write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(path)


def exit_code(outcomes: Mapping[str, Mapping[str, Any]]) -> int:
    found = {outcome["outcome"] for outcome in outcomes.values()}
    return FAILED if "failed" in found else 0 if "passed" in found else NOTHING


def run_here(name: str, folder: Path, step: Step | None = None) -> dict[str, Any]:
    """A step's outcome, in this process."""
    from vicort.benchmarks.gpu.lab import Lab, NotRight, Skip

    start = time.perf_counter()
    try:
        found = {"outcome": "passed"} | (step or STEPS[name]).run(Lab(folder))
    except Skip as skip:
        found = {"outcome": "skipped", "reason": one_line(skip)}
    except NotRight as error:
        found = {"outcome": "failed", "reason": one_line(error)} | error.found
    except VicortError as error:
        found = {"outcome": "failed", "reason": one_line(error)}
    except Exception as error:  # noqa: BLE001 (whatever a step raises is its outcome)
        traceback.print_exc()
        found = {
            "outcome": "failed",
            "reason": f"{type(error).__name__}: {one_line(error)}",
            "trace": traceback.format_exc().splitlines()[-12:],
        }
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def run_apart(name: str, folder: Path, step: Step | None = None) -> dict[str, Any]:
    """A step's outcome, from a process of its own; how that ended, if it gave none."""
    step = step or STEPS[name]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, name, folder, step))
    process.start()
    sender.close()
    try:
        if receiver.poll(step.seconds):
            return receiver.recv()
        return {"outcome": "failed", "reason": f"it hung, and was ended after {step.seconds:g} s"}
    except EOFError:
        process.join()
        return {
            "outcome": "failed",
            "reason": f"its process died with exit code {process.exitcode} (negative: by that signal)",
        }
    finally:
        receiver.close()
        process.kill()
        process.join()


def _send(sender: Any, name: str, folder: Path, step: Step) -> None:
    sender.send(run_here(name, folder, step))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vicort.benchmarks.gpu.check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="STEP",
        help=f"this step alone (repeatable): {', '.join(STEPS)}",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the report (%(default)s)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        help="where engine sets and kernels for the checks are built (%(default)s)",
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="begin no step that is not expected to end in this time",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="only say which steps there are, and the seconds they are expected to take",
    )
    options = parser.parse_args(arguments)
    try:
        return _main(options)
    except VicortError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _main(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.only if name not in STEPS]:
        raise ConfigError(
            f"--only {unknown[0]}: there is no such step: choose from {', '.join(STEPS)}"
        )
    if not options.out.parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: there is no folder {options.out.parent}: make it, or name "
            "another file"
        )
    names = [name for name in STEPS if name in options.only or not options.only]
    if options.list:
        print(
            "\n".join(
                f"{name:24} {STEPS[name].expected:5.0f} s  {STEPS[name].question}" for name in names
            )
        )
        return 0
    options.cache.mkdir(parents=True, exist_ok=True)
    report = check(names, options.cache.resolve(), options.out, run_apart, options.within)
    return say(report, options.out)


def say(report: dict[str, Any], out: Path) -> int:
    """The tables of the whole report, and how the steps of this call ended; returns the exit
    code."""
    from vicort.benchmarks.gpu.gpu_report import tables

    for table in tables(report["steps"]):
        print("\n".join([*table.text(), ""]))
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
