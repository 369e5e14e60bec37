"""OVO-Bench's result files, scored without a model: {backward, realtime: [{id, task, response,
ground_truth}], forward: [{id, task, test_info: [{realtime, response, …}]}]}, as its repository has
them below results/.

Replies count by their id: of two with one id the first, and what is missing is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.fields import Entry, entries_of, read_json
from vicort.benchmarks.evaluation.items import Item, Reply
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

SECTIONS = ("backward", "realtime", "forward")
RESULTS = "the benchmark's result files"


class Predictions:
    """Replies to the questions of one data file."""

    def __init__(self, items: Mapping[str, Item], data: Path) -> None:
        """data: the file that the items are of."""
        self.replies: dict[str, Reply] = {}
        self._items = items
        self._data = data.stem
        self._doubles: list[str] = []
        self._unknown: list[str] = []
        self._other_truths: list[str] = []

    def read(self, file: Path) -> None:
        """Raises ConfigError for a file that holds no results."""
        content = read_json(file, RESULTS)
        if not isinstance(content, dict) or not any(key in content for key in SECTIONS):
            raise ConfigError(f"{file} has none of {', '.join(SECTIONS)}: name {RESULTS}")
        for key in SECTIONS:
            for entry in entries_of(content.get(key, []), f"{file}, {key}"):
                for name, reply in _replies(entry):
                    self._take(f"{self._data}/{name}", reply, entry)

    def _take(self, name: str, reply: Any, entry: Entry) -> None:
        item = self._items.get(name)
        if item is None:
            self._unknown.append(name)
        elif name in self.replies:
            self._doubles.append(name)
        else:
            if entry.content.get("ground_truth", item.truth) != item.truth:
                self._other_truths.append(name)
            self.replies[name] = _reply(item, reply)

    def check(self, files: Sequence[Path]) -> None:
        """Raises ConfigError if none of the replies in these files counts."""
        if self.replies:
            return
        named = ", ".join(map(str, files))
        if not self._unknown:
            raise ConfigError(f"{named}: no reply is in there: name {RESULTS}")
        raise ConfigError(
            f"{named}: none of its {len(self._unknown)} replies is to a question of the data file "
            f"{self._data}, the first is to {shown(self._unknown[0])}: give the data file that "
            "they are of"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not taken as it stands, a line each."""
        missing = Counter(
            item.task for name, item in self._items.items() if name not in self.replies
        )
        named = {
            "replies whose id came before, not counted": self._doubles,
            "replies with an id that the data does not have, not counted": self._unknown,
            "replies with another ground truth than the data, whose counts": self._other_truths,
            "questions without a reply, which are wrong": [
                f"{task} {count}" for task, count in missing.items()
            ],
        }
        numbers = [len(self._doubles), len(self._unknown), len(self._other_truths), missing.total()]
        return tuple(
            f"{what} ({number}): {', '.join(which)}"
            for (what, which), number in zip(named.items(), numbers, strict=True)
            if number
        )


def _replies(entry: Entry) -> Iterator[tuple[str, Any]]:
    """(name of the question, reply) of an entry."""
    if "test_info" not in entry:
        yield str(entry.whole("id")), entry.content.get("response")
        return
    for number, query in enumerate(entry.entries("test_info")):
        yield f"{entry.whole('id')}.{number}", query.content.get("response")


def _reply(item: Item, said: Any) -> Reply:
    """said: a text, a list of one text as some models' files have it, or nothing."""
    if isinstance(said, list):
        said = said[0] if len(said) == 1 else None
    if not isinstance(said, str):
        return Reply(item.id, item.times[0], error="the file holds no reply")
    return Reply(item.id, item.times[0], said)


def read_predictions(
    items: Mapping[str, Item], data: Sequence[Path], files: Sequence[Path]
) -> Predictions:
    """Raises ConfigError unless there is one data file, and a reply to one of its questions."""
    if len(data) != 1:
        raise ConfigError(
            f"--predictions are of one data file, not of {len(data)}: give ovo_bench_new.json alone"
        )
    predictions = Predictions(items, data[0])
    for file in files:
        predictions.read(file)
    predictions.check(files)
    return predictions
