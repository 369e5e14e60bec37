"""Video sources: each is an iterable of upright RGB frames with exact times."""

from vicort.runtime.sources.opening import open_source
from vicort.runtime.sources.source import Source

__all__ = ["Source", "open_source"]
