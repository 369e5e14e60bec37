"""Answers with choices and what would have been right, as JSON lines of the user.

A line is an object with `choices` (text: probability) and `truth`, such as an `answer` event of
vicort-run to which `truth` was added. `split` says whether the temperature is fitted on it ("fit")
or not ("report"), `stream` which lines are of one stream, `kind` what kind of question it is.
Lines of other events are skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.calibration_result import FIT
from vicort.benchmarks.evaluation.items import at_temperature_1
from vicort.benchmarks.evaluation.rated_choices import RatedChoices, logarithms_of
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import brief, is_real, lines_of, printable, read_text, shown

MAX_BYTES = 1 << 30
REPORT = "report"
SPLITS = (FIT, REPORT)
ROUNDING = 0.01  # by which a sum of probabilities may differ from 1
LEAST_WRITTEN = 5e-7  # what an answer event rounds to 0


def read_answers(paths: Sequence[Path], temperature: float = 1.0) -> dict[str, list[RatedChoices]]:
    """The answers of each split. Where no line has a split, streams take turns, fitted on first, in
    the order in which they come.

    temperature: at which the probabilities were given. Raises ConfigError for a line that is no
    such answer, and for files without any.
    """
    found: list[tuple[str | None, RatedChoices]] = []
    for path in paths:
        for number, content in _objects(path):
            try:
                found.append(_answer(content, f"{path.name}:{number}", temperature))
            except ValueError as error:
                raise ConfigError(f"{printable(str(path))}, line {number}: {error}") from error
    if not found:
        names = ", ".join(printable(str(path)) for path in paths)
        raise ConfigError(f"{names}: no line has `choices`: ask with --choices and --format jsonl")
    splits = {split for split, _ in found}
    if None in splits and len(splits) > 1:
        raise ConfigError("some answers have a `split` and others none: give all of them one")
    if None in splits:
        return _by_turns([each for _, each in found])
    return {split: [each for own, each in found if own == split] for split in SPLITS}


def _by_turns(answers: Sequence[RatedChoices]) -> dict[str, list[RatedChoices]]:
    turn = {group: at % 2 for at, group in enumerate(dict.fromkeys(a.group for a in answers))}
    return {
        split: [each for each in answers if turn[each.group] == at]
        for at, split in enumerate(SPLITS)
    }


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line that may be an answer, with its number from 1 on."""
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{printable(str(path))} cannot be read ({brief(error)}): give JSON lines in UTF-8"
        ) from error
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{printable(str(path))}, line {number} is no JSON: give one object a line"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(
                f"{printable(str(path))}, line {number} is no object: give `choices` and `truth`"
            )
        if content.get("event", "answer") == "answer":
            yield number, content


def _answer(
    content: dict[str, Any], place: str, temperature: float
) -> tuple[str | None, RatedChoices]:
    """Its split, and the answer. place: its stream where it names none. Raises ValueError."""
    choices, truth = content.get("choices"), content.get("truth")
    if not isinstance(choices, dict) or len(choices) < 2:
        raise ValueError("it has no `choices` with the probability of each of two texts or more")
    for text, probability in choices.items():
        if not is_real(probability) or not 0 <= probability <= 1:
            raise ValueError(f"the probability of {shown(text)} is {shown(probability)}: 0 to 1")
    total = math.fsum(choices.values())
    if abs(total - 1) > ROUNDING:
        raise ValueError(f"its probabilities sum to {total:.4g}: they must sum to 1")
    if not isinstance(truth, str) or truth not in choices:
        raise ValueError(f"`truth` is {shown(truth)}: give one of {shown(list(choices))}")
    split = content.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f"`split` is {shown(split)}: give {' or '.join(SPLITS)}")
    known = {text: max(float(each), LEAST_WRITTEN) for text, each in choices.items()}
    answer = RatedChoices(
        kind=str(content.get("kind", "all")),
        group=str(content.get("stream", place)),
        logarithms=logarithms_of(at_temperature_1(known, temperature)),
        right=list(choices).index(truth),
        outside=_share(content.get("outside")),
    )
    return split, answer


def _share(value: Any) -> float | None:
    """A probability; None for anything else."""
    return float(value) if is_real(value) and 0 <= value <= 1 else None
