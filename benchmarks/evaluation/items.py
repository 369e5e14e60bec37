"""The types of an evaluation: questions, videos and replies.

They do not depend on a data set, a session or a file format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vicort.benchmarks.evaluation.own_sampling import OwnSampling
from vicort.runtime.sources.opening import IMAGE_FPS

# over what an average is taken, with equal weights
Mean = Literal["questions", "tasks", "groups"]


@dataclass(frozen=True)
class Item:
    """One scored question."""

    id: str  # unique in its data set
    task: str  # the column of the table that it counts in
    rule: str  # a key of rules.RULES
    truth: str  # the right answer, as the rule takes it
    text: str  # as it is asked, prompt included
    # seconds; several = the same text until the first yes
    times: tuple[Fraction, ...]
    note: dict[str, Any] = field(default_factory=dict)  # further data for reports
    # seconds: where the clip starts that the benchmark's own sampling is of, whatever the context;
    # None = as the context says
    since: Fraction | None = None
    choices: tuple[str, ...] = ()  # texts that the answer is limited to; none = free text


@dataclass(frozen=True)
class Video:
    name: str  # as the data set calls it
    path: Path | None  # a file, an array of frames, or a folder of images; None = not there
    items: tuple[Item, ...]
    # images a second, of a folder or an array
    image_fps: Fraction = Fraction(IMAGE_FPS)


@dataclass(frozen=True)
class Group:
    """Columns that a paper's table shows side by side, with their average."""

    title: str
    tasks: dict[str, str]  # what the data calls a task: its heading
    mean: Mean | None = "questions"  # None = an average would say nothing


@dataclass(frozen=True)
class Scoring:
    """Another published way to score the same replies."""

    name: str  # whose tables are scored so
    source: str  # for the report: where it is written down
    rules: dict[str, str] = field(default_factory=dict)  # an item's rule: the rule instead
    # whether the questions of one entry of the data (note "entry") count as one question together
    by_entry: bool = False


@dataclass(frozen=True)
class Dataset:
    name: str
    videos: tuple[Video, ...]
    groups: tuple[Group, ...]
    overall: Mean | None = "questions"
    # settings that a record must share to be resumed
    settings: dict[str, Any] = field(default_factory=dict)
    # for the report: where prompts and scoring come from, …
    about: dict[str, Any] = field(default_factory=dict)
    # what of the data was not taken as it stands, a line each
    remarks: tuple[str, ...] = ()
    max_tokens: int = 64  # of an answer
    scorings: tuple[Scoring, ...] = ()  # besides the benchmark's own
    own_sampling: OwnSampling | None = None  # of the benchmark's public loader; None = unknown
    intervals: bool = False  # whether the printed table shows 95 % intervals

    @property
    def missing(self) -> list[str]:
        return [video.name for video in self.videos if video.path is None]

    def first(self, count: int) -> Dataset:
        """The first `count` videos."""
        return replace(
            self,
            videos=self.videos[:count],
            about=self.about | {"videos": f"the first {count} only"},
        )

    @property
    def items(self) -> dict[str, Item]:
        return {item.id: item for video in self.videos for item in video.items}


@dataclass(frozen=True)
class Reply:
    """The reply to one asking of an item."""

    item: str  # its id
    at: Fraction  # seconds, when it was asked
    text: str = ""
    # seconds, newest frame that it could know of; None = it saw none
    seen_until: Fraction | None = Fraction(0)
    ttft_ms: float = 0.0
    tokens_read: int = 0  # cached visual tokens that it could see
    pages: int = 0  # vision pages that it could see
    # seconds, start of the oldest unit of which memory still held something; None = it was empty
    memory_from: Fraction | None = None
    error: str = ""  # why there is no answer
    # of an item with choices: the probability of each, and of all other texts
    choices: dict[str, float] | None = None
    outside: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Exact: times as fractions. Without what only items with choices have, where it has
        none."""
        return {
            key: str(value) if isinstance(value, Fraction) else value
            for key, value in vars(self).items()
            if value is not None or key not in ("choices", "outside")
        }

    def at_temperature_1(self, given_at: float) -> Reply:
        """With the probabilities of its choices at temperature 1. given_at: that of these."""
        if not self.choices or given_at == 1:
            return self
        return replace(self, choices=at_temperature_1(self.choices, given_at))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Reply:
        times = {
            key: Fraction(content[key])
            for key in ("at", "seen_until", "memory_from")
            if content[key] is not None
        }
        return cls(**content | times)


def at_temperature_1(choices: Mapping[str, float], given_at: float) -> dict[str, float]:
    """The probabilities of choices at temperature 1 from those at another one."""
    raised = {text: probability**given_at for text, probability in choices.items()}
    total = math.fsum(raised.values())
    return {text: each / total for text, each in raised.items()}
