"""The inputs of the vision graphs that depend on the grid of a chunk, kept on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vicort.runtime.devices.device import Array, Device, Stream
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.vision_windows import grid_inputs, pruned_grid_inputs

MAX_GRIDS = 8  # whose inputs are kept; a stream rarely has more than one


class IndexArrays(Protocol):
    def __call__(
        self, grid: Grid, patch: int, merge: int, window: int
    ) -> dict[str, np.ndarray]: ...


class GridInputs:
    """For one stream of one session. Engines of a fixed size take no such inputs."""

    def __init__(self, device: Device, model: ModelSpec) -> None:
        self._device = device
        self._model = model
        self._kept: OrderedDict[tuple[Callable, Grid], dict[str, Array]] = OrderedDict()

    def frames(self, frames: Array) -> Array:
        """Frames [F,height,width,3] in the shape that the vision graphs take, without a copy."""
        if self._model.fixed_size:
            return frames
        count, height, width, colours = frames.shape
        row = self._model.patch * colours
        return frames.reshape((count, height * width * colours // row, row))

    def whole(self, grid: Grid, stream: Stream) -> dict[str, Array]:
        """Of the vision graph. Call from the stream's own work."""
        return self._inputs(grid_inputs, grid, stream)

    def pruned(self, grid: Grid, stream: Stream) -> dict[str, Array]:
        """Of the pruned vision graph. Call from the stream's own work."""
        return self._inputs(pruned_grid_inputs, grid, stream)

    def _inputs(self, arrays: IndexArrays, grid: Grid, stream: Stream) -> dict[str, Array]:
        model, key = self._model, (arrays, grid)
        if model.fixed_size:
            return {}
        if key not in self._kept:
            self._kept[key] = placed = {}
            for name, array in arrays(grid, model.patch, model.merge, model.window).items():
                placed[name] = self._device.empty(array.shape, array.dtype)
                self._device.upload(placed[name], array, stream)
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_GRIDS:
            self._kept.popitem(last=False)
        return self._kept[key]
