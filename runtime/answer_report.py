"""What an answer says of its question, and of what it could see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vicort.runtime.answering import Snapshot
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.core import Answer, Page
from vicort.runtime.memory.lease import Lease


@dataclass(frozen=True)
class Reading:
    """What a question could see of the stream."""

    pages: tuple[Page, ...]  # of kind vision, in the order of the stream
    most_pages: int  # the maximum over layers and heads
    tokens: int  # the mean over layers and heads

    @classmethod
    def of(cls, lease: Lease) -> Reading:
        pages = tuple(page for page in lease.pages if page.kind == "vision")
        return cls(pages, len(pages), sum(page.tokens for page in pages))


def answer_to(
    asked: AskedQuestion, snapshot: Snapshot, reading: Reading, ttft: int, **own: Any
) -> Answer:
    """The event of an answer. ttft: nanoseconds; own: fields that only this answer knows."""
    question = asked.question
    return Answer(
        id=question.id,
        at=(snapshot.seen_until or Fraction(0)) if question.at is None else question.at,
        seen_until=snapshot.seen_until,
        question=question.text,
        ttft_ms=ttft / 1e6,
        read=time_ranges(reading.pages),
        pages=reading.most_pages,
        tokens_read=reading.tokens,
        memory_from=snapshot.memory_from,
        since=question.since,
        until=question.until,
        requested=asked.requested,
        **own,
    )


def unasked(asked: AskedQuestion, snapshot: Snapshot) -> Answer:
    """The answer to a question whose gate was closed: it read nothing."""
    waited = time.perf_counter_ns() - asked.since
    nothing = Reading((), 0, 0)
    return answer_to(asked, snapshot, nothing, waited, text="", tokens=0, empty=snapshot.closed)


def time_ranges(pages: Sequence[Page]) -> tuple[tuple[Fraction, Fraction], ...]:
    """The time ranges (start, end), in seconds, that pages cover; neighbouring units are merged.

    pages: in the order of the stream.
    """
    ranges: list[tuple[Fraction, Fraction]] = []
    before = None
    for page in pages:
        if before is not None and page.unit - before.unit <= 1:
            ranges[-1] = (ranges[-1][0], page.end)
        else:
            ranges.append((page.start, page.end))
        before = page
    return tuple(ranges)
