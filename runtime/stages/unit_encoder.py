"""Units of video -> visual tokens: what the vision stages ask for, and how one session has it."""

from __future__ import annotations

from typing import Protocol

from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.engines.engine import Engine
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.stages.grid_inputs import GridInputs


class UnitEncoder(Protocol):
    def encode(self, frames: Array, features: Array, grid: Grid, stream: Stream) -> None:
        """Encode U units of one grid: frames [2U,height,width,3] uint8 -> features [U,P,width].

        Call from the stream's own work, which uses the result in its order. Units do not depend on
        each other.
        """
        ...


class OwnEncoder:
    """A run of the vision graph on the caller's stream."""

    def __init__(self, engine: Engine, device: Device, model: ModelSpec) -> None:
        self._engine = engine
        self._grids = GridInputs(device, model)

    def encode(self, frames: Array, features: Array, grid: Grid, stream: Stream) -> None:
        inputs = {"frames": self._grids.frames(frames), **self._grids.whole(grid, stream)}
        self._engine.enqueue(inputs | {"features": features}, stream)
