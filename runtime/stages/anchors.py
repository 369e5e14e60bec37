"""CodecFlow's selective refresh (arXiv 2604.06036).

When the window slides, what it keeps was computed in the context of what has been evicted. Units
with an I frame, which holds the whole picture, are computed again; units between them, which only
hold motion, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.memory.memory import Memory
from vicort.runtime.stages.job import Job


class Anchors:
    """Copies of the visual tokens of the window's units with an I frame.

    All methods run in the prefill stream's own work.
    """

    def __init__(
        self,
        rule: Literal["reuse", "refresh"],
        device: Device,
        language: LanguageRun,
        memory: Memory,
    ) -> None:
        """rule: "reuse" keeps the window's keys and values as they are; then nothing is copied."""
        self._rule = rule
        self._device = device
        self._language = language
        self._memory = memory
        self._rows: dict[int, Array] = {}  # unit -> [n, width], in the order of the stream

    def keep(self, job: Job, tokens_of_unit: Sequence[int], stream: Stream) -> None:
        """Copy the anchors of a chunk that has just been written."""
        if self._rule == "reuse":
            return
        for unit in job.anchors:
            first = sum(tokens_of_unit[:unit])
            rows = job.rows[first : first + tokens_of_unit[unit]]
            copy = self._device.empty(rows.shape, rows.dtype)
            self._device.copy(copy, rows, stream)
            self._rows[job.chunk.first_unit + unit] = copy

    def refresh(self, stream: Stream) -> None:
        """After the window has slid, run each anchor over what is before it there, oldest first.

        So each anchor sees the new values of the anchors before it.
        """
        memory = self._memory
        self._rows = {unit: rows for unit, rows in self._rows.items() if memory.tiers.holds(unit)}
        for unit, rows in self._rows.items():
            table = memory.table_before(unit)
            out = self._language(None, [rows], memory.positions(unit), table, stream)
            memory.rewrite(unit, out.k, out.v, stream)
