"""Choices as a tree: its shape, and probabilities that are those of each choice alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.language.choice_tree import ChoiceTree, split

WORDS = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)
CHOICES = st.lists(WORDS, min_size=1, max_size=8, unique=True)
VOCABULARY, ENDS = 7, (5, 6)


def sight(tree):
    """For each node, the tokens that it sees, itself the last, by the rule of `until`."""
    return [
        tuple(int(tree.tokens[j]) for j in range(i + 1) if i < tree.until[j])
        for i in range(len(tree))
    ]


@given(CHOICES)
def test_each_node_sees_the_beginning_of_a_choice_and_nothing_else(choices):
    tree = ChoiceTree(choices)
    beginnings = {choice[:end] for choice in choices for end in range(1, len(choice) + 1)}
    seen = sight(tree)
    assert sorted(seen) == sorted(beginnings)  # each once: shared beginnings are shared
    assert [len(tokens) - 1 for tokens in seen] == tree.depths.tolist()


@given(st.integers(0, 1000), CHOICES)
def test_positions_go_on_from_the_first(first, choices):
    tree = ChoiceTree(choices)
    for place, tokens in zip(tree.positions(first), sight(tree), strict=True):
        assert place.tolist() == [first + len(tokens) - 1] * 3


def after(tokens):
    """Logits [V] of a made-up model after these tokens of the answer."""
    return np.random.default_rng(abs(hash(tokens)) % 2**32).normal(size=VOCABULARY) * 4


def chance(tokens, wanted):
    weights = [math.exp(logit) for logit in after(tokens)]
    return math.fsum(weights[each] for each in wanted) / math.fsum(weights)


@given(CHOICES)
def test_a_choice_is_as_probable_as_its_tokens_and_its_end(choices):
    tree = ChoiceTree(choices)
    logits = np.array([after(()), *(after(tokens) for tokens in sight(tree))], np.float32)
    scores = tree.scores(logits, ENDS)
    for choice, score in zip(choices, scores, strict=True):
        alone = math.prod(
            chance(choice[:number], [token]) for number, token in enumerate(choice)
        ) * chance(choice, ENDS)
        assert score.tokens == choice
        assert math.exp(score.log) == pytest.approx(alone, rel=1e-4)
        assert math.exp(score.end_log) == pytest.approx(chance(choice, ENDS), rel=1e-4)
    assert sum(math.exp(score.log) for score in scores) <= 1 + 1e-6


@given(CHOICES, st.integers(5, 12))
def test_choices_are_split_without_being_lost(choices, most):
    trees = split(choices, most)
    assert [choice for tree in trees for choice in tree.choices] == choices
    assert all(len(tree) <= most for tree in trees)
    if len(ChoiceTree(choices)) <= most:
        assert len(trees) == 1


def test_shared_beginnings_are_one_node():
    tree = ChoiceTree([(1, 2), (1, 3), (1,), (4,)])
    assert tree.tokens.tolist() == [1, 2, 3, 4]
    assert tree.until.tolist() == [3, 2, 3, 4]
    assert tree.depths.tolist() == [0, 1, 1, 0]


def test_scores_of_extreme_logits_are_finite():
    tree = ChoiceTree([(0,), (1,)])
    logits = np.full((3, VOCABULARY), -1e4, np.float32)
    logits[:, ENDS[0]] = 1e4
    assert [score.log for score in tree.scores(logits, ENDS)] == [-2e4, -2e4]


def test_a_model_without_end_tokens_ends_after_every_choice():
    tree = ChoiceTree([(0,), (1,)])
    logits = np.array([after(()), after((0,)), after((1,))], np.float32)
    for score, token in zip(tree.scores(logits, ()), (0, 1), strict=True):
        assert score.log == pytest.approx(math.log(chance((), [token])), rel=1e-4)
