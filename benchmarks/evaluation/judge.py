"""Judges of open answers. Scores of different judges cannot be compared, so reports name the
judge."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vicort.benchmarks.evaluation.items import Item
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

MAX_SCORE = 5  # the best score, as the papers' judges give


@dataclass(frozen=True)
class Verdict:
    yes: bool
    score: float  # 0 to MAX_SCORE


class Judge(Protocol):
    name: str

    def __call__(self, answers: Sequence[tuple[Item, str]]) -> list[Verdict]:
        """A verdict on each (item, predicted answer)."""
        ...


class ExactJudge:
    """Yes and MAX_SCORE for the same words, but for case, punctuation and articles; else no, 0."""

    name = "exact: the same words, but for case, punctuation and articles"

    def __call__(self, answers: Sequence[tuple[Item, str]]) -> list[Verdict]:
        return [
            Verdict(same, MAX_SCORE * same)
            for same in (_words(item.truth) == _words(text) for item, text in answers)
        ]


class CommandJudge:
    """The user's program: one JSON line {id, question, answer, prediction} in, one {"pred":
    "yes"|"no", "score": 0-5} out for each.

    Those are the keys that the papers' GPT judges answer with (Flash-VStream,
    eval_video/eval_activitynet_qa.py).
    """

    def __init__(self, command: str) -> None:
        """Raises ConfigError for a command line that is none."""
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise ConfigError(
                f"--judge command {command!r} is no command line ({error}): give one such as "
                "'python judge.py'"
            ) from error
        if not self._arguments:
            raise ConfigError("--judge command is empty: give one such as 'python judge.py'")
        self.name = f"command: {command}"

    def __call__(self, answers: Sequence[tuple[Item, str]]) -> list[Verdict]:
        """Raises ConfigError if the program fails, or says something else than verdicts."""
        asked = [
            {
                "id": item.id,
                "question": item.note.get("question", item.text),  # without a prompt around it
                "answer": item.truth,
                "prediction": text,
            }
            for item, text in answers
        ]
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in asked)
        try:
            done = subprocess.run(
                self._arguments,
                input=lines,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                check=False,
            )
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the judge {self._arguments[0]!r} does not run ({error}): give a command that does"
            ) from error
        if done.returncode:
            raise ConfigError(
                f"the judge {self._arguments[0]!r} failed with exit code {done.returncode}: fix "
                "it and run again"
            )
        said = done.stdout.splitlines()
        if len(said) != len(asked):
            raise ConfigError(
                f"the judge {self._arguments[0]!r} gave {len(said)} lines for {len(asked)} "
                "answers: give one for each"
            )
        return [_verdict(line, number) for number, line in enumerate(said, 1)]


def make_judge(words: Sequence[str]) -> Judge:
    """`exact`, or `command` and a command line. Raises ConfigError for anything else."""
    match list(words):
        case ["exact"]:
            return ExactJudge()
        case ["command", command]:
            return CommandJudge(command)
    raise ConfigError(
        f"--judge {' '.join(words)}: say `exact`, or `command` and a command line, such as "
        "--judge command 'python judge.py'"
    )


def _verdict(line: str, number: int) -> Verdict:
    try:
        content = json.loads(line)
        yes, score = content["pred"], content["score"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'the judge\'s line {number} is {shown(line)}: give {{"pred": "yes" or "no", '
            f'"score": 0 to {MAX_SCORE}}}'
        ) from error
    if (
        yes not in ("yes", "no")
        or isinstance(score, bool)
        or not isinstance(score, int | float)
        or not 0 <= score <= MAX_SCORE
    ):
        raise ConfigError(
            f'the judge\'s line {number} is {shown(line)}: give {{"pred": "yes" or "no", '
            f'"score": 0 to {MAX_SCORE}}}'
        )
    return Verdict(yes == "yes", score)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the")]
