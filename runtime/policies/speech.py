"""When the model speaks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vicort.runtime.policies.registry import Policy, Registry

LONGEST = 512  # tokens


class Speech(Policy):
    @property
    def by_itself(self) -> StreamingEos | None:
        """The rule by which the model speaks unasked; None where it answers only when asked."""
        return None


class WhenAsked(Speech):
    policy: ClassVar[str] = "when-asked"


class StreamingEos(Speech):
    """VideoLLM-online (arXiv 2406.11816): behind each chunk the next token decides, silence if this
    token has at least that probability.

    The token of a silence is never put into the context; words and their end are.
    """

    policy: ClassVar[str] = "streaming-eos"
    silence: str = Field("<|im_end|>", min_length=1, max_length=100)  # a token of the model
    threshold: float = Field(0.725, gt=0, le=1)
    longest: int = Field(32, ge=1, le=LONGEST)  # tokens of what is said at a time

    @property
    def by_itself(self) -> StreamingEos:
        return self


SPEECHES = Registry("speaks", WhenAsked, StreamingEos)
