"""The probabilities of choices through real engines, against transformers' own passes over the
prompt, the video, the question and each choice."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reference_model import Conversation, load_reference
from support.sizes import slow

from vicort.runtime.core import Constraint, Frame, Question
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

CHECKPOINT = Path(__file__).parents[1] / "export" / "tiny" / "checkpoint"
TIMES = [Fraction(t, 2) for t in (0, 1, 2, 3, 9, 10, 40, 41)]
# of one token, of several, with a common beginning, and beginnings of others
ASKED = {
    "what color was the circle?": ("red", "green", "red circle", "red circle and blue star"),
    "was there a star?": ("no", "yes", "none"),
    "which came last?": ("nothing", "white ring", "white star", "white", "purple star"),
}


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(3).integers(0, 256, (len(TIMES), 112, 112, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(video, build_tiny):
    """By question: the log probability of each choice with its end, those of its first tokens,
    and its number of tokens."""
    torch.set_num_threads(1)
    reference = load_reference(CHECKPOINT)
    engines = EngineSet.open(build_tiny("openvino"))
    with Session(engines, load_system("full-history")) as session:
        prompt, model = session.inspect().prompt, engines.manifest.model
    ends = list(model.eos_tokens)
    temporal = [int(at * Fraction(model.tokens_per_second)) for at in TIMES[::2]]
    found = {}
    for text, choices in ASKED.items():
        talk = Conversation(prompt.prefix, torch.from_numpy(video), temporal, prompt.question(text))
        after = functools.cache(
            lambda tokens, talk=talk: torch.log_softmax(
                talk.reference_logits(reference, list(tokens)).double(), -1
            )
        )
        found[text] = {
            choice: alone(after, tuple(prompt.words(choice)), ends) for choice in choices
        }
    engines.close()
    return found


def alone(after, tokens, ends):
    """-> (log probability of the choice and its end, [log probability of each token]). after: the
    log probabilities [V] of the token after some."""
    logs = [float(after(tokens[:number])[token]) for number, token in enumerate(tokens)]
    return sum(logs) + float(torch.logsumexp(after(tokens)[ends], 0)), logs


def asked_in(session, video, conversation=None):
    """All questions at one moment, at the end."""
    for index, (image, at) in enumerate(zip(video, TIMES, strict=True)):
        session.push(Frame(image, at, index))
    session.finish()
    futures = {
        text: session.submit(
            Question(text, constraint=Constraint(choices=choices), conversation=conversation)
        )
        for text, choices in ASKED.items()
    }
    return {text: future.result() for text, future in futures.items()}


def check(answers, expected):
    for text, answer in answers.items():
        logs = {choice: log for choice, (log, _) in expected[text].items()}
        total = math.fsum(map(math.exp, logs.values()))
        assert list(answer.choices) == list(ASKED[text])
        assert sum(answer.choices.values()) == pytest.approx(1)
        for choice, log in logs.items():
            assert answer.choices[choice] == pytest.approx(
                math.exp(log) / total, rel=2e-3, abs=1e-9
            )
        assert answer.outside == pytest.approx(1 - total, abs=2e-4)
        best = max(logs, key=logs.get)
        assert answer.text == best
        _, first = expected[text][best]
        assert answer.first_probability == pytest.approx(math.exp(first[0]), rel=2e-3)
        assert answer.probability == pytest.approx(math.exp(sum(first) / len(first)), rel=2e-3)
        assert answer.tokens == len(first)
        assert answer.complete


@pytest.mark.parametrize("backend", ["openvino", *slow("onnxruntime")])
def test_choices_have_transformers_probabilities(build_tiny, video, expected, backend):
    with (
        EngineSet.open(build_tiny(backend)) as engines,
        Session(engines, load_system("full-history"), fps="source") as session,
    ):
        check(asked_in(session, video), expected)


def test_so_have_questions_that_are_run_alone(build_tiny, video, expected):
    """Each in a conversation of its own: of these no batch is made."""
    with EngineSet.open(build_tiny("openvino")) as engines:
        for text in ASKED:
            with Session(engines, load_system("full-history"), fps="source") as session:
                for index, (image, at) in enumerate(zip(video, TIMES, strict=True)):
                    session.push(Frame(image, at, index))
                session.finish()
                answer = session.ask(
                    text, constraint=Constraint(choices=ASKED[text]), conversation="a"
                )
                check({text: answer}, expected)
