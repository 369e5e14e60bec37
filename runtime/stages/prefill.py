"""The last stage: visual tokens become keys and values in pages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vicort.runtime.core import Chunk
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.language.language_run import LanguageOutput, LanguageRun
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline
from vicort.runtime.policies.ingest import LatestFrames, SlidingWindow
from vicort.runtime.policies.overflow import Refuse
from vicort.runtime.stages.anchors import Anchors
from vicort.runtime.stages.job import Job
from vicort.runtime.stages.speaker import Speaker


@dataclass(frozen=True)
class LatestUnit:
    """A unit that waits, as visual tokens, for a question to prefill it."""

    start: Fraction
    end: Fraction
    number: int
    chunk: int
    rows: Any  # Array [P, width]


class Prefill:
    """Visual tokens -> keys and values in pages."""

    name = "prefill"

    def __init__(
        self,
        device: Device,
        stream: Stream,
        run: LanguageRun,
        memory: Memory,
        timeline: Timeline,
        model: ModelSpec,
    ) -> None:
        self._device = device
        self.stream = stream
        self._language = run
        self._memory = memory
        self._timeline = timeline
        self._model = model
        ingest = memory.system.ingest
        self._anchors = (
            Anchors(ingest, device, run, memory)
            if isinstance(ingest, SlidingWindow) and ingest.anchors
            else None
        )
        self.latest: deque[LatestUnit] = deque(
            maxlen=ingest.frames // 2 if isinstance(ingest, LatestFrames) else 0
        )
        self.seen_until = Fraction(0)  # seconds, last frame of the newest unit
        self.speaker: Speaker | None = None  # set by Session where the system speaks by itself

    def run(self, job: Job) -> None:
        if self._memory.system.ingest.prefills:
            self._prefill(job)
        else:
            self._wait_for_question(job)
        self.seen_until = job.chunk.end

    def _prefill(self, job: Job) -> None:
        chunk, tokens = job.chunk, self._model.unit_tokens
        self._timeline.begin(chunk.start)
        if self._memory.system.ingest.slides:
            self._slide(chunk)
        self._keep_in_range(chunk.frames[-2].time)
        positions = np.concatenate(
            [self._timeline.unit(chunk.frames[2 * u].time) for u in range(chunk.units)]
        )[job.indices]
        of_unit = np.bincount(job.indices // tokens, minlength=chunk.units).tolist()
        if job.kept:
            out = self._attend(job, positions)
            queries = (
                self._device.read(self.stream, out.queries)[0].copy()
                if self._memory.long_term
                else None
            )
            self._memory.write_chunk(
                chunk, of_unit, out.k, out.v, positions, job.mean.copy(), self.stream, queries
            )
            if self.speaker:
                (logits,) = self._device.read(self.stream, out.logits)
                self.speaker.decide(chunk, logits[0], job.submitted)
        if self._anchors:
            self._anchors.keep(job, of_unit, self.stream)

    def _slide(self, chunk: Chunk) -> None:
        """Positions follow the prompt again once older chunks are gone; where the system has
        anchors, that is now."""
        slid = self._anchors is not None and self._memory.slide(chunk)
        if steps := self._memory.close_gaps(self._timeline.first, self.stream):
            self._timeline.rebase(steps)
        if self._anchors and slid:
            self._anchors.refresh(self.stream)

    def _attend(self, job: Job, positions: np.ndarray) -> LanguageOutput:
        """Run a chunk over what memory shows it; again where its own queries say that it should
        have seen something else."""
        while True:
            out = self._language(
                None, [job.rows], positions, self._memory.ingest_table().slots, self.stream
            )
            if not self._memory.chooses:
                return out
            (q,) = self._device.read(self.stream, out.q)
            if not self._memory.must_rerun(q):
                return out

    def _wait_for_question(self, job: Job) -> None:
        tokens = self._model.unit_tokens
        for u in range(job.chunk.units):
            frames = job.chunk.frames[2 * u : 2 * u + 2]
            rows = self._device.empty((tokens, self._model.width), job.rows.dtype)
            self._device.copy(rows, job.rows[u * tokens : (u + 1) * tokens], self.stream)
            self.latest.append(
                LatestUnit(
                    frames[0].time, frames[1].time, job.chunk.first_unit + u, job.chunk.index, rows
                )
            )

    def _keep_in_range(self, newest: Fraction) -> None:
        """Re-base time when the newest unit would leave the range that the model was trained in."""
        excess = self._timeline.excess(newest)
        if not excess:
            return
        if isinstance(self._memory.system.overflow, Refuse):
            raise MemoryBudgetError(
                f"at {float(newest):.0f} s the stream leaves the {self._model.max_position} "
                "positions that the model was trained with, "
                "and this system forgets nothing: take a bounded one with --system vicostream"
            )
        first = self._timeline.first
        oldest = self._memory.oldest_unit()
        # What long-term memory holds is older than the window: all of it would fall to the floor.
        age = (
            0
            if oldest is None or self._memory.long_term
            else int(self._memory.first_cell(oldest)[0]) - first
        )
        steps = max(excess, age, self._timeline.range // 2)
        self._memory.rebase(steps, first, self.stream)
        self._timeline.rebase(steps)
