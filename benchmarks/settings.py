"""How much is measured: the default takes some minutes, `--quick` under one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    matrix_size: int = 2048  # ceilings: side of the square matrices
    matrix_repeats: int = 9
    copy_mb: int = 256
    warmup_chunks: int = 12  # before anything counts: the window of 4 chunks is full after 5
    chunks: int = 40  # a measurement
    repeats: int = 7  # measurements of each candidate, interleaved
    screening_chunks: int = 6  # to find the fastest way of running each side
    compared_chunks: int = 20
    compared_repeats: int = 5
    history_chunks: int = 100  # full history
    compiled: bool = True  # whether torch.compile is tried
    medium: bool = True  # whether the model of about 100 million parameters is measured
    medium_screening_chunks: int = 1
    medium_chunks: int = 4
    medium_repeats: int = 3
    medium_history_chunks: int = 6
    checked_chunks: int = 6  # that both sides do the same job
    long_chunks: int = 2100
    long_device_mb: float = 40  # budgets that the stream outgrows: the device tier by about chunk 300, the host tier by about chunk 850
    long_host_mb: float = 50
    questions: int = 100  # of each kind, for percentiles of the time to the first token
    real_time_fps: int = 30


QUICK = Settings(
    matrix_size=512,
    matrix_repeats=3,
    copy_mb=64,
    warmup_chunks=6,
    chunks=8,
    repeats=3,
    screening_chunks=2,
    compared_chunks=4,
    compared_repeats=2,
    history_chunks=12,
    compiled=False,
    medium=False,
    checked_chunks=3,
    long_chunks=130,
    long_device_mb=40,
    long_host_mb=10,
    questions=8,
)
