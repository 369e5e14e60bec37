"""What a new chunk may attend to, besides the prompt and itself."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vicort.runtime.policies.policy import MAX_COUNT, Policy

AnchorRule = Literal["refresh", "reuse"]  # see `SlidingWindow`
# which chunks attend to the prompt: all; those that follow it so closely that it is one of the
# forwards they see, as the last `chunks` chunks are; the first one alone
PromptRule = Literal["always", "recent", "first"]


class Ingest(Policy):
    # False: chunks wait as visual tokens until a question prefills the latest of them
    prefills: ClassVar[bool] = True
    # True: chunks that leave the window are evicted, and the rest moves up to the prompt
    slides: ClassVar[bool] = False

    @property
    def window(self) -> int | None:
        """How many of the latest chunks the next one attends to; None: all that memory holds.

        Where chunks that leave the window are evicted or go to long-term memory, the window is
        counted in units, so that short chunks do not shrink it: see `RecentWindow`.
        """
        raise NotImplementedError

    def shows_prompt(self, chunk: int) -> bool:
        """Whether the stream's `chunk`-th chunk, counted from 0, attends to the prompt."""
        return True

    @property
    def anchor_rule(self) -> AnchorRule | None:
        """What happens to units with an I frame when the window slides; None: nothing special."""
        return None

    @property
    def deferred_units(self) -> int:
        """How many of the latest units wait, as visual tokens, for a question to prefill them."""
        return 0


class AllChunks(Ingest):
    policy: Literal["all"] = "all"

    @property
    def window(self) -> int | None:
        return None


class RecentChunks(Ingest):
    """ViCoStream's bounded visual attention: the last `chunks` chunks (`attend_chunk_num` of its
    code)."""

    policy: Literal["recent-chunks"] = "recent-chunks"
    chunks: int = Field(ge=0, le=MAX_COUNT)
    sees_prompt: PromptRule = "always"

    def shows_prompt(self, chunk: int) -> bool:
        return (
            self.sees_prompt == "always"
            or chunk == 0
            or (self.sees_prompt == "recent" and chunk < self.chunks)
        )

    @property
    def window(self) -> int | None:
        return self.chunks


class SlidingWindow(Ingest):
    """StreamingVLM (arXiv 2510.09608): memory holds only the last `chunks` chunks, at contiguous
    positions after the prompt and the joined text. The window slides before a chunk is prefilled,
    so that the chunk is the last of `chunks`, and a question reads the same window.

    With `anchors` it is CodecFlow's window (arXiv 2604.06036). The keys and values that stay are
    reused at their new positions. Those of units with an I frame are computed again in the context
    of the new window ("refresh") or reused like the others ("reuse").
    """

    policy: Literal["sliding-window"] = "sliding-window"
    slides: ClassVar[bool] = True
    chunks: int = Field(ge=1, le=MAX_COUNT)
    anchors: AnchorRule | None = None

    @property
    def window(self) -> int | None:
        return self.chunks

    @property
    def anchor_rule(self) -> AnchorRule | None:
        return self.anchors


class LatestUnits(Ingest):
    """SimpleStream (arXiv 2604.02317): only the latest `units` temporal units are kept, which are
    prefilled when a question is asked."""

    policy: Literal["latest-units"] = "latest-units"
    prefills: ClassVar[bool] = False
    units: int = Field(gt=0, le=MAX_COUNT)

    @property
    def window(self) -> int | None:
        return 0

    @property
    def deferred_units(self) -> int:
        return self.units


AnyIngest = Annotated[
    AllChunks | RecentChunks | SlidingWindow | LatestUnits, Field(discriminator="policy")
]
