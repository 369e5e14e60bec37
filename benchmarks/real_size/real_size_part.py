"""`vicort-bench --only real-size`: the whole comparison, as JSON and a table.

Each contender runs in a process of its own: it loads the model from the page cache and sees one
clip, the first since it was loaded. Streaming contenders get the frames of whole chunks as fast as
they take them; when these are in memory, the other frames come, and with the last one the question.
The others get all frames with the question. Weights may be random: the work is that of a trained
model, but for the tokens that are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.machine import conditions, version_of
from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.common.workload import ENCODED_RATE, Workload
from vicort.benchmarks.real_size.clip_job import ANSWER_TOKENS, QUESTION, ClipJob
from vicort.benchmarks.real_size.contenders import genai_contender, vicort_contenders
from vicort.benchmarks.real_size.rounds import Rounds
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import read_manifest
from vicort.runtime.written_files import write_file

SCHEMA = 1
CHECKPOINT = Path("build/3b")
ENGINES = (Path("build/3b-int4"),)
GENAI_MODEL = Path("build/3b-genai")
CLIP_SECONDS = 13


@dataclass(frozen=True)
class RealSizeOptions:
    checkpoint: Path = CHECKPOINT
    engines: tuple[Path, ...] = ENGINES
    genai_model: Path = GENAI_MODEL
    clip: Path | None = None  # None: a synthetic one
    rounds: int = 3
    minutes: float = 10.0  # timeout of a run


def measure(options: RealSizeOptions, cache: Path, out: Path) -> dict[str, Any]:
    """The result; after each run, what there is so far is in `out`. Raises ConfigError where no
    engine set says what the job is."""
    job = ClipJob.of(options.clip or synthetic_clip(cache), _model(options), usable_cores())
    head = {"schema": SCHEMA, "conditions": _conditions(), "job": describe(job, options)}
    rounds = Rounds(
        job,
        options.minutes * 60,
        lambda: write_file(out, json.dumps(head | rounds.report(), indent=1) + "\n", "--out"),
    )
    rounds.measure(
        [
            *vicort_contenders(options.engines),
            genai_contender(options.genai_model),
            *_transformers(options.checkpoint, rounds),
        ],
        options.rounds,
    )
    return head | rounds.report()


def synthetic_clip(cache: Path) -> Path:
    """A clip of 13 s at 320x180, drawn into `cache` if need be."""
    path = cache / "real-size.mp4"
    if not path.is_file():
        partial = path.with_suffix(".partial.mp4")
        Workload().encode(partial, CLIP_SECONDS * ENCODED_RATE)
        partial.rename(path)
    return path


def describe(job: ClipJob, options: RealSizeOptions) -> dict[str, Any]:
    height, width = job.size
    return {
        "clip": job.clip.name,
        "frames_a_second_taken": job.fps,
        "frame": f"{width}x{height}",
        "chunk_frames": job.chunk_frames,
        "tokens_a_unit": job.unit_tokens,
        "threads": job.threads,
        "question": QUESTION,
        "answer_tokens": ANSWER_TOKENS,
        "rounds": options.rounds,
        "minutes_a_run": options.minutes,
    }


def table(result: dict[str, Any]) -> Table:
    """Medians, with the range of the time to the first token."""
    job = result["job"]
    return Table(
        f"REAL SIZE  {job['clip']}, {job['frames_a_second_taken']:g} frames a second of "
        f"{job['frame']}, {job['threads']} threads, medians",
        ("Loaded from the page cache; the first clip after loading. Memory in GB of 1e9 bytes.",),
        (
            "",
            "last frame to first token, s",
            "[min, max]",
            "clip to first token, s",
            "streaming, frames/s",
            "decoding, ms a token",
            "loading, s",
            "peak private, GB",
            "peak resident, GB",
            "runs",
        ),
        tuple(_row(name, found) for name, found in result["contenders"].items()),
        tuple(_notes(result)),
    )


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    first = found["last_frame_to_first_token_s"]
    rate = found.get("frames_a_second")
    return (
        name,
        f"{first['median']:.1f}",
        f"[{first['min']:.1f}, {first['max']:.1f}]",
        f"{found['clip_to_first_token_s']['median']:.1f}",
        f"{rate['median']:.2f}" if rate else "whole clip",
        f"{found['decode_ms']['median']:.0f}",
        f"{found['load_s']['median']:.1f}",
        f"{found['peak_private_mb']['median'] / 1e3:.1f}",
        f"{found['peak_rss_mb']['median'] / 1e3:.1f}",
        str(first["n"]),
    )


def _notes(result: dict[str, Any]) -> Iterator[str]:
    for name, found in result["screened"].items():
        yield f"screened: {name}: {found if isinstance(found, str) else f'{found:.1f} s'}"
    for name, reason in result["skipped"].items():
        yield f"skipped: {name}: {reason}"


def _transformers(checkpoint: Path, rounds: Rounds) -> list[Any]:
    if (torch := version_of("torch")) is None or version_of("transformers") is None:
        missing = "transformers" if torch else "torch"
        rounds.skipped["transformers"] = f"{missing} is not installed: pip install {missing}"
        return []
    from vicort.benchmarks.real_size.transformers_screening import transformers_contenders

    return transformers_contenders(checkpoint, rounds)


def _model(options: RealSizeOptions) -> Any:
    found = [folder for folder in options.engines if folder.is_dir()]
    if not found:
        raise ConfigError(
            f"--engines {options.engines[0]}: there is no such folder, and an engine set says how "
            "large frames are: build one with `vicort-build CHECKPOINT --weights int4 --out DIR`"
        )
    return read_manifest(found[0]).model


def _conditions() -> dict[str, Any]:
    found = conditions()
    if version := version_of("openvino-genai"):
        found["libraries"]["openvino-genai"] = version
    return found
