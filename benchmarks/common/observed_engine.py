"""An engine whose runs somebody looks at: for checks and counts, never while timing chunks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.engines.engine import Engine
from vicort.runtime.manifest import GraphSpec

OnRun = Callable[[dict[str, Any], int], None]


def is_text(bindings: dict[str, Any]) -> bool:
    """Whether all rows of a run of the language graph are text, by their positions: text has one
    number for t, h and w."""
    positions = bindings["pos"]
    real = positions[positions[:, 0] != EMPTY]
    return bool((real == real[:, :1]).all())


class ObservedEngine:
    """Runs another engine on the host and calls `on_run` after each run with its bindings (arrays
    by name, outputs filled) and the time at which it began (ns of time.perf_counter_ns)."""

    def __init__(self, engine: Engine, on_run: OnRun) -> None:
        self._engine, self._on_run = engine, on_run

    @property
    def signature(self) -> GraphSpec:
        return self._engine.signature

    def enqueue(self, bindings: Any, stream: Stream) -> StreamEvent:
        began = time.perf_counter_ns()
        event = self._engine.enqueue(bindings, stream)
        event.done()
        self._on_run(bindings, began)
        return event
