"""Whether a reply is right, as each benchmark decides it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from vicort.benchmarks.evaluation import event_rules
from vicort.benchmarks.evaluation.items import Item, Reply

JUDGED = "judge"  # the rule of open answers: decided by a judge, not here
POLLED = "first-yes"
LATENESS = 2  # seconds that a proactive answer may be off (StreamingBench, src/data/count.py)

# from the right answer and an item's replies to its credit, 0 to 1
Rule = Callable[[str, Sequence[Reply]], float]


def first_letter(truth: str, replies: Sequence[Reply]) -> bool:
    """StreamingBench's src/data/count.py compares the first character. It leaves empty replies out;
    here they are wrong (ours)."""
    return replies[-1].text.strip()[:1] == truth


def first_of_letters(truth: str, replies: Sequence[Reply]) -> bool:
    """ViCoStream's eval/scripts/incremental_streamingbench.py (as TimeChat-Online): the first A, B,
    C or D in upper case, wherever it stands, once "Best answer:" and "Best option:" are removed. Of
    the other phrases that are removed there none has such a letter."""
    text = re.sub("Best (?:answer|option):", "", replies[-1].text)
    found = re.search("[ABCD]", text)
    return found is not None and found[0] == truth


def first_of_letters_after_answer(truth: str, replies: Sequence[Reply]) -> bool:
    """Video-MME's eval_your_results.py: the first A, B, C or D in upper case, once "Answer:" is
    removed, so that the B of "Best answer:" counts. (Two phrases that are joined there by a missing
    comma are removed in no reply.)"""
    found = re.search("[ABCD]", replies[-1].text.replace("Answer:", ""))
    return found is not None and found[0] == truth


def letter_word(truth: str, replies: Sequence[Reply]) -> bool:
    """SimpleStream's lib/recent_window_eval.py: the first A to D, in either case, that is a word of
    its own; without one, the first 1 to 4. So the article "a" counts as A, and E is never said."""
    text = replies[-1].text.upper()
    letter, digit = re.search(r"\b[A-D]\b", text), re.search(r"\b[1-4]\b", text)
    if letter:
        return letter[0] == truth
    return digit is not None and "ABCD"[int(digit[0]) - 1] == truth


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


def yes_or_no_any_case(truth: str, replies: Sequence[Reply]) -> bool:
    """SimpleStream, SSR and CRR: as `yes_or_no`, in either case."""
    text = replies[-1].text.strip().upper()
    return truth.upper() in text or text == truth[0].upper()


def first_yes(truth: str, replies: Sequence[Reply]) -> bool:
    """StreamingBench, proactive output. truth: the second at which to speak, which the first yes
    may miss by LATENESS."""
    said = next((reply.at for reply in replies if says_yes(reply)), None)
    return said is not None and abs(said - Fraction(truth)) <= LATENESS


def same_text(truth: str, replies: Sequence[Reply]) -> bool:
    return replies[-1].text == truth


RULES: dict[str, Rule] = {
    "first-letter": first_letter,
    "first-of-letters": first_of_letters,
    "first-of-letters-after-answer": first_of_letters_after_answer,
    "letter-word": letter_word,
    "letter-within": letter_within,
    "digits": same_digits,
    "yes-or-no": yes_or_no,
    "yes-or-no-any-case": yes_or_no_any_case,
    POLLED: first_yes,
    "same-text": same_text,
    "first-span": event_rules.first_span,
    "first-span-of-any": event_rules.first_span_of_any,
    "all-spans": event_rules.all_spans,
    "seconds-in-common": event_rules.seconds_in_common,
    "moment-within": event_rules.moment_within,
}


def credit_of(item: Item, replies: Sequence[Reply], rule: str | None = None) -> float:
    """Of an item that needs no judge, 0 to 1. It is 0 without a reply, or if the last reply is an
    error. rule: a key of RULES, None = the item's."""
    if not replies or replies[-1].error:
        return 0.0
    return float(RULES[rule or item.rule](item.truth, replies))


def is_right(item: Item, replies: Sequence[Reply]) -> bool:
    """Whether an item that needs no judge has its full credit."""
    return credit_of(item, replies) == 1


def is_settled(item: Item, replies: Sequence[Reply]) -> bool:
    """Whether an item need not be asked again at its later times."""
    return item.rule == POLLED and any(says_yes(reply) for reply in replies)


def says_yes(reply: Reply) -> bool:
    """As StreamingBench's src/benchmark/StreamingBenchProactive.py reads a poll."""
    return "yes" in reply.text.strip().lower()
