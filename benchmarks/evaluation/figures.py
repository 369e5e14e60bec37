"""The figures of a report: each system's table under the benchmark's own scoring, and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicort.benchmarks.evaluation.items import Dataset, Item, Reply, Scoring
from vicort.benchmarks.evaluation.judge import Judge
from vicort.benchmarks.evaluation.score_tables import (
    Table,
    make_table,
    print_table,
    score_all,
    to_json,
)


@dataclass(frozen=True)
class Figures:
    dataset: Dataset
    own: Mapping[str, Table]  # of each system
    others: Mapping[str, Mapping[str, Table]]  # by the scoring's name

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        items: Mapping[str, Item],
        replies: Mapping[str, Sequence[Reply]],
        judge: Judge,
    ) -> Figures:
        """items: that count. replies: of each system."""

        def tables(scoring: Scoring | None = None) -> dict[str, Table]:
            return {
                name: make_table(dataset, score_all(items, each, judge, scoring))
                for name, each in replies.items()
            }

        return cls(
            dataset, tables(), {scoring.name: tables(scoring) for scoring in dataset.scorings}
        )

    def to_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"accuracy": _all_to_json(self.own)}
        if self.others:
            figures["other scorings"] = {
                scoring.name: {
                    "source": scoring.source,
                    "accuracy": _all_to_json(self.others[scoring.name]),
                }
                for scoring in self.dataset.scorings
            }
        return figures

    def head(self) -> list[str]:
        """Lines that say how the figures are made, and what of the data was not taken as it
        stands."""
        return [
            f"scoring: {self.dataset.about['scoring']}",
            *(f"scoring as {each.name}: {each.source}" for each in self.dataset.scorings),
            *(f"note: {remark}" for remark in self.dataset.remarks),
        ]

    def printed(self) -> str:
        return print_table(self.own, self.dataset.intervals, self.others)


def _all_to_json(tables: Mapping[str, Table]) -> dict[str, Any]:
    return {name: to_json(table) for name, table in tables.items()}
