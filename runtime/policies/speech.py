"""When the model speaks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vicort.runtime.policies.policy import Policy

MAX_SPOKEN_TOKENS = 512
SilenceRule = Literal["published", "threshold"]


# embedded models that come with an adapter for it
SPEAKING_MODELS = ("tiny-live",)


class Speech(Policy):
    def doubt(self, system: str, build_command: str) -> str:
        """A warning if the model speaks by itself and its engines were built without an adapter
        that may have taught it to; "" = none. build_command: of the engine set's manifest."""
        words = build_command.split()
        if not self.by_itself or "--adapter" in words or {*words[1:2]} & {*SPEAKING_MODELS}:
            return ""
        return (
            f"system {system} lets the model speak by itself, and these engines were built without "
            "an adapter that teaches it: expect words at any time, unless the checkpoint was "
            f"trained so; `vicort-build {SPEAKING_MODELS[0]}` builds a model that was, or add "
            "--adapter DIR"
        )

    @property
    def by_itself(self) -> StreamingEos | None:
        """The rule by which the model speaks unasked; None where it answers only when asked."""
        return None


class WhenAsked(Speech):
    policy: Literal["when-asked"] = "when-asked"


class StreamingEos(Speech):
    """VideoLLM-online (arXiv 2406.11816): after each chunk the model is silent or speaks.

    Let P be the probability that the next token is `silence`. With the rule "published", that of
    the public code, P counts as 0 where it is below `threshold`; then the most probable token
    decides. So the model is silent where P >= threshold and no word is more probable. With the rule
    "threshold" it is silent where P >= threshold. From a threshold of 0.5 on both are the same.

    The silence token never enters the context. Spoken tokens and their end token do.
    """

    policy: Literal["streaming-eos"] = "streaming-eos"
    silence: str = Field(default="<|im_end|>", min_length=1, max_length=100)  # a token of the model
    rule: SilenceRule = "published"
    threshold: float = Field(default=0.725, gt=0, le=1)
    longest: int = Field(default=100, ge=1, le=MAX_SPOKEN_TOKENS)  # maximum tokens of one utterance

    def is_silent(self, silence: float, word: float) -> bool:
        """silence, word: probabilities of the silence token and of the most probable word."""
        if silence < self.threshold:
            return False
        return self.rule == "threshold" or silence >= word

    @property
    def by_itself(self) -> StreamingEos:
        return self


AnySpeech = Annotated[WhenAsked | StreamingEos, Field(discriminator="policy")]
