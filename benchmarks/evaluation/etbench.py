"""E.T. Bench (arXiv 2409.18111): when things happen in a whole video.

etbench_txt_v1.0.json: a list of {idx, task, source, video, duration, q, tgt, …}. The question `q`
is asked as it stands when the video is over. Tasks whose answer is a time are scored: tvg, epm,
tal, evs, vhd and tem.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.fields import (
    MAX_SECONDS,
    Entry,
    digests,
    entries_of,
    find_video,
    read_json,
)
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.runtime.errors import ConfigError

# rate and length: github.com/DgntYang/StreamingLLM, ViCoStream/eval/scripts/incremental_etbench.py
FPS = Fraction(1)
MAX_TOKENS = 128
GROUNDING = {
    "tvg": "first-span",
    "epm": "first-span",
    "tal": "all-spans",
    "evs": "seconds-in-common",
    "vhd": "moment-within",
}
COMPLEX = {"tem": "first-span-of-any"}
# need a sentence model or caption metrics, which are not here
UNSCORED = ("rar", "eca", "rvq", "gvq", "dvc", "slc")
FOLDERS = ("videos", "videos_compressed")  # of the benchmark
ABOUT = {
    "benchmark": "E.T. Bench, arXiv 2409.18111",
    "prompts": "`q` of the data (timestamps as text)",
    "scoring": (
        "evaluation/compute_metrics.py: tvg, epm, tem: share of the overlaps 0.1, 0.3, 0.5, 0.7 "
        "that the first span reaches; tal: F1 at these; evs: F1 over seconds; vhd: the first "
        "number within a span. A reply without a time is wrong (of evs theirs leaves it out). "
        "Average: over tasks and sources"
    ),
}


def load(
    files: Sequence[Path], folders: Sequence[Path], sources: Sequence[str] | None = None
) -> Dataset:
    """files: JSON; folders: where the folder `videos`, or the videos, may lie. sources: data sets
    that are asked about, None = all.

    Entries of tasks that are not scored are counted in `remarks`. Raises ConfigError for data that
    is not E.T. Bench's, and for sources that it does not hold.
    """
    items: dict[str, list[Item]] = defaultdict(list)
    unscored: Counter[str] = Counter()
    columns: dict[str, None] = {}
    inside = [folder / name for folder in folders for name in FOLDERS]
    known: set[str] = set()
    for file in files:
        for number, entry in enumerate(entries_of(read_json(file), str(file))):
            task, source = entry.text("task"), entry.text("source")
            known.add(source)
            if sources and source not in sources:
                continue
            if task in UNSCORED:
                unscored[task] += 1
                continue
            item = _item(entry, f"{file.stem}/{number}")
            columns[item.task] = None
            items[entry.text("video")].append(item)
    _check_sources(sources, known, files)
    videos = tuple(
        Video(name, find_video([*folders, *inside], name), tuple(each))
        for name, each in items.items()
    )
    settings = {"data": digests(files), "sources": sorted(sources) if sources else "all"}
    return Dataset(
        "etbench",
        videos,
        _groups(sorted(columns)),
        None,
        settings,
        ABOUT,
        _remarks(unscored),
        max_tokens=MAX_TOKENS,
    )


def _check_sources(sources: Sequence[str] | None, known: set[str], files: Sequence[Path]) -> None:
    for source in sources or ():
        if source not in known:
            raise ConfigError(
                f"--source {source}: {', '.join(map(str, files))} has {', '.join(sorted(known))}: "
                "give one of these"
            )


def _groups(columns: Sequence[str]) -> tuple[Group, ...]:
    groups = {"Grounding": GROUNDING, "Complex": COMPLEX}
    return tuple(
        Group(title, {each: each for each in columns if each.split("/")[0] in tasks}, "tasks")
        for title, tasks in groups.items()
    )


def _remarks(unscored: Counter[str]) -> tuple[str, ...]:
    if not unscored:
        return ()
    counted = ", ".join(f"{task} ({count})" for task, count in sorted(unscored.items()))
    return (
        f"entries of tasks that are not scored here, as their scores need a sentence model or "
        f"caption metrics: {counted}",
    )


def _item(entry: Entry, name: str) -> Item:
    task = entry.text("task")
    rule = (GROUNDING | COMPLEX).get(task)
    if rule is None:
        raise entry.wrong("task", f"one of {', '.join((*GROUNDING, *COMPLEX, *UNSCORED))}")
    truth = json.dumps(_spans(entry, task))
    column = f"{task}/{entry.text('source')}"
    return Item(name, column, rule, truth, entry.text("q"), (entry.seconds("duration"),))


def _spans(entry: Entry, task: str) -> Any:
    """The right span of tvg and epm, a list of spans of the others; of several annotators of vhd
    all spans together, as one of them is enough."""
    right = entry.content.get("tgt")
    if task in ("tvg", "epm"):
        if not _is_span(right):
            raise entry.wrong("tgt", "[start, end]")
        return right
    spans = right if isinstance(right, list) else []
    if task == "vhd" and all(isinstance(each, list) and not _is_span(each) for each in spans):
        spans = [span for each in spans for span in each]
    if not spans or not all(map(_is_span, spans)):
        raise entry.wrong("tgt", "a list of [start, end]")
    return spans


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
        and all(abs(each) < MAX_SECONDS for each in value)  # not for NaN
    )
