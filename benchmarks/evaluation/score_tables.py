"""From replies to the papers' tables: a row for each system, a column for each task, averages as
each benchmark defines them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vicort.benchmarks.evaluation.ages import wilson
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Reply
from vicort.benchmarks.evaluation.judge import Judge, Verdict
from vicort.benchmarks.evaluation.rules import JUDGED, is_right

AVERAGE, OVERALL = "Avg", "overall"


@dataclass(frozen=True)
class Scored:
    """An item, and what came of it."""

    item: Item
    right: bool
    score: float | None = None  # of a judge


@dataclass(frozen=True)
class Cell:
    accuracy: float  # share of 1
    asked: int
    score: float | None = None  # mean of a judge's
    # 95 % interval of the accuracy (Wilson); None = a mean of tasks
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        values = {
            "accuracy": self.accuracy,
            "asked": self.asked,
            "low": low,
            "high": high,
            "score": self.score,
        }
        return {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in values.items()
            if value is not None
        }


Table = dict[str, dict[str, Cell]]  # of one system: by the group's title, by heading


def score_all(items: Mapping[str, Item], replies: Iterable[Reply], judge: Judge) -> list[Scored]:
    """Every item, scored. One without a reply, or whose reply is an error, is wrong without a
    judge."""
    of_item: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        of_item[reply.item].append(reply)
    judged = [
        item
        for item in items.values()
        if item.rule == JUDGED and of_item[item.id] and not of_item[item.id][-1].error
    ]
    verdicts = judge([(item, of_item[item.id][-1].text) for item in judged]) if judged else []
    by_id = {item.id: verdict for item, verdict in zip(judged, verdicts, strict=True)}
    return [_scored(item, of_item[item.id], by_id) for item in items.values()]


def _scored(item: Item, replies: Sequence[Reply], verdicts: Mapping[str, Verdict]) -> Scored:
    if item.rule != JUDGED:
        return Scored(item, is_right(item, replies))
    verdict = verdicts.get(item.id, Verdict(False, 0))
    return Scored(item, verdict.yes, verdict.score)


def make_table(dataset: Dataset, scored: Sequence[Scored]) -> Table:
    """Only tasks with questions have a column; tasks of no group are in a group "other"."""
    known = {task for group in dataset.groups for task in group.tasks}
    others = {each.item.task: each.item.task for each in scored if each.item.task not in known}
    table: Table = {}
    for group in [*dataset.groups, Group("other", others)]:
        cells: dict[str, Cell] = {}
        mine = [each for each in scored if each.item.task in group.tasks]
        for heading in dict.fromkeys(group.tasks.values()):
            if of_task := [each for each in mine if group.tasks[each.item.task] == heading]:
                cells[heading] = _cell(of_task)
        if cells and group.mean:
            cells[AVERAGE] = mean_of(list(cells.values())) if group.mean == "tasks" else _cell(mine)
        if cells:
            table[group.title] = cells
    if dataset.overall == "questions" and len(table) > 1:
        table[OVERALL] = {AVERAGE: _cell(scored)}
    # a mean of fewer is no figure of the benchmark's
    if dataset.overall == "groups" and len(table) == len(dataset.groups):
        table[OVERALL] = {AVERAGE: mean_of([cells[AVERAGE] for cells in table.values()])}
    return table


def mean_of(cells: Sequence[Cell]) -> Cell:
    """Each counts the same, however many questions it holds."""
    return Cell(fmean(cell.accuracy for cell in cells), sum(cell.asked for cell in cells))


def _cell(scored: Sequence[Scored]) -> Cell:
    scores = [each.score for each in scored if each.score is not None]
    return Cell(
        fmean(each.right for each in scored),
        len(scored),
        fmean(scores) if scores else None,
        wilson(sum(each.right for each in scored), len(scored)),
    )


def print_table(tables: Mapping[str, Table], intervals: bool = False) -> str:
    """The tables of all systems, a block a group; percent, and a judge's mean score after a slash.

    intervals: a line with the 95 % intervals below each system."""
    blocks = []
    width = max(map(len, tables), default=0)
    for title in dict.fromkeys(title for table in tables.values() for title in table):
        headings = list(
            dict.fromkeys(heading for table in tables.values() for heading in table.get(title, {}))
        )
        headings.sort(key=lambda heading: heading == AVERAGE)
        least = 10 if _judged(tables, title) else 11 if intervals else 6
        widths = [max(len(heading), least) for heading in headings]
        asked = _row(
            "", ["n=" + str(_most(tables, title, heading)) for heading in headings], widths, width
        )
        lines = [title, _row("system", headings, widths, width), asked]
        for name, table in tables.items():
            cells = [table.get(title, {}).get(each) for each in headings]
            lines.append(_row(name, [_shown(cell) for cell in cells], widths, width))
            if intervals:
                lines.append(_row("  95 %", [_interval(cell) for cell in cells], widths, width))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _row(name: str, values: Sequence[str], widths: Sequence[int], first: int) -> str:
    return f"{name:<{max(first, 6)}}" + "".join(
        f"  {value:>{width}}" for value, width in zip(values, widths, strict=True)
    )


def _judged(tables: Mapping[str, Table], title: str) -> bool:
    return any(
        cell.score is not None
        for table in tables.values()
        for cell in table.get(title, {}).values()
    )


def _most(tables: Mapping[str, Table], title: str, heading: str) -> int:
    return max(
        table[title][heading].asked for table in tables.values() if heading in table.get(title, {})
    )


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{100 * cell.accuracy:.2f}" + (f" / {cell.score:.2f}" if cell.score is not None else "")


def _interval(cell: Cell | None) -> str:
    if cell is None or cell.interval is None:
        return ""
    return "–".join(f"{100 * bound:.1f}" for bound in cell.interval)
