"""Which way of running transformers is the fastest here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.transformers_stream import Variant
from vicort.benchmarks.real_size.contenders import FLOAT_BYTES, Contender, stored_bytes
from vicort.benchmarks.real_size.rounds import Rounds
from vicort.benchmarks.real_size.transformers_clip import run_in_chunks, run_whole

PRECISIONS = ("fp32", "bf16")
# A variant that takes this many times as long as the fastest so far is ended.
PATIENCE = 2.0
LEAST_S = 60.0  # that a variant always has


def transformers_contenders(checkpoint: Path, rounds: Rounds) -> list[Contender]:
    """Screens every variant with one run of the whole clip; returns the fastest, and the same in
    chunks."""
    fastest = _fastest(checkpoint, rounds)
    if fastest is None:
        return []
    # compiled, every new length of the cache would be compiled again
    streaming = replace(fastest, compiled=False)
    return [
        _contender(checkpoint, fastest, in_chunks=False),
        _contender(checkpoint, streaming, in_chunks=True),
    ]


def _fastest(checkpoint: Path, rounds: Rounds) -> Variant | None:
    measured: dict[Variant, float] = {}
    wall = rounds.seconds
    for precision in PRECISIONS:
        variant = Variant(precision, rounds.job.threads)
        limit = min(rounds.seconds, max(LEAST_S, PATIENCE * wall))
        if found := _screen(checkpoint, variant, rounds, limit):
            measured[variant] = found["last_frame_to_first_token_s"]
            wall = min(wall, found["wall_s"])
    if not measured:
        return None
    compiled = replace(min(measured, key=measured.__getitem__), compiled=True)
    if found := _screen(checkpoint, compiled, rounds, rounds.seconds):
        measured[compiled] = found["last_frame_to_first_token_s"]
    return min(measured, key=measured.__getitem__)


def _screen(
    checkpoint: Path, variant: Variant, rounds: Rounds, limit: float
) -> dict[str, Any] | None:
    return rounds.screen(_contender(checkpoint, variant, in_chunks=False), limit)


def _contender(checkpoint: Path, variant: Variant, in_chunks: bool) -> Contender:
    stored = stored_bytes(checkpoint)
    return Contender(
        f"transformers {variant.name}, {'in chunks' if in_chunks else 'whole clip'}",
        run_in_chunks if in_chunks else run_whole,
        checkpoint,
        "checkpoint",
        "make one with `python -m vicort.export.random_checkpoint --size 3b DIR`, or name "
        "another with --checkpoint",
        ("torch", "transformers"),
        (variant,),
        (FLOAT_BYTES if variant.precision == "fp32" else 2) / stored,
    )
