"""How the parts of a session are put together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from vicort.runtime.answering import Answerer
from vicort.runtime.core import UNIT_FRAMES, Spoken
from vicort.runtime.devices.device import ON_CPU_ONLY, Device, Stream
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.engines.engine_set import EngineSet, pool_dtype
from vicort.runtime.errors import ConfigError, DeviceError
from vicort.runtime.frame_intake import FrameIntake
from vicort.runtime.language.generation_config import read_generation
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import Manifest, ModelSpec
from vicort.runtime.memory.budget import FittedSystem, MemoryRequest, fit_budget
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.policies.system import System
from vicort.runtime.sources.sampler import Sampler, as_rate
from vicort.runtime.stages.chunker import Chunker
from vicort.runtime.stages.frame_reducer import FrameReducer
from vicort.runtime.stages.job import Buffers, Job, Stage
from vicort.runtime.stages.lag_policy import OnLag
from vicort.runtime.stages.pipeline import OverlappedPipeline, Pipeline, SequentialPipeline
from vicort.runtime.stages.prefill import Prefill
from vicort.runtime.stages.pruned_stages import PrunedTokens, PrunedVision, check_pruned_graph
from vicort.runtime.stages.shared_vision import SharedVision
from vicort.runtime.stages.speaker import Speaker, silence_token
from vicort.runtime.stages.stages import Preprocess, TokenControl, Vision
from vicort.runtime.stages.unit_encoder import OwnEncoder, UnitEncoder
from vicort.runtime.stream_statistics import StreamStatistics

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
        fitted = fit_budget(system, model, engines.pool_dtype, prompt_tokens, machine, request, fps)
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


def sampling_rate(
    fps: float | Fraction | Literal["source"] | None, system: System, model: ModelSpec
) -> Fraction | None:
    """Frames a second to take; None takes every frame. fps: as `Session` takes it."""
    if fps == "source":
        return None
    return as_rate(system.frame_rate(model.fps) if fps is None else fps)


def build_intake(
    parts: Parts, rate: Fraction | None, on_lag: OnLag, statistics: StreamStatistics
) -> FrameIntake:
    """From frames to the pipeline. Raises ConfigError for another on_lag than there is."""
    system, model = parts.fitted.system, parts.memory.model
    chunker = Chunker(
        chunk_frames(system, model),
        model.grid,
        repeats=system.frames.repeat,
        # patches that move are chosen with the whole chunk
        encodes_once=system.drop.pruning is None,
    )
    return FrameIntake(
        Sampler(rate),
        parts.reducer,
        chunker,
        parts.pipeline,
        on_lag,
        statistics,
        text_joins=system.text.joins,
    )


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
    check_policies(system, model)
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
    return fit_budget(system, model, dtype, prompt_tokens, machine, request, fps)


def check_policies(system: System, model: ModelSpec) -> None:
    """Raises ConfigError if these engines cannot do what the system's policies need."""
    frames = chunk_frames(system, model)
    system.drop.check(system.name, model)
    system.retrieval.check(system.name, frames // UNIT_FRAMES)


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
