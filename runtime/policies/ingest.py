"""What a new chunk may attend to, besides the prompt and itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.policies.registry import MOST, Policy, Registry


class Ingest(Policy):
    # False: chunks wait as visual tokens until a question prefills the latest of them
    prefills: ClassVar[bool] = True
    # True: what leaves the window is forgotten, and what stays moves up behind the prompt
    slides: ClassVar[bool] = False

    @property
    def window(self) -> int | None:
        """How many of the latest chunks the next one attends to; None = all that memory holds.

        Where what leaves goes to long-term memory or is forgotten, chunks cut short by questions
        count by their units: see `Memory`.
        """
        raise NotImplementedError

    @property
    def anchor_rule(self) -> Literal["refresh", "reuse"] | None:
        """What happens to units with an I frame when the window slides; None = nothing special."""
        return None

    @property
    def deferred_units(self) -> int:
        """How many of the latest units wait, as visual tokens, for a question to prefill them."""
        return 0


class AllChunks(Ingest):
    policy: ClassVar[str] = "all"

    @property
    def window(self) -> int | None:
        return None


class RecentChunks(Ingest):
    """ViCoStream's bounded visual attention: the last `chunks` chunks (`attend_chunk_num` of its
    code)."""

    policy: ClassVar[str] = "recent-chunks"
    chunks: int = Field(ge=0, le=MOST)

    @property
    def window(self) -> int | None:
        return self.chunks


class SlidingWindow(RecentChunks):
    """StreamingVLM (arXiv 2510.09608): the last `chunks` chunks are all there is, at contiguous
    positions behind prompt and joined text.

    With `anchors` it is CodecFlow's window (arXiv 2604.06036), which slides before a chunk comes,
    so that the chunk is the last of `chunks`: what stays is reused at its new positions, and of
    units with an I frame keys and values are computed again in the new window's context
    ("refresh"), or reused like the others ("reuse").
    """

    policy: ClassVar[str] = "sliding-window"
    slides: ClassVar[bool] = True
    chunks: int = Field(ge=1, le=MOST)
    anchors: Literal["refresh", "reuse"] | None = None

    @property
    def anchor_rule(self) -> Literal["refresh", "reuse"] | None:
        return self.anchors


class LatestFrames(Ingest):
    """SimpleStream (arXiv 2604.02317): nothing is remembered but the latest `frames` frames,
    prefilled when a question comes."""

    policy: ClassVar[str] = "latest-frames"
    prefills: ClassVar[bool] = False
    frames: int = Field(gt=0, le=MOST, multiple_of=UNIT_FRAMES)

    @property
    def deferred_units(self) -> int:
        return self.frames // UNIT_FRAMES

    @property
    def window(self) -> int | None:
        return 0


INGESTS = Registry("ingest", AllChunks, RecentChunks, SlidingWindow, LatestFrames)
