"""`vicort-build`: a checkpoint in, an engine set out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from vicort.runtime.errors import ConfigError, DeviceError, VicortError
from vicort.runtime.locations import default_engine_dir
from vicort.runtime.manifest import Backend, Manifest, Precision

if TYPE_CHECKING:
    from vicort.export.engine_set import PlanOptions
    from vicort.export.qwen2_5_vl.adapter import Adapter

FRONTENDS = ("onnx", "torch-tensorrt")
CPU_BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")


class Parser(argparse.ArgumentParser):
    """One line for a wrong argument, like every other failure."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see `vicort-build --help`")


@dataclass(frozen=True)
class Arguments:
    model: str
    out: Path | None
    backend: str  # a Backend, or auto
    precision: Precision | None
    chunk_frames: int | None
    image_size: tuple[int, int] | None  # pixels, width and height
    verify: bool
    adapter: Path | None  # folder of a LoRA adapter, in PEFT's layout
    no_plugin: bool  # this and all below: of backend tensorrt
    strip: bool
    frontend: str  # of FRONTENDS
    target: tuple[str, ...]  # sm_80, …


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit status."""
    try:
        return build(_parse(sys.argv[1:] if arguments is None else arguments))
    except VicortError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted, nothing was written")
        return 130


def build(options: Arguments) -> int:
    """Build what is not built yet; returns 1 if the engines are verified and differ from the model,
    else 0."""
    plan_options = _plan_options(options)
    # late, because torch takes seconds to load: not for --help, not for a typing error
    from vicort.export.checkpoint import TINY, resolve
    from vicort.export.engine_set import (
        building,
        check_replaceable,
        is_built,
        plan,
        publish,
        write_engine_set,
    )
    from vicort.export.qwen2_5_vl.configuration import read_configuration
    from vicort.export.recipe import DEFAULT_PRECISION, load_recipe, model_spec

    model, adapter = _adapted(options)
    checkpoint = resolve(model)
    called = (
        f"{options.model}-{options.adapter.resolve().name}" if options.adapter else options.model
    )
    name = (
        TINY
        if called == TINY
        else default_engine_dir(called, "fp32", "openvino").name.removesuffix("-fp32-openvino")
    )
    width, height = options.image_size or (None, None)
    recipe = load_recipe(
        name,
        precision=options.precision,
        chunk_frames=options.chunk_frames,
        image_width=width,
        image_height=height,
    )
    spec = model_spec(name, read_configuration(checkpoint), recipe)
    precision = recipe.precision or DEFAULT_PRECISION["tensorrt" if plan_options else "openvino"]
    plans = [
        plan(
            checkpoint, spec, backend, precision, _command(options, backend), plan_options, adapter
        )
        for backend in _candidates(options.backend, precision)
    ]
    folders = [
        options.out or default_engine_dir(called, precision, manifest.backend) for manifest in plans
    ]
    for folder, manifest in zip(folders, plans, strict=True):
        if is_built(folder, manifest):
            say(
                f"{folder} is up to date: same checkpoint, options and tool versions, nothing to do"
            )
            return _verify(folder, checkpoint, adapter) if options.verify else 0
    for folder in folders:
        check_replaceable(folder)
    with building(folders[0].parent) as temporary:
        write_engine_set(temporary, checkpoint, plans[0], say, plan_options, adapter)
        chosen = _faster(temporary, plans) if len(plans) > 1 else 0
        failed = _verify(temporary, checkpoint, adapter) if options.verify else 0
        if not failed:
            publish(temporary, folders[chosen])
            say(f"built {folders[chosen]}")
            if plan_options and not options.verify:
                say(_not_run())
    return failed


def say(line: str) -> None:
    print(f"vicort-build: {line}", file=sys.stderr, flush=True)


def _adapted(options: Arguments) -> tuple[str, Adapter | None]:
    """The model without its adapter, and the adapter: that of --adapter, or the one that a known
    model comes with."""
    from vicort.export.qwen2_5_vl.adapter import read_adapter
    from vicort.export.recipe import embedded_adapter

    embedded = embedded_adapter(options.model)
    if embedded and options.adapter:
        raise ConfigError(
            f"--adapter {options.adapter}: {options.model} has one already: name its base, "
            f"{embedded[0]}"
        )
    if embedded:
        return embedded[0], read_adapter(embedded[1])
    return options.model, read_adapter(options.adapter) if options.adapter else None


def _plan_options(options: Arguments) -> PlanOptions | None:
    """How to build TensorRT plans; None for another backend. Raises VicortError for what cannot be
    done here."""
    flags = {"--no-plugin": options.no_plugin, "--strip": options.strip, "--target": options.target}
    flags["--frontend"] = options.frontend != FRONTENDS[0]
    given = [flag for flag, value in flags.items() if value]
    if options.backend != "tensorrt":
        if given:
            raise ConfigError(
                f"{given[0]} is for --backend tensorrt, not {options.backend}: leave it out, or "
                "name that backend"
            )
        return None
    from vicort.export.engine_set import PlanOptions
    from vicort.export.tensorrt import check_targets, load_tensorrt, missing_gpu

    if options.verify and (reason := missing_gpu()):
        raise DeviceError(
            f"--verify runs the engines, which takes a GPU ({reason}): build without --verify, "
            "and verify where the GPU is"
        )
    if find_spec("triton") is None:
        raise ConfigError(
            "--backend tensorrt compiles its attention kernels with Triton, which is not "
            "installed: run `pip install triton`"
        )
    tensorrt = load_tensorrt("tensorrt" if options.frontend == "torch-tensorrt" else None)
    check_targets(tensorrt, options.target)
    if options.strip and tensorrt.flavour == "tensorrt_rtx" and (reason := missing_gpu()):
        raise DeviceError(
            "--strip: TensorRT for RTX builds plans that can be refitted only where a GPU is "
            f"({reason}): leave --strip out"
        )
    return PlanOptions(
        tensorrt.flavour, not options.no_plugin, options.strip, options.target, options.frontend
    )


def _not_run() -> str:
    from vicort.export.tensorrt import missing_gpu

    return (
        "built, not run: this machine has no NVIDIA GPU"
        if missing_gpu()
        else "built, not run yet: check it with --verify"
    )


def _candidates(backend: str, precision: Precision) -> list[Backend]:
    """The backends that a build may be for: one, or, of `auto`, all CPU backends that this machine
    has."""
    if backend == "tensorrt":
        return ["tensorrt"]
    installed: list[Backend] = [name for name in CPU_BACKENDS if find_spec(name)]
    if precision == "bf16":
        if backend == "onnxruntime":
            raise ConfigError(
                "--precision bf16 with --backend onnxruntime: it has no bf16 matrix product, "
                "take --backend openvino or --precision fp32"
            )
        installed = [name for name in installed if name != "onnxruntime"]
    allowed = installed if backend == "auto" else [name for name in installed if name == backend]
    if not allowed:
        missing = "openvino" if backend == "auto" else backend
        raise ConfigError(
            f"--backend {backend} --precision {precision}: {missing} is not installed: run `pip "
            f"install {missing}`"
        )
    return allowed


def _faster(folder: Path, plans: Sequence[Manifest]) -> int:
    """Which of several backends runs a chunk of this set fastest here; the set becomes that one's.
    All run the same files."""
    from vicort.export.engine_set import seal
    from vicort.export.verify import chunk_seconds

    seconds = []
    for manifest in plans:
        seal(folder, manifest)
        seconds.append(chunk_seconds(folder))
    chosen = seconds.index(min(seconds))
    seal(folder, plans[chosen])
    measured = ", ".join(
        f"{manifest.backend} {1000 * second:.1f} ms"
        for manifest, second in zip(plans, seconds, strict=True)
    )
    say(f"a chunk takes {measured}: chose {plans[chosen].backend}")
    return chosen


def _verify(folder: Path, checkpoint: Path, adapter: Adapter | None) -> int:
    from vicort.export.verify import compare

    say("comparing the engines with the PyTorch model on random input")
    differences = list(compare(folder, checkpoint, adapter=adapter))
    for difference in differences:
        print(difference)
    return 0 if all(difference.passed for difference in differences) else 1


def _command(options: Arguments, backend: Backend) -> str:
    """The command that builds this set again."""
    words = ["vicort-build", options.model, "--backend", backend]
    words += ["--adapter", str(options.adapter)] if options.adapter else []
    words += ["--out", str(options.out)] if options.out else []
    words += ["--precision", options.precision] if options.precision else []
    words += ["--no-plugin"] if options.no_plugin else []
    words += ["--strip"] if options.strip else []
    words += ["--target", ",".join(options.target)] if options.target else []
    words += ["--frontend", options.frontend] if options.frontend != FRONTENDS[0] else []
    words += ["--chunk-frames", str(options.chunk_frames)] if options.chunk_frames else []
    words += ["--image-size", "x".join(map(str, options.image_size))] if options.image_size else []
    return shlex.join(words)


def _image_size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed, give WIDTHxHEIGHT in pixels, such as 308x308"
        )
    return int(width), int(height)


def _targets(text: str) -> tuple[str, ...]:
    targets = tuple(text.split(","))
    for target in targets:
        if not (target.startswith("sm_") and target[3:].isdecimal()):
            raise argparse.ArgumentTypeError(
                f"{target!r} is not allowed, give GPU architectures such as sm_89,sm_120"
            )
    return targets


def _parse(arguments: Sequence[str]) -> Arguments:
    parser = Parser(
        prog="vicort-build", description="Build an engine set from a Qwen2.5-VL checkpoint."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="`tiny` (the embedded default), `tiny-live`, a folder, or a hub id",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to (default: engines/<model>-<precision>-<backend>)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", *get_args(Backend)),
        default="auto",
        help="auto: the faster of the CPU's, measured",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="default: fp32, with --backend tensorrt bf16",
    )
    parser.add_argument(
        "--chunk-frames", type=int, metavar="N", help="most frames in a chunk, even"
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="WxH",
        help="pixels of a frame as the model sees it",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the engines with the PyTorch model; fails if they differ",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="a LoRA adapter in PEFT's layout, merged into the weights",
    )
    plans = parser.add_argument_group("of --backend tensorrt")
    plans.add_argument(
        "--no-plugin", action="store_true", help="attention in TensorRT's own layers"
    )
    plans.add_argument(
        "--strip",
        action="store_true",
        help="plans without weights: they take them from the ONNX files when loaded",
    )
    plans.add_argument(
        "--target",
        type=_targets,
        default=(),
        metavar="SM,…",
        help="GPUs to build for: sm_89,sm_120 (TensorRT for RTX)",
    )
    plans.add_argument(
        "--frontend",
        choices=FRONTENDS,
        default=FRONTENDS[0],
        help="what makes the vision plan (default: onnx)",
    )
    return Arguments(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
