"""Which visual tokens of a chunk go on to the language model."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.policy import MAX_COUNT, Policy

BELOW_EVERY_COSINE = -2.0  # a threshold that makes no position hot
ABOVE_EVERY_SCORE = math.inf  # a threshold that makes every position hot


class DropRule(NamedTuple):
    """Inputs of the token control graph for one chunk.

    With `from_before`, tokens above the threshold are dropped. Otherwise the score of a position is
    its lowest cosine between one unit and the next. The first unit of a chunk is kept whole, the
    later ones at hot positions: those with a score below the threshold, and the `hot_positions`
    positions with the lowest scores.
    """

    threshold: float
    hot_positions: int  # of the `unit_tokens` positions of a unit


KEEP_ALL_TOKENS = DropRule(ABOVE_EVERY_SCORE, 0)


class Drop(Policy):
    drops: ClassVar[bool] = True  # whether any token is dropped

    @property
    def pruning(self) -> MotionPruning | None:
        """The rule, where tokens are pruned before the vision encoder; else None."""
        return None

    @property
    def from_before(self) -> bool:
        """Whether each unit is compared with the one before it, also with that of an earlier chunk,
        and not within its chunk alone."""
        return False

    def shows_changes(self, units: int) -> bool:
        """Whether the share that is kept of a chunk of `units` units grows with what changes in
        it."""
        return self.drops

    def rule(self, units: int, unit_tokens: int) -> DropRule:
        """What the token control graph drops from a chunk of `units` units of `unit_tokens`
        tokens."""
        return KEEP_ALL_TOKENS

    def check(self, system: str, model: ModelSpec) -> None:
        """Raises ConfigError if the policy cannot work with this model."""
        return None


class KeepAll(Drop):
    policy: Literal["none"] = "none"
    drops: ClassVar[bool] = False


class ChunkIntra(Drop):
    """ViCoStream's rule (arXiv 2606.19849 and its code): the first unit of a chunk is kept whole,
    later ones only at positions whose cosine to the unit before fell below `threshold` at least
    once in the chunk.

    With `keep` instead, the positions that changed most are kept: the share `keep` of the chunk's
    tokens, the first unit included.
    """

    policy: Literal["chunk-intra"] = "chunk-intra"
    threshold: float | None = Field(default=None, ge=-1, le=1)
    keep: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.threshold is None) == (self.keep is None):
            raise ValueError("set either threshold or keep")
        return self

    def shows_changes(self, units: int) -> bool:
        """`keep` is the same share of every chunk, and a single unit is kept whole."""
        return self.threshold is not None and units > 1

    def rule(self, units: int, unit_tokens: int) -> DropRule:
        if self.threshold is not None:
            return DropRule(self.threshold, 0)
        if units == 1 or self.keep is None:
            return DropRule(BELOW_EVERY_COSINE, 0)
        hot = round((self.keep * units - 1) * unit_tokens / (units - 1))
        return DropRule(BELOW_EVERY_COSINE, min(max(hot, 0), unit_tokens))


class Differential(Drop):
    """Differential Token Drop of TimeChat-Online (arXiv 2504.17343 and its code): a token is
    dropped if its cosine to the token at the same position of the unit before is above `threshold`.

    The unit before is the one that came before, whatever was kept of it, also across chunks. The
    first unit, and the first of another grid, is kept whole.
    """

    policy: Literal["differential"] = "differential"
    threshold: float = Field(ge=-1, le=1)

    @property
    def from_before(self) -> bool:
        return True

    def rule(self, units: int, unit_tokens: int) -> DropRule:
        return DropRule(self.threshold, 0)


class MotionPruning(Drop):
    """CodecFlow's rule (arXiv 2604.06036): a token whose patches have not moved since the last I
    frame is never encoded at all.

    A patch is dynamic where M = V + alpha * R reaches `tau`. V is its longest motion vector, in
    pixels of the engine's frame. R is its mean difference from the frame before, in grey levels,
    because decoders do not expose the residual. Where a codec gives no vectors, a patch is dynamic
    where R reaches `difference`. A frame is encoded whole at an I frame, and after `refresh`
    seconds without one.
    """

    policy: Literal["motion"] = "motion"
    tau: float = Field(gt=0, le=MAX_COUNT)
    alpha: float = Field(default=0, ge=0, le=MAX_COUNT)
    difference: float = Field(gt=0, le=255)
    refresh: float = Field(gt=0, le=MAX_COUNT)

    @property
    def pruning(self) -> MotionPruning:
        return self


class FewTokens(Drop):
    """VideoLLM-online (arXiv 2406.11816): at most `a_frame` visual tokens per frame.

    The token control graph always keeps the first unit of a chunk whole, so this policy drops
    nothing. It requires engines whose frames have at most `a_frame` tokens.
    """

    policy: Literal["few-tokens"] = "few-tokens"
    drops: ClassVar[bool] = False
    a_frame: int = Field(default=10, ge=1, le=MAX_COUNT)

    def check(self, system: str, model: ModelSpec) -> None:
        if model.unit_tokens > self.a_frame * UNIT_FRAMES:
            raise ConfigError(
                f"system {system} takes {self.a_frame} tokens a frame, these engines give "
                f"{'' if model.fixed_size else 'up to '}{model.unit_tokens / UNIT_FRAMES:g}: "
                "build with a smaller --image-size, such as 112x112, or a smaller --max-pixels, or "
                "set drop.a_frame in its YAML file"
            )


AnyDrop = Annotated[
    KeepAll | ChunkIntra | Differential | MotionPruning | FewTokens, Field(discriminator="policy")
]
