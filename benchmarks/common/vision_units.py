"""What units of several streams in one run of the vision graph can gain."""

from __future__ import annotations

import numpy as np

from vicort.benchmarks.common.spread import Spread, spread
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.device import Mark
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import EngineError
from vicort.runtime.stages.unit_encoder import OwnEncoder

WARMUP = 3  # runs of each size: on a GPU the second is captured


def vision_ms_a_unit(engines: EngineSet, repeats: int = 40) -> dict[int, Spread]:
    """Milliseconds of vision a temporal unit on the device's clock, by how many units are in one
    run (1, 2, 4, ... a full chunk); the sizes take turns.

    Raises EngineError for engines that take frames of any size.
    """
    model = engines.manifest.model
    if model.fixed_size is None:
        raise EngineError(f"{model.name} takes frames of any size: build it with --image-size")
    largest = model.chunk_frames // UNIT_FRAMES
    sizes = sorted({largest, *(1 << power for power in range(largest.bit_length()))})
    device = engines.new_device(overlap=False)
    try:
        stream = device.stream("vision")
        encoder = OwnEncoder(engines.vision, device, model)
        shape = (model.chunk_frames, *model.fixed_size, 3)
        frames = device.empty(shape, np.uint8)
        features = device.empty((largest, model.unit_tokens, model.width), engines.dtype)
        drawn = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        stream.run(device.upload, frames, drawn, stream).done()
        grid = model.grid(*model.fixed_size)

        def run(units: int) -> tuple[Mark, Mark]:
            before = stream.mark()
            encoder.encode(frames[: UNIT_FRAMES * units], features[:units], grid, stream)
            return before, stream.mark()

        ms: dict[int, list[float]] = {units: [] for units in sizes}
        for repeat in range(WARMUP + repeats):
            for units in sizes:
                before, after = stream.run(run, units).done()
                if repeat >= WARMUP:
                    ms[units].append((after.ns() - before.ns()) / 1e6 / units)
        return {units: spread(values) for units, values in ms.items()}
    finally:
        device.close()
