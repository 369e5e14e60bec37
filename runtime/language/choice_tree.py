"""The tokens of an answer's choices as a tree, and the probability of each choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredChoice:
    """A choice as the model finds it, at temperature 1: natural logarithms of probabilities."""

    tokens: tuple[int, ...]
    token_logs: tuple[float, ...]  # of each token after those before it
    end_log: float  # of the answer's end after them

    @property
    def log(self) -> float:
        """Of the answer being this text and nothing more."""
        return math.fsum(self.token_logs) + self.end_log


class ChoiceTree:
    """The choices in depth-first order, with tokens that several begin with once, so that one run
    of the language engine sees each choice as if it were alone.

    tokens: [n] int32, of the nodes; depths: [n] int32, tokens before each node; until: [n] int32,
    the first node after those that continue a node.
    """

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        """choices: the tokens of each, at least one."""
        self.choices = tuple(tuple(choice) for choice in choices)
        tokens: list[int] = []
        depths: list[int] = []
        until: list[int] = []
        self._paths: list[list[int]] = [[] for _ in self.choices]  # the nodes of each choice

        def add(members: list[int], depth: int) -> None:
            """Add the nodes of choices that share their first `depth` tokens."""
            branches: dict[int, list[int]] = {}
            for number in members:
                if len(self.choices[number]) > depth:
                    branches.setdefault(self.choices[number][depth], []).append(number)
            for token, followers in branches.items():
                node = len(tokens)
                tokens.append(token)
                depths.append(depth)
                until.append(0)
                for number in followers:
                    self._paths[number].append(node)
                add(followers, depth + 1)
                until[node] = len(tokens)

        add(list(range(len(self.choices))), 0)
        self.tokens = np.asarray(tokens, np.int32)
        self.depths = np.asarray(depths, np.int32)
        self.until = np.asarray(until, np.int32)

    def __len__(self) -> int:
        return len(self.tokens)

    def positions(self, first: int) -> np.ndarray:
        """[n,3] int32 of the nodes, where the answer's first token has position `first`."""
        return np.repeat((first + self.depths)[:, None], 3, axis=1)

    def scores(self, logits: np.ndarray, end_tokens: Sequence[int]) -> list[ScoredChoice]:
        """The choices with their probabilities.

        logits: [n+1,V] float32, after the text before the answer and after each node; end_tokens:
        those that end an answer, whose probabilities are added; a model without any is taken to end
        after every choice.
        """
        totals = log_totals(logits)
        ends = np.zeros(len(logits))
        if end_tokens:
            ends = _log_sum(logits[:, list(end_tokens)]) - totals
        scored = []
        for tokens, path in zip(self.choices, self._paths, strict=True):
            before = [0, *(node + 1 for node in path)]  # rows of the logits
            logs = (
                float(logits[row, token]) - totals[row]
                for row, token in zip(before, tokens, strict=False)
            )
            scored.append(ScoredChoice(tokens, tuple(map(float, logs)), float(ends[before[-1]])))
        return scored


def split(choices: Sequence[Sequence[int]], most: int) -> list[ChoiceTree]:
    """Trees of at most `most` nodes that hold all choices in their order, each of which has at most
    `most` tokens."""
    trees, waiting = [], [list(choices)]
    while waiting:
        part = waiting.pop()
        tree = ChoiceTree(part)
        if len(tree) <= most:
            trees.append(tree)
        else:
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
    return trees


def log_totals(logits: np.ndarray) -> np.ndarray:
    """Of each row of logits [n,V] float32 the logarithm of the sum of their exponentials, [n]
    float64."""
    highest = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    return highest[:, 0].astype(np.float64) + np.log(sums)


def _log_sum(logs: np.ndarray) -> np.ndarray:
    """Of each row [n,m] the logarithm of the sum of the exponentials, [n] float64."""
    return np.logaddexp.reduce(logs.astype(np.float64), axis=1)
