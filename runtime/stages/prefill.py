"""The last stage: visual tokens become keys and values in pages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk
from vicort.runtime.devices.device import Array, Device, Stream, StreamEvent
from vicort.runtime.frame_grid import Grid
from vicort.runtime.language.language_run import LanguageOutput, LanguageRun
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import text_positions
from vicort.runtime.stages.anchors import Anchors
from vicort.runtime.stages.job import Job
from vicort.runtime.stages.speaker import Speaker


@dataclass(frozen=True)
class DeferredUnit:
    """A unit that waits, as visual tokens, for a question to prefill it."""

    start: Fraction  # seconds
    end: Fraction
    number: int
    chunk: int
    grid: Grid
    rows: Array  # [P, width], or fewer where tokens are dropped
    # [P, 3] int32, of a forked unit; None = from the prompt on, with the units before it
    positions: np.ndarray | None = None
    first_text: int = 0  # position of the first text token after a forked unit


class Prefill:
    """Visual tokens -> keys and values in pages."""

    name = "prefill"

    def __init__(
        self,
        device: Device,
        stream: Stream,
        run: LanguageRun,
        memory: Memory,
        model: ModelSpec,
        cut_in: bool,
    ) -> None:
        """cut_in: whether questions may cut in: then no chunk is enqueued before the one before it
        is in memory."""
        self.stream = stream
        self.began = False  # whether a unit is in memory, or was
        self.seen_until = Fraction(0)  # seconds, last frame of the newest unit
        self.speaker: Speaker | None = None  # set where the system speaks by itself
        self._cut_in = cut_in
        self._newest: StreamEvent | None = None  # after the chunk before
        self._device = device
        self._language = run
        self._memory = memory
        self._model = model
        self._ingest = ingest = memory.system.ingest
        self._anchors = (
            Anchors(ingest.anchor_rule, device, run, memory) if ingest.anchor_rule else None
        )
        self.forked: DeferredUnit | None = None  # the newest half unit that a question saw
        self.deferred: deque[DeferredUnit] = deque(maxlen=ingest.deferred_units)

    def cache_prompt_in_stream(self, tokens: np.ndarray) -> None:
        """Prefill the prompt's tokens [n] int32, before any chunk."""
        positions = text_positions(0, len(tokens))
        table = self._memory.ingest_table().slots
        out = self._language(tokens, [], positions, table, self.stream)
        self._memory.write_prompt(out.k, out.v, positions, self.stream)

    def run_in_stream(self, job: Job) -> None:
        if job.chunk.forked:
            self._fork(job)
            return
        if self._newest:
            self._newest.done()
        if self._ingest.prefills:
            self._prefill(job)
        else:
            self._defer(job)
        self.seen_until, self.began = job.chunk.end, True
        if self._cut_in:
            self._newest = self.stream.record()

    def _prefill(self, job: Job) -> None:
        chunk, memory = job.chunk, self._memory
        memory.timeline.begin(chunk.start)
        if self._ingest.slides:
            self._slide(chunk)
        memory.keep_in_range(chunk.frames[-UNIT_FRAMES].time, self.stream)
        positions = self._positions(chunk)[job.indices]
        units_of_tokens = job.indices // chunk.grid.tokens
        tokens_of_unit = np.bincount(units_of_tokens, minlength=chunk.units).tolist()
        if job.kept:
            out = self._attend(job, positions)
            memory.write_chunk(
                chunk,
                tokens_of_unit,
                out.k,
                out.v,
                positions,
                job.mean.copy(),
                self.stream,
                self._last_queries(out),
            )
            if self.speaker:
                (logits,) = self._device.read(self.stream, self._language.logits(self.stream))
                self.speaker.decide(chunk, logits[0], job.entered)
        if self._anchors:
            self._anchors.keep(job, tokens_of_unit, self.stream)

    def _positions(self, chunk: Chunk) -> np.ndarray:
        """[units * P, 3] int32 of all visual tokens of a chunk."""
        starts = [chunk.frames[UNIT_FRAMES * unit].time for unit in range(chunk.units)]
        timeline = self._memory.timeline
        return np.concatenate([timeline.unit(start, chunk.grid) for start in starts])

    def _last_queries(self, out: LanguageOutput) -> np.ndarray | None:
        """[L, R, Hq, D] float32 of a run's last rows, where long-term memory needs them."""
        if not self._memory.long_term:
            return None
        (queries,) = self._device.read(self.stream, out.queries)
        return queries.copy()

    def _slide(self, chunk: Chunk) -> None:
        """Close the gap that evicted chunks leave after the prompt.

        Where the system has anchors, the chunks that this one displaces are evicted first.
        """
        evicted = self._anchors is not None and self._memory.slide(chunk)
        self._memory.close_gaps(self.stream)
        if self._anchors and evicted:
            self._anchors.refresh(self.stream)

    def _attend(self, job: Job, positions: np.ndarray) -> LanguageOutput:
        """Run a chunk over what memory shows it; again where its own queries choose other pages."""
        while True:
            table = self._memory.ingest_table().slots
            out = self._language(None, [job.rows], positions, table, self.stream)
            if not self._memory.chooses:
                return out
            (q,) = self._device.read(self.stream, out.q)
            if not self._memory.must_rerun(q):
                return out

    def _fork(self, job: Job) -> None:
        """Keep a half unit's visual tokens for the questions that see it."""
        chunk = job.chunk
        positions, first_text = self._memory.timeline.fork(chunk.start, chunk.grid)
        rows = self._device.empty((job.kept, self._model.width), job.rows.dtype)
        self._device.copy(rows, job.rows, self.stream)
        self.forked = DeferredUnit(
            chunk.start,
            chunk.end,
            chunk.first_unit,
            chunk.index,
            chunk.grid,
            rows,
            positions[job.indices] if self._ingest.prefills else None,
            first_text,
        )

    def _defer(self, job: Job) -> None:
        """Keep copies of the latest units' visual tokens until a question prefills them."""
        tokens, chunk = job.chunk.grid.tokens, job.chunk
        for unit in range(chunk.units):
            first, last = chunk.frames[UNIT_FRAMES * unit : UNIT_FRAMES * (unit + 1)]
            rows = self._device.empty((tokens, self._model.width), job.rows.dtype)
            self._device.copy(rows, job.rows[unit * tokens : (unit + 1) * tokens], self.stream)
            number = chunk.first_unit + unit
            self.deferred.append(
                DeferredUnit(first.time, last.time, number, chunk.index, chunk.grid, rows)
            )
