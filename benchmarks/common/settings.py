"""Amounts of the measurements: the default takes about an hour, `--quick` about two minutes."""

from __future__ import annotations

from dataclasses import dataclass

# pixels of a frame at real size: about 300x300, as the published rate has it, and 448x448
REAL_SIDES = (308, 448)


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
    # budgets that the stream outgrows: the device tier by about chunk 300, the host tier by about
    # chunk 850
    long_device_mb: float = 40
    long_host_mb: float = 50
    questions: int = 100  # of each kind, for percentiles of the time to the first token
    real_time_fps: int = 30
    system_streams: int = 30  # of seven things each, that every system watches
    # units since the last thing disappeared; 512 are 64 chunks of 16 frames
    system_ages: tuple[int, ...] = (0, 8, 64, 250, 512, 1000)
    # of pages, for every system: 851 whole units of the tiny model, so 512 fit however they are
    # kept, 1,000 do not
    store_mb: float = 42.0
    # before a system is timed: as long as the stream of the oldest question
    system_fill_frames: int = 2048
    # the same for a system that forgets nothing: its stream ends at the positions of the model
    unbounded_fill_frames: int = 256
    system_rate_frames: int = 320  # a measurement of the rate
    system_repeats: int = 5
    system_questions: int = 60  # idle
    system_loaded_questions: int = 40  # while frames come as fast as they are taken
    replay_s: float = 8.0  # of 1x replay
    # of one system's streams, after which a slow one has watched enough: none is that slow here
    answer_seconds: float = 3000.0
    system_seconds: float = 8.0  # of measuring a rate, after which a slow system's is enough
    # timeout of one system for one kind of measurement
    system_minutes: float = 90.0
    twins_timed: bool = True
    side_by_side: bool = False  # whether two systems may be timed at once: only to see that it runs
    # so that the largest scope has that many chunks to choose from
    migration_fill_frames: int = 2080
    migration_frames: int = 320  # a measurement
    migration_repeats: int = 3
    migration_questions: int = 10
    migration_ends_only: bool = False  # the first and the last value of each axis


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
    system_streams=1,
    system_ages=(0, 8),
    system_fill_frames=48,
    unbounded_fill_frames=48,
    system_rate_frames=32,
    system_repeats=2,
    system_questions=4,
    system_loaded_questions=2,
    replay_s=1.0,
    twins_timed=False,
    side_by_side=True,
    migration_fill_frames=48,
    migration_frames=16,
    migration_repeats=2,
    migration_questions=2,
    migration_ends_only=True,
)
