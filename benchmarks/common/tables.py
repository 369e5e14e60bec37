"""A table as a terminal shows it, and as a Markdown page does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    title: str
    conditions: tuple[str, ...]  # lines that one must have read to read the numbers
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self) -> Iterator[str]:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        yield self.title
        yield from (f"  {line}" for line in self.conditions)
        for row in (self.header, *self.rows):
            yield (
                "  "
                + "  ".join(
                    _placed(cell, width, number)
                    for number, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
            )
        yield from (f"  {line}" for line in self.notes)

    def markdown(self) -> Iterator[str]:
        yield from (f"**{self.title}**", "")
        yield from (*self.conditions, "")
        yield _line(self.header)
        yield _line(["---", *["---:"] * (len(self.header) - 1)])
        yield from map(_line, self.rows)
        yield ""
        yield from (f"- {line}" for line in self.notes)


def _placed(cell: str, width: int, number: int) -> str:
    """The first column holds names, the others numbers."""
    return cell.ljust(width) if number == 0 else cell.rjust(width)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
