"""From logits to tokens: greedy, and the shape of what sampling draws."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError
from vicort.runtime.language.token_choice import TokenChoice, best_tokens, log_probability

logits = arrays(np.float32, 12, elements=st.floats(-8, 8, width=32), unique=True)


@given(logits)
def test_the_default_is_greedy(values):
    assert TokenChoice(Sampling()).choose(values, ()) == int(np.argmax(values))


@given(logits, st.integers(1, 12))
def test_top_k_never_leaves_the_k_best(values, k):
    choice = TokenChoice(Sampling(temperature=2.0, top_k=k))
    best = set(np.argsort(-values)[:k].tolist())
    assert {choice.choose(values, ()) for _ in range(20)} <= best


@given(logits, st.floats(0.05, 0.95))
@example(
    np.array([0, 0.5, 0.25, 0.125, 6.7e-24, 3.9e-28, -1, -2, -3, -4, -1.5, -0.5], np.float32), 0.5
)
def test_top_p_draws_from_the_smallest_set_that_reaches_it(values, top_p):
    chances = np.exp(values.astype(np.float64) - values.max())
    chances /= chances.sum()
    order = np.argsort(-values, kind="stable")  # chances of unequal logits may round to equal ones
    nucleus, total = set(), 0.0
    for token in order:
        nucleus.add(int(token))
        total += chances[token]
        if total >= top_p:
            break
    choice = TokenChoice(Sampling(temperature=1.0, top_p=top_p))
    assert {choice.choose(values, ()) for _ in range(20)} <= nucleus


def test_sampling_follows_the_softmax():
    values = np.log(np.array([0.5, 0.3, 0.2]))
    choice = TokenChoice(Sampling(temperature=1.0))
    counts = np.bincount([choice.choose(values, ()) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.04


@given(logits, st.integers(0, 11), st.floats(-1000, 1000))
def test_a_probability_is_that_of_torch_wherever_the_logits_lie(values, token, shift):
    moved = (values + shift).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(moved.astype(np.float64)), 0)[token]
    assert log_probability(moved, token) == pytest.approx(float(expected), abs=1e-3)


def test_the_penalty_moves_an_answer_off_what_it_has_said():
    values = np.array([2.0, 1.9, -1.0])
    choice = TokenChoice(Sampling(repetition_penalty=1.5))
    assert choice.choose(values, []) == 0
    assert choice.choose(values, [0]) == 1


@given(logits, st.floats(0.5, 3), st.lists(st.integers(0, 11)), st.lists(st.integers(0, 11)))
def test_the_penalty_is_that_of_transformers_over_prompt_and_answer(
    values, penalty, context, answer
):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = torch.from_numpy(values.astype(np.float64))[None]
    ids = torch.tensor([[*context, *answer]], dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)[0]
    choice = TokenChoice(Sampling(repetition_penalty=penalty), context)
    assert choice.choose(values, answer) == int(expected.argmax())


@given(logits, st.floats(0.1, 3), st.integers(0, 12), st.floats(0.05, 1), st.floats(0.5, 2))
def test_what_may_be_drawn_is_what_transformers_leaves(values, temperature, k, p, penalty):
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(penalty),
            TemperatureLogitsWarper(temperature),
            *([TopKLogitsWarper(k)] if k else []),
            *([TopPLogitsWarper(p)] if p < 1 else []),
        ]
    )
    scores = torch.from_numpy(values.astype(np.float64))[None]
    left = warpers(torch.tensor([[3, 5]]), scores)[0]
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p, repetition_penalty=penalty)
    choice = TokenChoice(sampling, [3, 5])
    drawn = [choice.choose(values, ()) for _ in range(20)]
    penalised = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[3, 5]]), scores)[0]
    least = penalised[left > -torch.inf].min()  # equal logits stand for each other
    assert penalised[drawn].min() >= least


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=40), st.integers(1, 50))
def test_the_best_are_those_of_a_whole_sort_but_for_equal_ones(values, count):
    logits = np.array(values)
    best = best_tokens(logits, count)
    assert len(set(best.tolist())) == min(count, len(values))
    assert logits[best].tolist() == sorted(values, reverse=True)[:count]


def test_what_is_not_said_is_taken_from_the_defaults():
    defaults = Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    own = Sampling(top_k=0, max_tokens=9, stop=("x",))
    assert own.over(defaults) == Sampling(0.7, 0.8, 0, 1.05, max_tokens=9, stop=("x",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"repetition_penalty": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
    ],
)
def test_options_out_of_range_name_themselves(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        TokenChoice(Sampling(**wrong))


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ConfigError, match="a stop text is empty"):
        TokenChoice(Sampling(stop=("a", "")))


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: "hot"} for name in ("temperature", "top_p", "top_k", "repetition_penalty")),
        *({name: True} for name in ("temperature", "top_p", "top_k", "repetition_penalty")),
        {"top_k": 1.5},
        {"repetition_penalty": 1e-320},
        {"repetition_penalty": 1e308},
        {"stop": "abc"},
        {"stop": (1,)},
        {"temperature": float("nan")},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
    ids=str,
)
def test_what_is_no_such_number_is_one_line(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} ") as got:
        TokenChoice(Sampling(**wrong))
    assert str(got.value).isprintable()


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9])
def test_the_smallest_temperatures_take_the_best_token(temperature):
    logits = np.array([1.0, 3.0, 2.999, -1e30])
    with np.errstate(all="raise", under="ignore", over="raise"):
        chosen = TokenChoice(Sampling(temperature=temperature)).choose(logits, [])
    assert chosen == 1
