"""`make gpu-check`: what a GPU makes of vicort, checked and measured in one go; one JSON report.

Each step runs in a process of its own, so that one which crashes, hangs or breaks the GPU's context stops no other. A step passes, fails
with an error, or is skipped with the reason; exit code 0 = nothing failed and something passed, 1 = something failed, 4 = nothing could
be checked.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicort.runtime.errors import ConfigError, VicortError

SCHEMA = 1
OUT = Path("benchmarks/results/gpu-check.json")
CACHE = Path("build/gpu-check")
FAILED, NOTHING = 1, 4  # exit codes
MINUTE = 60.0


@dataclass(frozen=True)
class Step:
    question: str  # that it answers
    function: str  # module:name, takes a Lab, returns a dict or raises Skip
    seconds: float = 10 * MINUTE  # after which it counts as hung

    def load(self) -> Callable[[Any], dict[str, Any]]:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)


STEPS: dict[str, Step] = {  # the cheapest and most telling first
    "environment": Step("which GPU, driver and libraries?", "vicort.benchmarks.gpu_engines:environment", 2 * MINUTE),
    "plan": Step("does TensorRT take plans that were built without this GPU?", "vicort.benchmarks.gpu_engines:plan"),
    "inductor": Step("where it does not: do AOTInductor's engines run?", "vicort.benchmarks.gpu_engines:inductor", 20 * MINUTE),
    "kernels": Step("do the kernels compute what they should?", "vicort.benchmarks.gpu_kernels:correctness", 20 * MINUTE),
    "engines": Step("do engines with the plugin give what the CPU's give?", "vicort.benchmarks.gpu_engines:engines"),
    "graphs": Step("are runs captured in CUDA graphs, and replays equal?", "vicort.benchmarks.gpu_engines:graphs"),
    "streams": Step("do two engines overlap on two streams?", "vicort.benchmarks.gpu_engines:streams"),
    "pipeline": Step("does the pipeline answer as on the CPU, overlapped and not?", "vicort.benchmarks.gpu_engines:pipeline", 20 * MINUTE),
    "ceilings": Step("how fast are a large matrix product and a large copy?", "vicort.benchmarks.gpu_kernels:ceilings"),
    "kernel-speed": Step("how near do the kernels come to that?", "vicort.benchmarks.gpu_kernels:speed", 20 * MINUTE),
    "preprocess": Step("does DALI resize on the GPU as on the CPU?", "vicort.benchmarks.gpu_video:preprocess"),
    "nvdec": Step("does NVDEC decode as FFmpeg does?", "vicort.benchmarks.gpu_video:nvdec"),
}
Run = Callable[[str, Path], dict[str, Any]]


def check(names: Sequence[str], folder: Path, out: Path, run: Run) -> dict[str, Any]:
    """Run these steps, one after another; what is done is in `out` even if a later step kills this process.

    A report that is there already is not replaced by one in which nothing was checked.
    """
    report: dict[str, Any] = {"schema": SCHEMA, "conditions": conditions(), "steps": {}}
    earlier = out.is_file()
    for name in names:
        print(f"{name:13} {STEPS[name].question} …", end=" ", file=sys.stderr, flush=True)
        report["steps"][name] = outcome = run(name, folder)
        print(outcome["outcome"] + (f": {outcome['reason']}" if "reason" in outcome else ""), file=sys.stderr, flush=True)
        if not earlier or exit_code(report["steps"]) != NOTHING:
            write(out, report)
    return report


def conditions() -> dict[str, Any]:
    from vicort.benchmarks import machine

    return machine.conditions()


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
    from vicort.benchmarks.gpu_lab import Lab, NotRight, Skip

    start = time.perf_counter()
    try:
        found = {"outcome": "passed"} | (step or STEPS[name]).load()(Lab(folder))
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
        return {"outcome": "failed", "reason": f"its process died with exit code {process.exitcode} (negative: by that signal)"}
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
    parser = argparse.ArgumentParser(prog="python -m vicort.benchmarks.gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help=f"this step alone (repeatable): {', '.join(STEPS)}")
    parser.add_argument("--out", type=Path, default=OUT, help="the report (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where engine sets and kernels for the checks are built (%(default)s)")
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
        raise ConfigError(f"--only {unknown[0]}: there is no such step: choose from {', '.join(STEPS)}")
    if not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no folder {options.out.parent}: make it, or name another file")
    options.cache.mkdir(parents=True, exist_ok=True)
    report = check([name for name in STEPS if name in options.only or not options.only], options.cache.resolve(), options.out, run_apart)
    counts = [outcome["outcome"] for outcome in report["steps"].values()]
    code = exit_code(report["steps"])
    summary = ", ".join(f"{counts.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"gpu-check: {summary}; written: {options.out}" + ("; NOTHING WAS CHECKED" if code == NOTHING else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())
