"""Copies cells from the host's memory to the device, in two hops that overlap: cells of one head go
to one half of a staging buffer while those of the head before go from the other half to where the
engine reads them (FreeKV's double-buffered, streamed recall)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.device import Device, Pool, StreamEvent
from vicort.runtime.devices.pages import HostPool, as_numpy
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.manifest import ModelSpec


@dataclass(frozen=True)
class Move:
    """Cells of one layer and head to copy, n of them."""

    layer: int
    head: int
    source_slots: np.ndarray  # [n]
    target_slots: np.ndarray  # [n]


class RecallStreams:
    """Two streams and their staging buffer. Recalls of several readers run one after the other."""

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        dtype: DTypeLike,
        max_cells: int,
        clock: StageClock,
        urgent: bool,
    ) -> None:
        """max_cells: of one `Move`. urgent: for questions, which delay other streams while they
        wait for a recall."""
        reader = "question" if urgent else "chunk"
        self._copy = device.stream(f"recall copy {reader}", urgent)
        self._scatter = device.stream(f"recall scatter {reader}", urgent)
        self._clock = clock
        shape = (2, max_cells, 2, model.page_tokens, model.head_dim)
        self._data = as_numpy(device.empty(shape, dtype))
        self._positions = as_numpy(device.empty((2, max_cells, model.page_tokens, 3), np.int32))

    def run(self, work: Callable[..., Any], *args: Any) -> StreamEvent:
        """Runs `work`, which may call `move_in_stream`, after all recalls so far."""
        return self._copy.run(work, *args)

    def move_in_stream(self, source: HostPool, target: Pool, moves: Iterable[Move]) -> None:
        """Copies cells; done when it returns. Call it only from the work given to `run`."""
        scattered: list[StreamEvent] = []
        for move in moves:
            if len(scattered) >= 2:
                self._copy.wait(scattered[-2])  # this half is free again
            half, count = len(scattered) % 2, len(move.source_slots)
            cells = move.source_slots, move.layer, move.head
            with self._clock.measure(
                self._copy.name, self._copy, layer=move.layer, head=move.head, cells=count
            ):
                self._data[half, :count] = source.data[cells]
                self._positions[half, :count] = source.cell_positions[cells]
            scattered.append(self._scatter.run(self._scatter_in_stream, target, move, half))
        for event in scattered[-2:]:
            self._copy.wait(event)

    def _scatter_in_stream(self, target: Pool, move: Move, half: int) -> None:
        count = len(move.target_slots)
        cells = move.target_slots, move.layer, move.head
        with self._clock.measure(
            self._scatter.name, self._scatter, layer=move.layer, head=move.head, cells=count
        ):
            as_numpy(target.data)[cells] = self._data[half, :count]
            as_numpy(target.cell_positions)[cells] = self._positions[half, :count]
