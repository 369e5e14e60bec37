"""CodecFlow's selective refresh (arXiv 2604.06036): when the window slides, what it keeps was
computed in the context of what it forgets. Units with an I frame, which hold the whole picture, are
computed again; those between, which only tell what moved, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.memory.memory import Memory
from vicort.runtime.policies.ingest import SlidingWindow
from vicort.runtime.stages.job import Job


class Anchors:
    """The visual tokens of the window's units with an I frame, kept to be run once more."""

    def __init__(
        self, policy: SlidingWindow, device: Device, language: LanguageRun, memory: Memory
    ) -> None:
        self.policy = policy
        self._device = device
        self._language = language
        self._memory = memory
        # of each such unit: Array [n, width], in the order of the stream
        self._rows: dict[int, Any] = {}

    def keep(self, job: Job, tokens_of_unit: Sequence[int], stream: Stream) -> None:
        """A chunk was placed: copy what its anchors may need later."""
        if self.policy.anchors == "reuse":
            return
        for unit in job.anchors:
            first = sum(tokens_of_unit[:unit])
            rows = job.rows[first : first + tokens_of_unit[unit]]
            kept = self._device.empty(rows.shape, rows.dtype)
            self._device.copy(kept, rows, stream)
            self._rows[job.chunk.first_unit + unit] = kept

    def refresh(self, stream: Stream) -> None:
        """The window has slid: run each anchor over what came before it there, oldest first, so
        that it sees those before it anew."""
        self._rows = {unit: rows for unit, rows in self._rows.items() if self._memory.holds(unit)}
        for unit, rows in self._rows.items():
            out = self._language(
                None, [rows], self._memory.positions(unit), self._memory.before(unit), stream
            )
            self._memory.rewrite(unit, out.k, out.v, stream)
