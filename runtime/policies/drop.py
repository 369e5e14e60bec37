"""Which visual tokens of a chunk go on to the language model."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from pydantic import Field, model_validator

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.registry import MOST, Policy, Registry

NEVER = -2.0  # below every cosine: no position is hot by threshold
ALWAYS = math.inf  # above every score: all positions are


class Drop(Policy):
    @property
    def pruning(self) -> MotionPruning | None:
        """The rule, where tokens are pruned before the vision encoder; else None."""
        return None

    def bounds(self, units: int, unit_tokens: int) -> tuple[float, int]:
        """Threshold and number of hot positions for the token control graph."""
        raise NotImplementedError

    def check(self, system: str, model: ModelSpec) -> None:
        """Raises ConfigError if the policy cannot be kept to with this model."""
        return None


class KeepAll(Drop):
    policy: ClassVar[str] = "none"

    def bounds(self, units: int, unit_tokens: int) -> tuple[float, int]:
        return ALWAYS, 0


class ChunkIntra(Drop):
    """ViCoStream's rule (arXiv 2606.19849 and its code): the first unit of a chunk is kept whole,
    later ones only at positions whose cosine to the unit before fell below `threshold` at least
    once in the chunk.

    With `keep` instead, the positions that changed most are kept, so many that this share of the
    chunk's tokens remains.
    """

    policy: ClassVar[str] = "chunk-intra"
    threshold: float | None = Field(None, ge=-1, le=1)
    keep: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.threshold is None) == (self.keep is None):
            raise ValueError("set either threshold or keep")
        return self

    def bounds(self, units: int, unit_tokens: int) -> tuple[float, int]:
        if self.threshold is not None:
            return self.threshold, 0
        if units == 1 or self.keep is None:
            return NEVER, 0
        hot = round((self.keep * units - 1) * unit_tokens / (units - 1))
        return NEVER, min(max(hot, 0), unit_tokens)


class MotionPruning(Drop):
    """CodecFlow's rule (arXiv 2604.06036): a token whose patches have not moved since the last I
    picture is never encoded at all.

    A patch is dynamic where M = V + alpha * R reaches `tau`; V: longest motion vector, in pixels of
    the engine's frame; R: how much it differs from the frame before, in grey levels (decoders keep
    the residual to themselves). Where a codec hands no vectors out it is dynamic where R reaches
    `difference`. A frame is whole at an I picture, and where none came for `refresh` seconds.
    """

    policy: ClassVar[str] = "motion"
    tau: float = Field(gt=0, le=MOST)
    alpha: float = Field(0, ge=0, le=MOST)
    difference: float = Field(gt=0, le=255)
    refresh: float = Field(gt=0, le=MOST)

    @property
    def pruning(self) -> MotionPruning:
        return self

    def bounds(self, units: int, unit_tokens: int) -> tuple[float, int]:
        return ALWAYS, 0


class FewTokens(Drop):
    """VideoLLM-online (arXiv 2406.11816): at most `a_frame` visual tokens a frame.

    The token control graph always keeps the first unit of a chunk whole, so nothing is dropped: it
    takes engines whose frames give no more.
    """

    policy: ClassVar[str] = "few-tokens"
    a_frame: int = Field(10, ge=1, le=MOST)

    def bounds(self, units: int, unit_tokens: int) -> tuple[float, int]:
        return ALWAYS, 0

    def check(self, system: str, model: ModelSpec) -> None:
        if model.unit_tokens > self.a_frame * UNIT_FRAMES:
            raise ConfigError(
                f"system {system} takes {self.a_frame} tokens a frame, these engines give "
                f"{model.unit_tokens / UNIT_FRAMES:g}: "
                "build with a smaller --image-size, such as 112x112, or set drop.a_frame in its "
                "YAML file"
            )


DROPS = Registry("drop", KeepAll, ChunkIntra, MotionPruning, FewTokens)
