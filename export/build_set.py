"""What `vicort-build` does once its arguments are checked: draft, export, choose, verify,
publish."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vicort.export import tensorrt_plans
from vicort.export.backend_choice import choose
from vicort.export.build_space import (
    NumberFormat,
    check_space,
    gigabytes,
    suitable_format,
    weight_bytes_of,
)
from vicort.export.calibration import check_calibration
from vicort.export.calibration_clip import CalibrationClip, read_clip
from vicort.export.checkpoint import TINY, resolve
from vicort.export.default_folder import check_same_model
from vicort.export.engine_set_writer import (
    PlanOptions,
    building,
    draft_manifest,
    is_built,
    progress_bar,
    seal,
    write_engine_set,
)
from vicort.export.onnxruntime_products import packs, repack
from vicort.export.prompt_check import check_prompt
from vicort.export.qwen2_5_vl.adapter import Adapter, read_adapter
from vicort.export.qwen2_5_vl.checkpoint_quantisation import read_quantisation
from vicort.export.qwen2_5_vl.configuration import Configuration, read_configuration
from vicort.export.qwen2_5_vl.tied_head import as_stored
from vicort.export.recipe import DEFAULT_PRECISION, embedded_adapter, load_recipe, model_spec
from vicort.export.verify import compare
from vicort.export.weight_compression import eight_bit
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.locations import SetKind, default_engine_dir, model_name
from vicort.runtime.manifest import Activations, Backend, Manifest, Precision, Weights
from vicort.runtime.safe_text import brief
from vicort.runtime.set_folders import check_replaceable, publish

if TYPE_CHECKING:
    from vicort.export.build import Arguments

logger = logging.getLogger(__name__)

CPU_BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")

Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """What an engine set is built from."""

    name: str  # of the model and its adapter, for the default folder
    checkpoint: Path
    adapter: Adapter | None


@dataclass(frozen=True)
class Draft:
    """One set that this build may give, and its folder."""

    folder: Path
    manifest: Manifest  # without the fingerprints of files
    clip: CalibrationClip | None = None  # that it is calibrated with


def build_set(options: Arguments, plan_options: PlanOptions | None, say: Say) -> int:
    """Build what is not built yet; returns 1 if the engines are verified and differ from the model,
    else 0."""
    source = _source(options)
    quantisation = read_quantisation(source.checkpoint)
    if options.calibration is not None and options.weights == "int4":
        check_calibration(source.checkpoint, source.adapter)
    if plan_options is None:
        options = _with_numbers(options, source, say)
    drafts = _drafts(options, source, plan_options, say)
    built = next((each for each in drafts if is_built(each.folder, each.manifest)), None)
    if built:
        say(
            f"{built.folder} is up to date: same checkpoint, options and tool versions, nothing "
            "to do"
        )
        return _verify(built.folder, source, say) if options.verify else 0
    for each in drafts:
        check_replaceable(each.folder)
        if options.out is None:
            check_same_model(each.folder, each.manifest)
    manifest, config = drafts[0].manifest, _configuration(source)
    repacked = any(packs(each.manifest) for each in drafts)
    check_space(drafts[0].folder, config, manifest, repacked=repacked)
    if quantisation:
        kept = "kept where engines can hold them" if options.weights else "kept with --weights only"
        if plan_options and eight_bit(options.weights):
            kept = f"rounded to {options.weights}"
        say(f"reading a quantised checkpoint: {quantisation}; its integers are {kept}")
    with building(drafts[0].folder.parent) as temporary, _failures_named(drafts[0].folder):
        write_engine_set(
            temporary,
            source.checkpoint,
            drafts[0].manifest,
            say,
            plan_options,
            source.adapter,
            drafts[0].clip,
        )
        chosen = _finished(temporary, drafts, say)
        failed = _verify(temporary, source, say) if options.verify else 0
        if not failed:
            publish(temporary, chosen.folder)
            say(f"built {chosen.folder}")
            if plan_options and not options.verify:
                say(_not_run())
    return failed


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """Raises EngineError in one line for a disk that is full, read-only or broken."""
    try:
        yield
    except OSError as error:
        what = error.strerror or brief(error)
        where = f" ({Path(os.fsdecode(error.filename)).name})" if error.filename else ""
        raise EngineError(
            f"{folder} could not be written: {what}{where}; nothing was changed there: make room, "
            "or name a folder elsewhere with --out"
        ) from error


def _source(options: Arguments) -> ModelSource:
    """The adapter is that of --adapter, or the one that a known model comes with."""
    embedded = embedded_adapter(options.model)
    if embedded and options.adapter:
        raise ConfigError(
            f"--adapter {options.adapter}: {options.model} has one already: name its base, "
            f"{embedded[0]}"
        )
    if embedded:
        base, folder = embedded
        return ModelSource(options.model, resolve(base), read_adapter(folder))
    if options.adapter:
        adapter = read_adapter(options.adapter)
        name = f"{options.model}-{options.adapter.resolve().name}"
        return ModelSource(name, resolve(options.model), adapter)
    return ModelSource(options.model, resolve(options.model), None)


def _configuration(source: ModelSource) -> Configuration:
    return as_stored(source.checkpoint, read_configuration(source.checkpoint))


def _with_numbers(options: Arguments, source: ModelSource, say: Say) -> Arguments:
    """The options with a number format that suits this machine, where they leave it open."""
    if options.precision or options.weights or options.activations:
        return options
    config, bf16 = _configuration(source), options.backend != "onnxruntime"
    chosen = suitable_format(config, bf16)
    if chosen == NumberFormat(DEFAULT_PRECISION["openvino"]):
        return options
    size = weight_bytes_of(config, NumberFormat("fp32"), plans=False)
    say(
        f"chose {chosen.options}: weights in fp32 take {gigabytes(size)}, more than a third of "
        "this machine's memory; name others to choose yourself"
    )
    return replace(options, precision=chosen.precision, weights=chosen.weights)


def _drafts(
    options: Arguments, source: ModelSource, plan_options: PlanOptions | None, say: Say
) -> list[Draft]:
    """One draft for each backend that the set may be for."""
    name = TINY if source.name == TINY else model_name(source.name)
    width, height = options.image_size or (None, None)
    recipe = load_recipe(
        name,
        precision=options.precision,
        chunk_frames=options.chunk_frames,
        image_width=width,
        image_height=height,
        max_pixels=options.max_pixels,
    )
    spec = model_spec(name, read_configuration(source.checkpoint), recipe)
    if spec.fixed_size and (wanted := (recipe.image_height, recipe.image_width)) != spec.fixed_size:
        say(
            f"--image-size {wanted[1]}x{wanted[0]} is rounded to "
            f"{spec.fixed_size[1]}x{spec.fixed_size[0]}: sides are multiples of "
            f"{spec.token_pixels} pixels"
        )
    if warning := check_prompt(source.checkpoint, spec.video_token):
        say(f"warning: {warning}")
    clip = options.calibration
    read = None if clip is None else read_clip(clip, spec, source.checkpoint)
    precision = recipe.precision or DEFAULT_PRECISION["tensorrt" if plan_options else "openvino"]
    logger.info(
        "checkpoint %s: frames of %s, chunks of %d frames, pages of %d tokens, %s",
        source.checkpoint,
        spec.frame_size,
        spec.chunk_frames,
        spec.page_tokens,
        precision,
    )
    drafts = []
    for backend in candidates(options.backend, precision, options.weights, options.activations):
        manifest = draft_manifest(
            source.checkpoint,
            spec,
            backend,
            precision,
            options.command(backend),
            plan_options,
            source.adapter,
            options.weights,
            options.kv,
            options.activations,
            read,
        )
        kind = SetKind(precision, backend, options.weights, options.kv, options.activations)
        folder = options.out or default_engine_dir(source.name, kind)
        drafts.append(Draft(folder, manifest, read))
    return drafts


def candidates(
    backend: str,
    precision: Precision,
    weights: Weights | None = None,
    activations: Activations | None = None,
) -> list[Backend]:
    """The backends that a build may be for: the named one, or with `auto` every CPU backend that is
    installed. Raises ConfigError if there is none."""
    if activations:
        backend = _for_activations(backend, activations, weights)
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


def _for_activations(backend: str, activations: Activations, weights: Weights | None) -> str:
    if not weights:
        raise ConfigError(
            f"--activations {activations} without --weights: only products with integer weights "
            "take them, add --weights int8 or --weights int4"
        )
    if backend not in ("auto", "onnxruntime"):
        raise ConfigError(
            f"--activations {activations} with --backend {backend}: it is for onnxruntime only, "
            "take --backend onnxruntime or leave it out"
        )
    return "onnxruntime"


def _finished(folder: Path, drafts: Sequence[Draft], say: Say) -> Draft:
    """The draft that the written set becomes, once its files are as that backend takes them."""
    if len(drafts) > 1:
        say("measuring the backends")
        chosen = choose(folder, [each.manifest for each in drafts], say)
        return next(each for each in drafts if each.manifest is chosen)
    if packs(drafts[0].manifest):
        packing = "packing integer weights as onnxruntime multiplies with them"
        with progress_bar(packing, say) as progress:
            repack(folder, drafts[0].manifest.activations, progress=progress)
        seal(folder, drafts[0].manifest)
    return drafts[0]


def _verify(folder: Path, source: ModelSource, say: Say) -> int:
    """Print the differences; returns the exit status."""
    say("comparing the engines with the PyTorch model on random input")
    differences = list(compare(folder, source.checkpoint, adapter=source.adapter))
    for difference in differences:
        print(difference)
    return 0 if all(difference.passed for difference in differences) else 1


def _not_run() -> str:
    return (
        "built, not run: this machine has no NVIDIA GPU"
        if tensorrt_plans.missing_gpu()
        else "built, not run yet: check it with --verify"
    )
