"""VideoLLM-online's metrics of a model that speaks by itself: TimeDiff, Fluency, LM-correctness and
LM-PPL, as its public code computes them (showlab/videollm-online, `stream_evaluate` in
models/modeling_live.py).

A *turn* is a stretch of a stream with one true text, which is due after the turn's last unit. Each
turn is measured with the true stream before it, so an error in one turn does not disturb the next.
Units after the last text are in no turn.

Where tiny-live's stream differs from the public code's: a decision follows a unit of two frames,
not a frame; the first word is itself what ends silence, where theirs is the role ("Assistant:"),
whose tokens count among those of the text there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SpokenTurn:
    # [V] bool, V > 0: the model's decisions in the turn, of which the last alone should be False
    silent: np.ndarray
    # [A] bool: its decisions after the units that follow, in a stream without this turn's text
    later: np.ndarray
    # of the text's tokens, its end included, each after the true ones before it. The first is
    # chosen among words, since silence was already decided on.
    correct: np.ndarray  # [T] bool, T > 0: the most probable token is the true one
    log_probability: np.ndarray  # [T] of the true token

    @property
    def difference(self) -> int:
        """Units from the first decision to speak to the right one: positive = too early, negative =
        too late. A turn after which nothing was tried counts as right, however silent it was."""
        if not self.silent.all():
            return len(self.silent) - 1 - int(np.argmin(self.silent))
        if not self.later.all():
            return -1 - int(np.argmin(self.later))
        return -len(self.later)

    @property
    def was_not_judged(self) -> bool:
        """It stayed silent and counts as right, because nothing later was tried."""
        return bool(self.silent.all()) and not len(self.later)

    @property
    def correct_tokens(self) -> int:
        """Tokens before the first wrong one."""
        return len(self.correct) if self.correct.all() else int(np.argmin(self.correct))

    @property
    def fluency(self) -> float:
        """Share of the turn's decisions and tokens before the first wrong one.

        Speaking d units too early costs d decisions and all tokens: the public code counts the
        wrong decision itself as right. Speaking too late costs one decision, however late, and all
        tokens.
        """
        decisions, tokens = len(self.silent), len(self.correct)
        early = self.difference
        right = decisions - early if early > 0 else decisions - 1
        if early == 0:
            right = decisions + self.correct_tokens
        return right / (decisions + tokens)

    @property
    def correctness(self) -> float:
        """Share of the text's tokens before the first wrong one."""
        return self.correct_tokens / len(self.correct)

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.log_probability.mean()))


def units_tried_later(units: int, next_units: int) -> int:
    """How many units after a silent turn are tried: as many as it had before its last one, at most
    those of the next turn. units, next_units: of the turn and of the next one (0 = none)."""
    return min(next_units, units - 1)


@dataclass
class TurnScore:
    """Means over the turns of each stream, then over streams, as in the public code."""

    turns: int = 0
    early: int = 0  # turns
    late: int = 0
    unjudged: int = 0
    streams: list[tuple[float, float, float, float]] = field(default_factory=list)

    def add(self, turns: Sequence[SpokenTurn], unit_seconds: float) -> None:
        """The turns of one stream; one without any does not count."""
        if not turns:
            return
        self.turns += len(turns)
        self.early += sum(turn.difference > 0 for turn in turns)
        self.late += sum(turn.difference < 0 for turn in turns)
        self.unjudged += sum(turn.was_not_judged for turn in turns)
        each = [
            (abs(turn.difference) * unit_seconds, turn.fluency, turn.correctness, turn.perplexity)
            for turn in turns
        ]
        time_diff, fluency, correctness, perplexity = np.mean(each, axis=0).tolist()
        self.streams.append((time_diff, fluency, correctness, perplexity))

    def __iadd__(self, other: TurnScore) -> TurnScore:
        self.turns += other.turns
        self.early += other.early
        self.late += other.late
        self.unjudged += other.unjudged
        self.streams += other.streams
        return self

    def report(self) -> dict[str, object]:
        """Without any turn, the means are None."""
        names = ("time_diff_s", "fluency", "lm_correctness", "lm_ppl")
        means = np.mean(self.streams, axis=0).tolist() if self.streams else [None] * len(names)
        return {
            "streams": len(self.streams),
            "turns": self.turns,
            "too_early": self.early,
            "too_late": self.late,
            "silent_and_counted_as_right": self.unjudged,
            **{name: mean and round(mean, 4) for name, mean in zip(names, means, strict=True)},
        }
