"""Whether a reply is right, as each benchmark decides it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from vicort.benchmarks.evaluation.items import Item, Reply

JUDGED = "judge"  # the rule of open answers: decided by a judge, not here
POLLED = "first-yes"
LATENESS = 2  # seconds that a proactive answer may be off (StreamingBench, src/data/count.py)

Rule = Callable[[str, Sequence[Reply]], bool]


def first_letter(truth: str, replies: Sequence[Reply]) -> bool:
    """StreamingBench's src/data/count.py compares the first character. It leaves empty replies out;
    here they are wrong (ours)."""
    return replies[-1].text.strip()[:1] == truth


def letter_within(truth: str, replies: Sequence[Reply]) -> bool:
    """OVO-Bench's utils/OVOBenchScore.py: the letter is somewhere in the reply, in upper case."""
    return truth in replies[-1].text


def same_digits(truth: str, replies: Sequence[Reply]) -> bool:
    """OVO-Bench, REC: all digits of the reply, put together, are the count."""
    return "".join(re.findall(r"\d+", replies[-1].text)) == truth


def yes_or_no(truth: str, replies: Sequence[Reply]) -> bool:
    """OVO-Bench, SSR and CRR. truth: Yes or No, which is somewhere in the reply as it is written,
    or whose first letter is the reply."""
    text = replies[-1].text
    return truth in text or text == truth[0]


def first_yes(truth: str, replies: Sequence[Reply]) -> bool:
    """StreamingBench, proactive output. truth: the second at which to speak, which the first yes
    may miss by LATENESS."""
    said = next((reply.at for reply in replies if says_yes(reply)), None)
    return said is not None and abs(said - Fraction(truth)) <= LATENESS


def same_text(truth: str, replies: Sequence[Reply]) -> bool:
    return replies[-1].text == truth


RULES: dict[str, Rule] = {
    "first-letter": first_letter,
    "letter-within": letter_within,
    "digits": same_digits,
    "yes-or-no": yes_or_no,
    POLLED: first_yes,
    "same-text": same_text,
}


def is_right(item: Item, replies: Sequence[Reply]) -> bool:
    """Of an item that needs no judge. It is wrong without a reply, or if the last reply is an
    error."""
    return bool(replies) and not replies[-1].error and RULES[item.rule](item.truth, replies)


def is_settled(item: Item, replies: Sequence[Reply]) -> bool:
    """Whether an item need not be asked again at its later times."""
    return item.rule == POLLED and any(says_yes(reply) for reply in replies)


def says_yes(reply: Reply) -> bool:
    """As StreamingBench's src/benchmark/StreamingBenchProactive.py reads a poll."""
    return "yes" in reply.text.strip().lower()
