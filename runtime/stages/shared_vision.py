r"""The vision graph for several sessions: units that wait at the same time are encoded in one run.

units of session 1 \
units of session 2 -> one run of the vision graph -> features of each session
units of session 3 /
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from vicort.runtime.argument_kinds import wrong
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.device import Array, Stream, StreamEvent
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import DeviceError, SessionClosed
from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import Manifest
from vicort.runtime.stages.job import frames_view
from vicort.runtime.stages.unit_encoder import OwnEncoder

RUNS_AHEAD = 2  # on a GPU: one that runs and the next; what comes meanwhile is one batch


@dataclass(frozen=True)
class VisionRuns:
    """How much has been encoded so far."""

    runs: int = 0
    requests: int = 0
    units: int = 0


@dataclass(frozen=True)
class _Request:
    frames: Array  # [2U,height,width,3] uint8
    features: Array  # [U,P,width], to be written
    grid: Grid
    ready: StreamEvent  # the frames are there, and nothing uses the features any more
    encoded: Future[StreamEvent] = field(default_factory=Future)

    @property
    def units(self) -> int:
        return self.features.shape[0]


class SharedVision:
    """For sessions of one engine set that are open at the same time: `Session(engines, system,
    shared_vision=...)`. Close it after them.

    A request that finds the encoder idle runs at once, and alone. Those that wait are encoded
    together, first come first served: the oldest, and with it all of its grid that fit the vision
    graph's largest batch (build with a larger --chunk-frames for larger ones). On a CPU each unit's
    features are the same to the last bit, whatever it runs with; on a GPU the kernels that are
    chosen may depend on the batch. With `freshness="now"` on a CPU, a question may wait for a whole
    batch instead of one unit.
    """

    def __init__(self, engines: EngineSet) -> None:
        """Allocates the frames and features of one largest batch. Raises ConfigError for anything
        but an open engine set."""
        if not isinstance(getattr(engines, "manifest", None), Manifest):
            raise wrong(engines, "engines", "an open EngineSet")
        model = engines.manifest.model
        self.engines = engines
        self._model = model
        self._device = engines.new_device()
        self._stream = self._device.stream("shared vision")
        self._encoder = OwnEncoder(engines.vision, self._device, model)
        self._largest = model.chunk_frames // UNIT_FRAMES  # units of a run
        self._frames = self._device.empty((model.chunk_frames * model.max_pixels * 3,), np.uint8)
        tokens = self._largest * model.unit_tokens
        self._features = self._device.empty((tokens * model.width,), engines.dtype)
        self._lock = threading.Lock()  # of the three below
        self._waiting: deque[_Request] = deque()
        self._closed = False
        self._counts = VisionRuns()
        self._ahead: deque[StreamEvent] = deque()  # the newest runs

    def encode(self, frames: Array, features: Array, grid: Grid, stream: Stream) -> None:
        """As `UnitEncoder` says. Blocks the host until the run is enqueued. Raises what the run
        failed with, which all its requests get, and SessionClosed after `close`."""
        request = _Request(frames, features, grid, stream.record())
        with self._lock:
            if self._closed:
                raise _closed()
            self._waiting.append(request)
            self._stream.run(self._run_next)
        stream.wait(request.encoded.result())

    def counts(self) -> VisionRuns:
        with self._lock:
            return self._counts

    def close(self) -> None:
        """Waits for the run in progress; what waits raises SessionClosed. Raises DeviceError if the
        device is lost: leaving a `with` statement does so only if its body did not."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.encoded.set_exception(_closed())
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except DeviceError:
            if not isinstance(error, DeviceError):
                raise

    def _run_next(self) -> None:
        """Encode what waits, as far as it is one batch. Nothing waits if an earlier run took it."""
        try:
            self._wait_for_earlier_runs()
            batch = self._take_batch()
        except BaseException as error:  # noqa: BLE001 (raised by every request)
            self._fail(error)
            return
        if not batch:
            return
        try:
            self._encode(batch)
            done = self._stream.record()
        except BaseException as error:  # noqa: BLE001 (raised by every request)
            for request in batch:
                request.encoded.set_exception(error)
            return
        self._ahead.append(done)
        for request in batch:
            request.encoded.set_result(done)

    def _wait_for_earlier_runs(self) -> None:
        while len(self._ahead) >= RUNS_AHEAD:
            self._ahead.popleft().done()

    def _take_batch(self) -> list[_Request]:
        """The oldest request, and those of its grid that fit beside it, in their order."""
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        units = 0
        with self._lock:
            for request in self._waiting:
                same = not batch or request.grid == batch[0].grid
                if same and units + request.units <= self._largest:
                    batch.append(request)
                    units += request.units
                else:
                    left.append(request)
            self._waiting = left
            if batch:
                self._counts = replace(
                    self._counts,
                    runs=self._counts.runs + 1,
                    requests=self._counts.requests + len(batch),
                    units=self._counts.units + units,
                )
        return batch

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.encoded.set_exception(error)

    def _encode(self, batch: Sequence[_Request]) -> None:
        for request in batch:
            self._stream.wait(request.ready)
        if len(batch) == 1:
            only = batch[0]
            self._encoder.encode(only.frames, only.features, only.grid, self._stream)
        else:
            self._encode_together(batch)

    def _encode_together(self, batch: Sequence[_Request]) -> None:
        grid, copy = batch[0].grid, self._device.copy
        starts = np.cumsum([0, *(request.units for request in batch)]).tolist()
        units = starts.pop()
        frames = frames_view(self._frames, UNIT_FRAMES * units, grid, self._model.token_pixels)
        shape = (units, grid.tokens, self._model.width)
        features = self._features[: math.prod(shape)].reshape(shape)
        for request, start in zip(batch, starts, strict=True):
            first = UNIT_FRAMES * start
            copy(frames[first : first + UNIT_FRAMES * request.units], request.frames, self._stream)
        self._encoder.encode(frames, features, grid, self._stream)
        for request, start in zip(batch, starts, strict=True):
            copy(request.features, features[start : start + request.units], self._stream)


def _closed() -> SessionClosed:
    return SessionClosed("the shared vision is closed: close it after its sessions")
