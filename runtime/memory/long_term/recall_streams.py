"""Cells on their way from the host's memory to the device, in two hops that overlap: copied to one
half of a staging buffer while the cells of the head before go from the other half to where the
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
    """Cells of one layer and head, of any number."""

    layer: int
    head: int
    there: np.ndarray  # [n] slots of the source
    here: np.ndarray  # [n] slots of the target


class RecallStreams:
    """Two streams and their staging buffer. Recalls of several readers follow one another."""

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        dtype: DTypeLike,
        most_cells: int,
        clock: StageClock,
        urgent: bool,
    ) -> None:
        """most_cells: the most that one `Move` names. urgent: for questions, which hold other
        streams up while they wait for this."""
        whose = "question" if urgent else "chunk"
        self._copy = device.stream(f"recall copy {whose}", urgent)
        self._scatter = device.stream(f"recall scatter {whose}", urgent)
        self._clock = clock
        shape = (2, most_cells, 2, model.page_tokens, model.head_dim)
        self._data = as_numpy(device.empty(shape, dtype))
        self._where = as_numpy(device.empty((2, most_cells, model.page_tokens, 3), np.int32))

    def run(self, work: Callable[..., Any], *args: Any) -> StreamEvent:
        """Run `work`, which may call `move`, behind all recalls so far."""
        return self._copy.run(work, *args)

    def move(self, source: HostPool, target: Pool, moves: Iterable[Move]) -> None:
        """Copy cells; done when it returns. For the work given to `submit`."""
        scattered: list[StreamEvent] = []
        for move in moves:
            if len(scattered) >= 2:
                self._copy.wait(scattered[-2])  # this half is free again
            half = len(scattered) % 2
            with self._clock.measure(
                self._copy.name, self._copy, layer=move.layer, head=move.head, cells=len(move.there)
            ):
                self._data[half, : len(move.there)] = source.data[move.there, move.layer, move.head]
                self._where[half, : len(move.there)] = source.cell_positions[
                    move.there, move.layer, move.head
                ]
            scattered.append(self._scatter.run(self._place, target, move, half))
        for event in scattered[-2:]:
            self._copy.wait(event)

    def _place(self, target: Pool, move: Move, half: int) -> None:
        with self._clock.measure(
            self._scatter.name,
            self._scatter,
            layer=move.layer,
            head=move.head,
            cells=len(move.here),
        ):
            as_numpy(target.data)[move.here, move.layer, move.head] = self._data[
                half, : len(move.here)
            ]
            as_numpy(target.cell_positions)[move.here, move.layer, move.head] = self._where[
                half, : len(move.here)
            ]
