"""`vicort-build`: a checkpoint in, an engine set out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from vicort.export.default_folder import located
from vicort.export.library_caches import temporary_caches
from vicort.export.recipe import embedded_adapter
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.entry_points import InterruptedAtOnce, TerminatedLikeInterrupted, code_of
from vicort.runtime.errors import ConfigError, DeviceError, VicortError
from vicort.runtime.log_options import add_log_options, log_to_stderr
from vicort.runtime.manifest import FILE_NAME, KV, Activations, Backend, Precision, Weights
from vicort.runtime.safe_text import print_safely
from vicort.runtime.set_folders import check_replaceable
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.standard_streams import standard_streams
from vicort.runtime.work_folders import work_folder

if TYPE_CHECKING:
    from vicort.export.engine_set_writer import PlanOptions

FRONTENDS = ("onnx", "torch-tensorrt")
# modules of other packages that every build imports
NEEDED = ("huggingface_hub", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch")


@dataclass(frozen=True)
class Arguments:
    model: str
    out: Path | None
    backend: str  # a Backend, or auto
    precision: Precision | None
    weights: Weights | None
    activations: Activations | None  # of products with integer weights
    calibration: str | None  # a clip, with int4 weights or for the inputs of TensorRT's products
    kv: KV
    chunk_frames: int | None
    image_size: tuple[int, int] | None  # pixels, width and height
    max_pixels: int | None  # area of a frame, where sizes follow the source
    verify: bool
    adapter: Path | None  # folder of a LoRA adapter, in PEFT's layout
    no_plugin: bool  # this and all below: of backend tensorrt
    strip: bool
    frontend: str  # of FRONTENDS
    target: tuple[str, ...]  # sm_80, …
    log_level: str | None = None  # None: no log

    def command(self, backend: Backend) -> str:
        """The command that builds this set again."""
        words = ["vicort-build", located(self.model), "--backend", backend]
        words += ["--adapter", located(str(self.adapter))] if self.adapter else []
        words += ["--out", str(self.out)] if self.out else []
        words += ["--precision", self.precision] if self.precision else []
        words += ["--weights", self.weights] if self.weights else []
        words += ["--activations", self.activations] if self.activations else []
        words += ["--calibration", self.calibration] if self.calibration else []
        words += ["--kv", self.kv] if self.kv != "float" else []
        words += ["--no-plugin"] if self.no_plugin else []
        words += ["--strip"] if self.strip else []
        words += ["--target", ",".join(self.target)] if self.target else []
        words += ["--frontend", self.frontend] if self.frontend != FRONTENDS[0] else []
        words += ["--chunk-frames", str(self.chunk_frames)] if self.chunk_frames else []
        words += ["--image-size", "x".join(map(str, self.image_size))] if self.image_size else []
        words += ["--max-pixels", str(self.max_pixels)] if self.max_pixels else []
        return shlex.join(words)


@standard_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit status."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        with TerminatedLikeInterrupted(), log_to_stderr(options.log_level), temporary_caches():
            return build(options)
    except VicortError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as interruption:
        say("interrupted, nothing was written")
        return code_of(interruption)


def build(options: Arguments) -> int:
    """Build what is not built yet; returns 1 if the engines are verified and differ from the model,
    else 0."""
    if options.image_size and options.max_pixels:
        raise ConfigError(
            "--image-size fixes the size of frames, --max-pixels lets it follow the source: give "
            "one of them"
        )
    if options.out:
        check_out(options.out)
    _check_weights(options)
    _check_model(options.model)
    plan_options = _plan_options(options)
    # late: torch takes seconds to load, and neither --help nor a wrong argument needs it
    with InterruptedAtOnce("vicort-build: interrupted, nothing was written"):
        from vicort.export.build_set import build_set

    return build_set(options, plan_options, say)


def check_out(folder: Path) -> None:
    """Raises ConfigError, before a build spends minutes, if it cannot put a set there. Writes
    nothing where a set is, which may be up to date."""
    if os.path.islink(folder) and os.path.isfile(folder / FILE_NAME):
        return  # as long as the set is up to date
    check_replaceable(folder)
    if not folder.exists():
        with work_folder(folder.parent):
            pass


def _out(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not a folder: name one")
    return Path(os.path.abspath(text)) if text in (".", "..") else Path(text)


def _check_weights(options: Arguments) -> None:
    """Raises ConfigError for weights that the backend does not take, or a clip that they do not
    use, or the lack of one."""
    weights, plans = options.weights, options.backend == "tensorrt"
    if weights == "fp8" and not plans:
        raise ConfigError(
            f"--weights fp8 with --backend {options.backend}: only TensorRT multiplies fp8, take "
            "--backend tensorrt or --weights int8"
        )
    both = plans and weights in ("int8", "fp8")  # of their inputs too
    if both and options.calibration is None:
        raise ConfigError(
            f"--weights {weights} with --backend tensorrt rounds the inputs of products too: name "
            "a video of what the model will see with --calibration, or take --weights int4"
        )
    if both and options.frontend != FRONTENDS[0]:
        raise ConfigError(
            f"--frontend {options.frontend} --weights {weights}: only ONNX graphs are quantised, "
            "leave one of the two out"
        )
    if options.calibration is not None and weights != "int4" and not both:
        given = f"--weights {weights}" if weights else "no --weights"
        raise ConfigError(
            f"--calibration {options.calibration} with {given}: a clip chooses int4 weights, and "
            "the scales of --backend tensorrt with int8 or fp8: add one of them or leave it out"
        )


def _check_model(model: str) -> None:
    """Raises ModuleNotFoundError where a package is missing, and EngineError where a model that is
    no hub id is none."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    from vicort.export.checkpoint import resolve_here  # late: of huggingface_hub

    if not embedded_adapter(model):
        resolve_here(model)


