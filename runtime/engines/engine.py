"""What every engine is, whatever runs it."""

from __future__ import annotations

from typing import Protocol

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.engines.bindings import Bindings
from vicort.runtime.manifest import GraphSpec


class Engine(Protocol):
    @property
    def signature(self) -> GraphSpec: ...

    def enqueue(self, bindings: Bindings, stream: Stream) -> StreamEvent:
        """Run once on `stream`, which keeps the order. `bindings` names every input and output:
        contiguous arrays on the engine's device, of the shapes and types of `signature`, left alone
        until the event is done. Raises ValueError if they do not fit."""
        ...
