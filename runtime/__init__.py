"""Run time: video in, streams, engines, memory, retrieval, answers. Never imports torch, never
`vicort.export`."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes longer to import than all else in this file
if TYPE_CHECKING:
    from typing import Any

    from vicort.runtime.alerts.alert_session import AlertSession
    from vicort.runtime.core import Answer, Constraint, Frame, Question, Sampling
    from vicort.runtime.session import Session
    from vicort.runtime.sources import open_source

__all__ = [
    "AlertSession",
    "Answer",
    "Constraint",
    "Frame",
    "Question",
    "Sampling",
    "Session",
    "open_source",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `vicort.export` takes the nouns without
    the video libraries."""
    from importlib import import_module

    rooms = {
        "AlertSession": "alerts.alert_session",
        "Session": "session",
        "open_source": "sources",
    }
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{rooms.get(name, 'core')}"), name)
