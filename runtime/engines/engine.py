"""The protocol of an engine."""

from __future__ import annotations

from typing import Protocol

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.engines.bindings import Bindings
from vicort.runtime.manifest import GraphSpec


class Engine(Protocol):
    @property
    def signature(self) -> GraphSpec: ...

    def enqueue(self, bindings: Bindings, stream: Stream) -> StreamEvent:
        """Run once, in the order of `stream`.

        bindings: every input and output, as contiguous arrays on the engine's device. The caller
        must not change them until the event is done. Raises ValueError if their names, types or
        shapes differ from `signature`.
        """
        ...
