"""How the parts of a session are put together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.answering import Answerer
from vicort.runtime.core import UNIT_FRAMES, Spoken
from vicort.runtime.devices.device import ON_CPU_ONLY, Device, Stream
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.engines.engine_set import EngineSet, pool_dtype
from vicort.runtime.errors import ConfigError, DeviceError, HostBudgetError
from vicort.runtime.language.generation_config import read_generation
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import Manifest, ModelSpec
from vicort.runtime.memory.budget import FittedSystem, MemoryRequest, fit_budget
from vicort.runtime.memory.long_term.factory import long_term_size
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.memory_plan import chunk_units, unit_pages
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.policies.system import FrameRule, System
from vicort.runtime.stages.frame_reducer import FrameReducer
from vicort.runtime.stages.job import Buffers, Job, Stage
from vicort.runtime.stages.pipeline import OverlappedPipeline, Pipeline, SequentialPipeline
from vicort.runtime.stages.prefill import Prefill
from vicort.runtime.stages.pruned_stages import PrunedTokens, PrunedVision, check_pruned_graph
from vicort.runtime.stages.shared_vision import SharedVision
from vicort.runtime.stages.speaker import Speaker, silence_token
from vicort.runtime.stages.stages import Preprocess, TokenControl, Vision
from vicort.runtime.stages.unit_encoder import OwnEncoder, UnitEncoder

logger = logging.getLogger(__name__)

CHUNKS_IN_FLIGHT = 4  # one for each stage: more would only make questions wait longer


@dataclass(frozen=True)
class Parts:
    """What a session is made of."""

    fitted: FittedSystem
    device: Device
    clock: StageClock
    prompt: Prompt
    memory: Memory
    prefill: Prefill
    pipeline: Pipeline
    answerer: Answerer
    reducer: FrameReducer


def assemble(
    engines: EngineSet,
    system: System,
    clock: StageClock,
    *,
    fps: Fraction | None,
    request: MemoryRequest,
    system_prompt: str | None,
    overlap: bool,
    cut_in: bool,
    shared_vision: SharedVision | None,
    threads: int,
    answer_tokens: int,
    on_chunk: Callable[[Job], None],
    on_failure: Callable[[BaseException], None],
    on_spoken: Callable[[Spoken], None],
) -> Parts:
    """Build the stages on streams of a new device, and cache the prompt.

    fps: frames a second that are taken, None = not known. request: for budgets of memory. overlap:
    whether chunks overlap, each stage on its own stream. cut_in: whether questions may cut in
    between chunks and units. shared_vision: that other sessions use too, None = a vision encoder of
    its own. threads: of preprocessing. answer_tokens: length of an answer for which positions are
    kept free. on_chunk is called when a chunk has left the pipeline, on_failure when one has
    failed, on_spoken when the model has spoken by itself. Raises MemoryBudgetError if the system's
    budget does not hold one chunk.
    """
    model = engines.manifest.model
    check_long_term(system, engines.manifest)
    device = engines.new_device(overlap)
    try:
        prompt = open_prompt(engines.folder, model, system_prompt)
        text_tokens = min(model.max_rows + answer_tokens, model.max_position // 8)
        timeline = Timeline(model, len(prompt.prefix), text_tokens)
        prompt_tokens, machine = len(prompt.prefix), device.memory()
        fitted = fit_at_rate(
            system, fps, model, engines.pool_dtype, prompt_tokens, machine, request
        )
        _log_choices(fitted, model, overlap, threads)
        memory = Memory(device, model, fitted.system, timeline, engines.pool_dtype, clock)
        preprocessor = device.preprocessor(model.fixed_size, threads)
        preprocess = Preprocess(device.stream("preprocess"), preprocessor)
        vision, tokens = _vision_stages(device, engines, fitted.system, cut_in, shared_vision)
        prefill = _prefill_stage(device, engines, memory, prompt, cut_in, on_spoken)
        stages: tuple[Stage, ...] = (preprocess, vision, tokens, prefill)
        pipeline = _pipeline(device, engines, stages, clock, overlap, on_chunk, on_failure)
        answerer = Answerer(device, engines, memory, prompt, prefill, clock)
        reducer = FrameReducer(device, preprocess, model.grid, model.token_pixels)
        return Parts(fitted, device, clock, prompt, memory, prefill, pipeline, answerer, reducer)
    except BaseException:
        with suppress(DeviceError):  # of a GPU that is lost, which the error says already
            device.close()
        raise


def _log_choices(fitted: FittedSystem, model: ModelSpec, overlap: bool, threads: int) -> None:
    logger.info(
        "system %s: --memory %gMB --host-memory %gMB, chunks of %d frames of %s, %s, threads "
        "of preprocessing: %d",
        fitted.system.name,
        *fitted.budget,
        chunk_frames(fitted.system, model),
        model.frame_size,
        "stages overlap" if overlap else "one stage after another",
        threads,
    )


def _vision_stages(
    device: Device,
    engines: EngineSet,
    system: System,
    cut_in: bool,
    shared_vision: SharedVision | None,
) -> tuple[Stage, Stage]:
    """From frames to kept tokens: tokens are dropped after the encoder, or pruned before it."""
    vision: Stream = device.stream("vision")
    tokens: Stream = device.stream("tokens")
    model = engines.manifest.model
    encoder: UnitEncoder = shared_vision or OwnEncoder(engines.vision, device, model)
    if pruning := system.drop.pruning:
        return (
            PrunedVision(device, vision, engines, pruning, encoder),
            PrunedTokens(device, tokens, model.width),
        )
    return (
        Vision(vision, encoder, device, model, cut_in),
        TokenControl(tokens, engines.tokens, system.drop, device, model, engines.dtype),
    )


def _prefill_stage(
    device: Device,
    engines: EngineSet,
    memory: Memory,
    prompt: Prompt,
    cut_in: bool,
    on_spoken: Callable[[Spoken], None],
) -> Prefill:
    """From kept tokens to pages, of which the prompt's are written at once."""
    model, run = memory.model, LanguageRun(engines, device, memory.pool)
    prefill = Prefill(device, device.stream("prefill"), run, memory, model, cut_in)
    if speech := memory.system.speaks.by_itself:
        prefill.speaker = Speaker(
            speech, device, prefill.stream, run, memory, model, prompt, on_spoken
        )
    if prompt.prefix:
        prefix = np.asarray(prompt.prefix, np.int32)
        prefill.stream.run(prefill.cache_prompt_in_stream, prefix).done()
    return prefill


