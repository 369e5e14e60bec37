"""Accuracy by the age of the event: a row for each question, and cells over rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from vicort.benchmarks.evaluation.items import Item, Reply, Video
from vicort.benchmarks.evaluation.rules import is_right
from vicort.benchmarks.evaluation.watching import Candidate, watch

Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Row:
    """One question to one system. Rows of one `key` are the same question, put to several
    systems."""

    system: str
    stream: int
    age: int  # units or chunks, as --ages; -1 = the question about now
    chunks: float  # the same in chunks of the engine set
    shape: str
    task: str  # "now", "64 units", …
    question: str
    truth: str
    answer: str
    right: bool
    ttft_ms: float
    tokens_read: int  # cached visual tokens that it could see
    pages: int  # vision pages that it could see
    at: float  # seconds
    seen_until: float | None  # seconds; None = it saw nothing
    # seconds, start of the oldest unit of which memory still held something
    memory_from: float | None
    error: str = ""

    @property
    def key(self) -> tuple[int, int, str]:
        return self.stream, self.age, self.shape


def rows_of(system: str, video: Video, candidate: Candidate) -> list[Row]:
    """A row for each question about the video. system: the label that rows carry. A system that
    fails with a VicortError has its open questions as rows with the error."""
    items = {item.id: item for item in video.items}
    return [row_of(system, items[each.item], each) for each in watch(video, candidate).replies]


def row_of(system: str, item: Item, reply: Reply) -> Row:
    return Row(
        system=system,
        **item.note,
        task=item.task,
        question=item.text,
        truth=item.truth,
        answer=reply.text,
        right=is_right(item, [reply]),
        ttft_ms=reply.ttft_ms,
        tokens_read=reply.tokens_read,
        pages=reply.pages,
        at=float(reply.at),
        seen_until=None if reply.seen_until is None else float(reply.seen_until),
        memory_from=None if reply.memory_from is None else float(reply.memory_from),
        error=reply.error,
    )


def by_age(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """By system and task: accuracy, asked, low and high (95 %, Wilson), and of what was answered
    ttft_ms (median), tokens_read and pages (mean)."""
    cells: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row.system][row.task].append(row)
    return {
        system: {task: _cell(each) for task, each in tasks.items()}
        for system, tasks in cells.items()
    }


def _cell(rows: Sequence[Row]) -> dict[str, Any]:
    right, asked = sum(row.right for row in rows), len(rows)
    low, high = wilson(right, asked)
    cell: dict[str, Any] = {
        "accuracy": round(right / asked, 4),
        "asked": asked,
        "low": round(low, 4),
        "high": round(high, 4),
    }
    if answered := [row for row in rows if not row.error]:
        cell |= {
            "ttft_ms": round(median(row.ttft_ms for row in answered), 3),
            "tokens_read": round(fmean(row.tokens_read for row in answered), 1),
            "pages": round(fmean(row.pages for row in answered), 1),
        }
    if errors := asked - len(answered):
        cell["errors"] = errors
    return cell


def wilson(right: int, asked: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, spread = right / asked, Z95**2 / asked
    middle = share + spread / 2
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
