"""The options of vicort-run that are about how answers are written."""

from __future__ import annotations

import argparse

from vicort.runtime.cli.answer_form import add_form_options
from vicort.runtime.core import Sampling
from vicort.runtime.language.token_choice import TokenChoice


def add_sampling_options(group: argparse._ArgumentGroup) -> None:
    default = Sampling()
    own = "(default: as the model's generation_config.json says)"
    group.add_argument(
        "--system-prompt",
        metavar="TEXT",
        help="system prompt (default: that of the model's chat template)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"sampling temperature; 0 is greedy decoding {own}",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help=f"sample from the smallest set of tokens with this total probability {own}",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help=f"sample from the K most likely tokens; 0 means all {own}",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="make tokens of the prompt, the question and the answer less likely; 1 changes "
        f"nothing {own}",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text; repeatable",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="random seed for sampling (default: %(default)s)",
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        default=default.max_tokens,
        help="maximum number of tokens in an answer (default: %(default)s)",
    )
    add_form_options(group)


def read_sampling(typed: argparse.Namespace) -> Sampling:
    """Raises ConfigError."""
    sampling = Sampling(
        temperature=typed.temperature,
        top_p=typed.top_p,
        top_k=typed.top_k,
        repetition_penalty=typed.repetition_penalty,
        stop=tuple(typed.stop),
        seed=typed.seed,
        max_tokens=typed.max_tokens,
    )
    TokenChoice(sampling)
    return sampling