def _pipeline(
    device: Device,
    engines: EngineSet,
    stages: tuple[Stage, ...],
    clock: StageClock,
    overlap: bool,
    on_chunk: Callable[[Job], None],
    on_failure: Callable[[BaseException], None],
) -> Pipeline:
    """The stages with buffers for the chunks that they have at a time."""
    in_flight, model = CHUNKS_IN_FLIGHT if overlap else 1, engines.manifest.model
    buffers = [Buffers(device, model, engines.dtype) for _ in range(in_flight)]
    if overlap:
        return OverlappedPipeline(stages, buffers, clock, on_chunk, on_failure)
    return SequentialPipeline(stages, buffers[0], clock, on_chunk, on_failure)


def open_prompt(folder: Path, model: ModelSpec, system_prompt: str | None) -> Prompt:
    """Raises ConfigError for a system prompt that is too long, or that the model does not take."""
    prompt = Prompt(folder, model.video_token, system_prompt)
    if len(prompt.prefix) > model.max_rows:
        raise ConfigError(
            f"the system prompt makes a prompt of {len(prompt.prefix)} tokens, these engines take "
            f"{model.max_rows}: shorten it"
        )
    return prompt


def check_system(
    system: System,
    folder: Path,
    manifest: Manifest,
    machine: MachineMemory,
    request: MemoryRequest,
    system_prompt: str | None = None,
    fps: Fraction | None = None,
) -> FittedSystem:
    """Refuse a system that a session of these engines would refuse, before they are loaded.

    fps: frames a second that are taken, None = the system's rate.

    Raises ConfigError, DeviceError for a system that needs engines of the CPU, EngineError for a
    damaged generation_config.json, and MemoryBudgetError with budgets that work.
    """
    model = manifest.model
    frames = chunk_frames(system, model)
    system.drop.check(system.name, model)
    system.retrieval.check(system.name, frames // UNIT_FRAMES)
    if system.long_term and manifest.backend == "tensorrt":
        raise DeviceError(ON_CPU_ONLY)
    check_long_term(system, manifest)
    if system.drop.pruning:
        check_pruned_graph(manifest, folder)
    read_generation(folder)
    prompt = open_prompt(folder, model, system_prompt)
    if speech := system.speaks.by_itself:
        silence_token(speech, prompt, system.name)
    prompt_tokens = len(prompt.prefix)
    dtype = pool_dtype(manifest)
    return fit_at_rate(system, fps, model, dtype, prompt_tokens, machine, request)


def fit_at_rate(
    system: System,
    fps: Fraction | None,
    model: ModelSpec,
    dtype: DTypeLike,
    prompt_tokens: int,
    machine: MachineMemory,
    request: MemoryRequest,
) -> FittedSystem:
    """As `fit_budget`, where `memory.hours` are hours at the rate that is taken.

    fps: frames a second, None = the system's rate. Raises ConfigError too, for `memory.tokens` that
    are fewer than memory holds in any case.
    """
    _check_tokens(system, model, dtype, request)
    rate = system.frame_rate(model.fps) if fps is None else float(fps)
    if rate == system.frame_rate(model.fps):
        return fit_budget(system, model, dtype, prompt_tokens, machine, request)
    fitted = fit_budget(
        _with_frames(system, system.frames.model_copy(update={"fps": rate})),
        model,
        dtype,
        prompt_tokens,
        machine,
        request,
    )
    return replace(fitted, system=_with_frames(fitted.system, system.frames))


def _with_frames(system: System, frames: FrameRule) -> System:
    return system.model_copy(update={"frames": frames})


def _check_tokens(
    system: System, model: ModelSpec, dtype: DTypeLike, request: MemoryRequest
) -> None:
    """Raises ConfigError where an automatic budget would hold more than `memory.tokens`: memory
    always has room for the chunks that a new one attends to and that chunk, and a long-term memory
    has a smallest size."""
    own, ingest = system.memory, system.ingest
    automatic = (request.device_mb is None and own.device_mb is None) or (
        request.host_mb is None and own.host_mb is None
    )
    if own.tokens is None or not automatic or ingest.slides or not ingest.prefills:
        return
    chunk = chunk_units(system, model)
    units: float = chunk
    if system.long_term:
        try:
            long_term_size(system.long_term, model, 0, dtype)
        except HostBudgetError as error:
            units += error.smallest_mb * 1e6 / unit_pages(model) / page_bytes(model, dtype, True)
    else:
        units += chunk * (ingest.window or 0)
    smallest = math.ceil(units * model.unit_tokens)
    if own.tokens < smallest:
        raise ConfigError(
            f"system {system.name} has memory.tokens {own.tokens}, and its memory holds {smallest} "
            f"tokens of these engines at least: set memory.tokens to {smallest} or more"
        )


def check_long_term(system: System, manifest: Manifest) -> None:
    """Raises ConfigError if the system's long-term memory cannot read the pages of these
    engines."""
    if system.long_term and manifest.kv == "int8":
        raise ConfigError(
            f"system {system.name} has long-term memory, which reads keys and values as floats: "
            "take --system distinct, or an engine set built without --kv int8"
        )


def chunk_frames(system: System, model: ModelSpec) -> int:
    """Frames in a full chunk. Raises ConfigError for more than the engines take."""
    if system.chunk_frames and system.chunk_frames > model.chunk_frames:
        raise ConfigError(
            f"system {system.name} takes chunks of {system.chunk_frames} frames, these engines "
            f"{model.chunk_frames}: set chunk.frames in its YAML file to at most that, or rebuild "
            f"with --chunk-frames {system.chunk_frames}"
        )
    return system.chunk_frames or model.chunk_frames