def say(line: str) -> None:
    print_safely(f"vicort-build: {line}", file=sys.stderr)


def _plan_options(options: Arguments) -> PlanOptions | None:
    """How to build TensorRT plans; None for another backend. Raises VicortError if this machine
    cannot build them."""
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
    if options.kv == "int8" and options.no_plugin:
        raise ConfigError(
            "--kv int8 with --no-plugin: only the plugin reads int8 pages, leave one of the two out"
        )
    if options.strip and options.frontend != FRONTENDS[0]:
        raise ConfigError(
            f"--strip --frontend {options.frontend}: weights are given to a plan from an ONNX "
            "file, which its vision plan does not have: leave one of the two out"
        )
    if options.strip and options.weights:
        raise ConfigError(
            f"--strip --weights {options.weights}: no plan was given quantised weights after it "
            "was built, which takes a GPU to try: leave one of the two out"
        )
    from vicort.export.engine_set_writer import PlanOptions
    from vicort.export.kernels.architectures import of_targets
    from vicort.export.tensorrt_plans import (
        check_number_formats,
        check_targets,
        load_tensorrt,
        missing_gpu,
    )

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
    if not options.no_plugin:
        of_targets(options.target)
    check_number_formats(options.target, options.precision, options.weights)
    if options.strip and tensorrt.flavour == "tensorrt_rtx" and (reason := missing_gpu()):
        raise DeviceError(
            "--strip: TensorRT for RTX builds plans that can be refitted only where a GPU is "
            f"({reason}): leave --strip out"
        )
    return PlanOptions(
        tensorrt.flavour, not options.no_plugin, options.strip, options.target, options.frontend
    )


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
    parser = ArgumentParser(
        prog="vicort-build", description="Build an engine set from a Qwen2.5-VL checkpoint."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="`tiny` (the embedded model), `tiny-live`, a checkpoint folder, or a Hugging Face id",
    )
    parser.add_argument(
        "--out",
        type=_out,
        metavar="DIR",
        help="output folder (default: engines/<model>-<precision>[-<weights>]-<backend>"
        "[-activations-int8][-kv-int8])",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", *get_args(Backend)),
        default="auto",
        help="inference backend; auto measures the CPU backends and takes the faster one "
        "(default: %(default)s)",
    )
    _add_numbers(parser)
    _add_sizes(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the engines with the PyTorch model, and fail if they differ",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="LoRA adapter in PEFT's layout, merged into the weights",
    )
    _add_plans(parser.add_argument_group("with --backend tensorrt"))
    add_log_options(parser)
    add_completion_option(parser)
    return Arguments(**vars(parser.parse_args(arguments)))


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="number format (default: bf16 with --backend tensorrt, otherwise the first of fp32, "
        "bf16, int8 and int4 weights that suits this machine's memory)",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        help="quantise the weights of matrix products; with int4, those of the vision encoder and "
        "of the output head are int8. With --backend tensorrt, int8 and fp8 quantise the inputs of "
        "the products too, and int4 only the language model (default: all weights are of "
        "--precision)",
    )
    parser.add_argument(
        "--calibration",
        metavar="CLIP",
        help="a video of what the model will see, of which the first 2048 visual tokens are used. "
        "With --weights int4: the roundings of the language model's weights are chosen by it "
        "(default: weights are rounded without data). With --backend tensorrt and int8 or fp8, "
        "which need one: it gives the scales of inputs",
    )
    parser.add_argument(
        "--activations",
        choices=get_args(Activations),
        help="with --weights, in onnxruntime: multiply in int8 in the vision encoder, which is "
        "faster and rounds activations, with one scale for each patch (default: float32)",
    )
    parser.add_argument(
        "--kv",
        choices=get_args(KV),
        default="float",
        help="number format of cached keys and values: that of --precision, or int8, which holds "
        "more history in the same memory (default: %(default)s)",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chunk-frames",
        type=int,
        metavar="N",
        help="maximum number of frames in a chunk; an even number",
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="WxH",
        help="fixed width and height in pixels, to which frames are letterboxed (default: sizes "
        "follow the source)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="maximum area of a frame in pixels, where sizes follow the source (default: 94864, "
        "the area of 308x308)",
    )


def _add_plans(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--no-plugin",
        action="store_true",
        help="use TensorRT's own layers for attention instead of the plugin",
    )
    group.add_argument(
        "--strip",
        action="store_true",
        help="build plans without weights, which are loaded from the ONNX files at run time",
    )
    group.add_argument(
        "--target",
        type=_targets,
        default=(),
        metavar="SM,…",
        help="GPU architectures to build for, such as sm_89,sm_120 (TensorRT for RTX only)",
    )
    group.add_argument(
        "--frontend",
        choices=FRONTENDS,
        default=FRONTENDS[0],
        help="exporter for the vision plan (default: %(default)s)",
    )


if __name__ == "__main__":
    sys.exit(main())
