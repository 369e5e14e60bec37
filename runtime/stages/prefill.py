"""The last stage: visual tokens become keys and values in pages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk, Page
from vicort.runtime.devices.device import Array, Device, Stream, StreamEvent
from vicort.runtime.frame_grid import Grid
from vicort.runtime.language.language_run import LanguageOutput, LanguageRun
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline, text_positions
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
    rows: Array  # [P, width]

    @property
    def page(self) -> Page:
        """What is known of it, as of a unit in memory."""
        return Page(-1, "vision", self.rows.shape[0], self.chunk, self.number, self.start, self.end)


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
        self.newest_chunk = -1  # index of the newest chunk that is in memory, or was
        # seconds, last frame of the newest unit; None = there was none
        self.seen_until: Fraction | None = None
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
        self.deferred: deque[DeferredUnit] = deque(maxlen=ingest.deferred_units)
        # of the newest fork, where units are deferred
        self.forked_units: tuple[DeferredUnit, ...] = ()
        self.forked_until = Fraction(0)  # seconds, last frame of the newest fork

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
            self.deferred.extend(self._units_of(job))
        self.seen_until, self.newest_chunk = job.chunk.end, job.chunk.index
        if self._cut_in:
            self._newest = self.stream.record()

    def _prefill(self, job: Job) -> None:
        chunk, memory = job.chunk, self._memory
        memory.begin_chunk(chunk)
        memory.timeline.begin(chunk.start)
        if self._ingest.slides:
            self._slide(chunk)
        memory.keep_in_range(chunk.frames[-UNIT_FRAMES].time, self.stream)
        positions = _positions(memory.timeline, chunk)[job.indices]
        tokens_of_unit = _tokens_of_unit(job)
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

    def _last_queries(self, out: LanguageOutput) -> np.ndarray | None:
        """[L, R, Hq, D] float32 of a run's last rows, where long-term memory needs them."""
        if not self._memory.long_term:
            return None
        (queries,) = self._device.read(self.stream, out.queries)
        return queries.copy()

    def _slide(self, chunk: Chunk) -> None:
        """Evict the chunks that this one displaces, and close the gap that they leave after the
        prompt."""
        evicted = self._memory.slide(chunk)
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
        """A chunk that is still being filled, for the questions that see it. It reads what it would
        read now if it were full, and changes nothing that the stream reads: a reader of long-term
        memory does not choose again. Where nothing was kept since the fork before, that one stays,
        without a run."""
        chunk, memory = job.chunk, self._memory
        self.forked_until = chunk.end
        if not self._ingest.prefills:
            self.forked_units = tuple(self._units_of(job))
            return
        newest = chunk.frames[-UNIT_FRAMES].time
        if memory.system.text.joins:  # the question becomes part of the stream, and needs room
            memory.begin_chunk(chunk)
            memory.timeline.begin(chunk.start)
            memory.keep_in_range(newest, self.stream)
        timeline = memory.timeline.fork(newest)
        positions = _positions(timeline, chunk)[job.indices]
        table, counts = memory.fork_table(chunk), _tokens_of_unit(job)
        if memory.keep_fork(chunk, counts, positions, table, timeline.next_text):
            return
        memory.begin_chunk(chunk)
        out = self._language(None, [job.rows], positions, table, self.stream) if job.kept else None
        written = (out.k, out.v) if out else None
        memory.write_fork(
            chunk,
            counts,
            written,
            positions,
            table,
            job.mean.copy(),
            timeline.next_text,
            self.stream,
        )

    def _units_of(self, job: Job) -> list[DeferredUnit]:
        """Copies of a chunk's visual tokens, until a question prefills them."""
        tokens, chunk, units = job.chunk.grid.tokens, job.chunk, []
        for unit in range(chunk.units):
            first, last = chunk.frames[UNIT_FRAMES * unit : UNIT_FRAMES * (unit + 1)]
            rows = self._device.empty((tokens, self._model.width), job.rows.dtype)
            self._device.copy(rows, job.rows[unit * tokens : (unit + 1) * tokens], self.stream)
            number = chunk.first_unit + unit
            units.append(DeferredUnit(first.time, last.time, number, chunk.index, chunk.grid, rows))
        return units


def _positions(timeline: Timeline, chunk: Chunk) -> np.ndarray:
    """[units * P, 3] int32 of all visual tokens of a chunk."""
    starts = [chunk.frames[UNIT_FRAMES * unit].time for unit in range(chunk.units)]
    return np.concatenate([timeline.unit(start, chunk.grid) for start in starts])


def _tokens_of_unit(job: Job) -> list[int]:
    """How many tokens of each unit of a chunk are kept."""
    units = job.indices // job.chunk.grid.tokens
    counts: list[int] = np.bincount(units, minlength=job.chunk.units).tolist()
    return counts
