"""From replies to the papers' tables: a row for each system, a column for each task, averages as
each benchmark defines them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from vicort.benchmarks.evaluation.ages import wilson
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Reply, Scoring
from vicort.benchmarks.evaluation.judge import Judge, Verdict
from vicort.benchmarks.evaluation.rules import JUDGED, credit_of

AVERAGE, OVERALL = "Avg", "overall"
OWN = "own"  # the benchmark's own scoring


@dataclass(frozen=True)
class Scored:
    """An item, and what came of it."""

    item: Item
    credit: float  # 0 to 1; 1 = right
    score: float | None = None  # of a judge
    weight: float = 1.0  # in averages over questions


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


def score_all(
    items: Mapping[str, Item],
    replies: Iterable[Reply],
    judge: Judge,
    scoring: Scoring | None = None,
) -> list[Scored]:
    """Every item, scored. One without a reply, or whose reply is an error, is wrong without a
    judge. scoring: None = the benchmark's own."""
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
    scored = [_scored(item, of_item[item.id], by_id, scoring) for item in items.values()]
    return _weighted_by_entry(scored) if scoring and scoring.by_entry else scored


def _scored(
    item: Item,
    replies: Sequence[Reply],
    verdicts: Mapping[str, Verdict],
    scoring: Scoring | None,
) -> Scored:
    if item.rule != JUDGED:
        rule = scoring.rules.get(item.rule) if scoring else None
        return Scored(item, credit_of(item, replies, rule))
    verdict = verdicts.get(item.id, Verdict(False, 0))
    return Scored(item, float(verdict.yes), verdict.score)


def _weighted_by_entry(scored: Sequence[Scored]) -> list[Scored]:
    entries = [each.item.note.get("entry", each.item.id) for each in scored]
    sizes = Counter(entries)
    return [
        replace(each, weight=1 / sizes[entry]) for each, entry in zip(scored, entries, strict=True)
    ]


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


def to_json(table: Table) -> dict[str, Any]:
    return {
        title: {heading: cell.to_json() for heading, cell in cells.items()}
        for title, cells in table.items()
    }


def mean_of(cells: Sequence[Cell]) -> Cell:
    """Each counts the same, however many questions it holds."""
    return Cell(fmean(cell.accuracy for cell in cells), sum(cell.asked for cell in cells))


def _cell(scored: Sequence[Scored]) -> Cell:
    scores = [each.score for each in scored if each.score is not None]
    return Cell(
        fmean([each.credit for each in scored], [each.weight for each in scored]),
        len(scored),
        fmean(scores) if scores else None,
        _wilson(scored),
    )


def _wilson(scored: Sequence[Scored]) -> tuple[float, float] | None:
    """None = not a share: there is part credit, or questions do not count the same."""
    if any(each.credit not in (0, 1) or each.weight != 1 for each in scored):
        return None
    return wilson(int(sum(each.credit for each in scored)), len(scored))


def print_table(
    tables: Mapping[str, Table],
    intervals: bool = False,
    others: Mapping[str, Mapping[str, Table]] | None = None,
) -> str:
    """The tables of all systems, a block a group; percent, and a judge's mean score after a slash.

    intervals: a line with the 95 % intervals below each system. others: the same systems' tables
    under other scorings, by the scoring's name: a line each below each system, and the averages
    side by side at the end.
    """
    others = others or {}
    width = max([*map(len, tables), *(len(name) + 2 for name in others)], default=0)
    titles = list(dict.fromkeys(title for table in tables.values() for title in table))
    blocks = [_block(tables, title, width, intervals, others) for title in titles]
    if others:
        blocks += [
            _rules_block(tables, title, width, others)
            for title in titles
            if any(AVERAGE in table.get(title, {}) for table in tables.values())
        ]
    return "\n\n".join(blocks)


def _block(
    tables: Mapping[str, Table],
    title: str,
    width: int,
    intervals: bool,
    others: Mapping[str, Mapping[str, Table]],
) -> str:
    headings = list(
        dict.fromkeys(heading for table in tables.values() for heading in table.get(title, {}))
    )
    headings.sort(key=lambda heading: heading == AVERAGE)
    least = 10 if _judged(tables, title) else 11 if intervals else 6
    widths = [max(len(heading), least) for heading in headings]
    asked = ["n=" + str(_most(tables, title, heading)) for heading in headings]
    lines = [title, _row("system", headings, widths, width), _row("", asked, widths, width)]
    for name, table in tables.items():
        cells = [table.get(title, {}).get(each) for each in headings]
        lines.append(_row(name, [_shown(cell) for cell in cells], widths, width))
        if intervals:
            lines.append(_row("  95 %", [_interval(cell) for cell in cells], widths, width))
        for rule, theirs in others.items():
            cells = [theirs[name].get(title, {}).get(each) for each in headings]
            lines.append(_row(f"  {rule}", [_shown(cell) for cell in cells], widths, width))
    return "\n".join(lines)


def _rules_block(
    tables: Mapping[str, Table],
    title: str,
    width: int,
    others: Mapping[str, Mapping[str, Table]],
) -> str:
    """A group's average under each scoring, side by side."""
    rules = {OWN: tables, **others}
    widths = [max(len(rule), 6) for rule in rules]
    lines = [f"{title}: {AVERAGE} by scoring rule", _row("system", list(rules), widths, width)]
    for name in tables:
        cells = [each[name].get(title, {}).get(AVERAGE) for each in rules.values()]
        lines.append(_row(name, [_shown(cell) for cell in cells], widths, width))
    return "\n".join(lines)


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
