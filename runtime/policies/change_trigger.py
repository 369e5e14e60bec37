"""When a chunk shows a new scene."""

from __future__ import annotations

from fractions import Fraction


class ChangeTrigger:
    """Says at which chunks of a stream the scene has changed: where a larger share of the visual
    tokens than `kept` is kept, at least `apart` seconds after the last such chunk.

    TimeChat-Online (arXiv 2504.17343) takes the valleys of its drop ratio, 1 - kept / tokens, for
    scene transitions. Its public code needs the whole video for that: it chooses the tenth of all
    units with the lowest ratios. A stream has no end, so here a chunk is compared with a fixed
    share. The first chunk has nothing that it could differ from, and is no change; the public code
    leaves the first unit out, too.
    """

    def __init__(self, kept: float, apart: Fraction) -> None:
        """kept: a share, 0 to 1. apart: seconds."""
        self._kept = kept
        self._apart = apart
        self._began = False
        self._last: Fraction | None = None  # seconds, of the newest change

    def changed(self, at: Fraction, kept: int, tokens: int) -> bool:
        """Whether the scene has changed at the next chunk. Call it for each chunk, in order.

        at: seconds, the chunk's last frame. kept: of its `tokens` visual tokens, which are at
        least 1.
        """
        first, self._began = not self._began, True
        if first or kept / tokens <= self._kept:
            return False
        if self._last is not None and at - self._last < self._apart:
            return False
        self._last = at
        return True
