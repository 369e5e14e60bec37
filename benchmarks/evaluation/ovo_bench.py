"""OVO-Bench (arXiv 2501.05510): 12 tasks that look back, look now, or wait; its JSON, and the
source videos, uncut.

Each entry has id, task, video. Nine tasks have realtime, question, options and gt; REC, SSR and CRR
have test_info, a query each: {realtime, count}, {realtime, step, type} and {realtime, type}. Videos
are cut here, at realtime and not at the next full second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.fields import Entry, digests, entries_of, find_video, read_json
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Scoring, Video
from vicort.benchmarks.evaluation.own_sampling import SpreadCount

# Prompts: github.com/JoeLeelyf/OVO-Bench, constant.py, spelling and white space and all.
BLANK = " "  # that ends a line of theirs
CHOICE = f"""
Question: {{question}}
Options:
{{options}}

Respond only with the letter corresponding to your chosen option (e.g., A, B, C).{BLANK}
Do not include any additional text or explanation in your response.
"""
COUNT = f"""
You're watching a video in which people may perform a certain type of action repetively.{BLANK}
The person performing this kind of action are referred to as 'they' in the following statement.
You're task is to count how many times have different people in the video perform this kind of \
action in total.
One complete motion counts as one.{BLANK}
Now, answer the following question: How many times did they {{activity}}?
Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.
Do not include any additional text or explanation in your response.
"""
STEP = f"""
You're watching a tutorial video which contain a sequential of steps.{BLANK}
The following is one step from the whole procedures:{BLANK}
{{step}}
Your task is to determine if the man or woman in the video is currently performing this step.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""
CLUE = f"""
You're responsible of answering questions based on the video content.{BLANK}
The following question are relevant to the latest frames, i.e. the end of the video.
{{question}}
Decide whether existing visual content, especially latest frames, i.e. frames that near the end \
of the video, provide enough information for answering the question.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""

MAX_TOKENS = 128  # of an answer: models/QWen2VL.py, and ViCoStream
LETTERS = "ABCDE"
CHOICES = ("OCR", "ACR", "ATR", "STU", "FPD", "OJR", "EPM", "ASI", "HLD")
FORWARD = ("REC", "SSR", "CRR")
GROUPS = tuple(  # in the order of the paper's table
    Group(title, {task: task for task in tasks}, "tasks")
    for title, tasks in (
        ("Real-Time Visual Perception", CHOICES[:6]),
        ("Backward Tracing", CHOICES[6:]),
        ("Forward Active Responding", FORWARD),
    )
)
ABOUT = {
    "benchmark": "OVO-Bench, arXiv 2501.05510",
    "prompts": "github.com/JoeLeelyf/OVO-Bench, constant.py, to the byte",
    "scoring": (
        "utils/OVOBenchScore.py: the letter within the reply; REC: equal digits; SSR, CRR: Yes "
        "or No within the reply. Category: "
        "mean of its tasks; overall: (Backward + Real-Time + Forward) / 3. Cut at realtime, not "
        "rounded"
    ),
}
SAMPLING = SpreadCount(64, "64 frames of each clip, spread evenly")  # models/QWen2VL.py
SCORINGS = (
    Scoring(
        "ViCoStream",
        "github.com/DgntYang/StreamingLLM, ViCoStream/eval/scripts/incremental_ovobench.py: REC, "
        "SSR and CRR are averaged over entries, not over queries",
        by_entry=True,
    ),
    Scoring(
        "SimpleStream",
        "github.com/EvolvingLMMs-Lab/SimpleStream, lib/recent_window_eval.py",
        {"letter-within": "letter-word", "yes-or-no": "yes-or-no-any-case"},
    ),
)


def load(
    files: Sequence[Path], folders: Sequence[Path], tasks: Sequence[str] | None = None
) -> Dataset:
    """files: JSON; folders: where videos may lie; tasks: that are asked, None = all.

    Entries count by their id: of several with one id the first is asked, and `remarks` name the
    others. An entry without an id is asked under its place. Raises ConfigError for data that is not
    OVO-Bench's.
    """
    items: dict[str, list[Item]] = defaultdict(list)
    remarks: list[str] = []
    for file in files:
        ids = _Ids()
        for place, entry in enumerate(entries_of(read_json(file), str(file))):
            if name := ids.take(place, entry):
                found = list(_items(entry, f"{file.stem}/{name}"))
                if tasks is None or entry.text("task") in tasks:
                    items[entry.text("video")] += found
        remarks += ids.remarks(file.name)
    videos = tuple(
        Video(name, find_video(folders, name), tuple(each)) for name, each in items.items()
    )
    settings: dict[str, Any] = {"data": digests(files), "prompts": "with their white space"}
    if tasks is not None:
        settings["tasks"] = sorted(tasks)
    return Dataset(
        "ovo-bench",
        videos,
        GROUPS if tasks is None else _only(tasks),
        "groups" if tasks is None else None,
        settings,
        ABOUT,
        tuple(remarks),
        max_tokens=MAX_TOKENS,
        scorings=SCORINGS,
        own_sampling=SAMPLING,
    )


def _only(tasks: Sequence[str]) -> tuple[Group, ...]:
    chosen = (
        replace(group, tasks={key: name for key, name in group.tasks.items() if key in tasks})
        for group in GROUPS
    )
    return tuple(group for group in chosen if group.tasks)


class _Ids:
    """Which entries of a file are asked, and under which names."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}  # of the first entry with an id
        self._doubles: list[str] = []
        self._without: list[int] = []

    def take(self, place: int, entry: Entry) -> str | None:
        """The entry's name in its file; None = its id came before."""
        if entry.content.get("id") is None:
            self._without.append(place)
            return f"entry-{place}"
        number = entry.whole("id")
        if number in self._places:
            first = self._places[number]
            self._doubles.append(f"{number} (entry {place}, first as entry {first})")
            return None
        self._places[number] = place
        return str(number)

    def remarks(self, file: str) -> list[str]:
        named = {
            "entries whose id came before, not asked again": self._doubles,
            "entries without an id": [str(place) for place in self._without],
        }
        return [
            f"{file}: {what} ({len(which)}): {', '.join(which)}"
            for what, which in named.items()
            if which
        ]


def _items(entry: Entry, name: str) -> Iterator[Item]:
    task = entry.text("task")
    if task in CHOICES:
        yield _choice(entry, task, name)
    elif task in FORWARD:
        for number, query in enumerate(entry.entries("test_info")):
            item = _forward(entry, query, task, f"{name}.{number}")
            yield replace(item, note={"entry": name})
    else:
        raise entry.wrong("task", f"one of {', '.join((*CHOICES, *FORWARD))}")


def _choice(entry: Entry, task: str, name: str) -> Item:
    options, right = entry.texts("options"), entry.whole("gt")
    if not 2 <= len(options) <= len(LETTERS):
        raise entry.wrong("options", f"2 to {len(LETTERS)} options")
    if not 0 <= right < len(options):
        raise entry.wrong("gt", f"the index of one of its {len(options)} options")
    lettered = (
        "; ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        + ";"
    )
    text = CHOICE.format(question=entry.text("question"), options=lettered)
    return Item(name, task, "letter-within", LETTERS[right], text, (entry.seconds("realtime"),))


def _forward(entry: Entry, query: Entry, task: str, name: str) -> Item:
    times = (query.seconds("realtime"),)
    if task == "REC":
        return Item(
            name,
            task,
            "digits",
            str(query.whole("count")),
            COUNT.format(activity=entry.text("activity")),
            times,
        )
    kind = query.whole("type")
    if kind not in (0, 1):
        raise query.wrong("type", "0 for No or 1 for Yes")
    text = (
        STEP.format(step=query.text("step"))
        if task == "SSR"
        else CLUE.format(question=entry.text("question"))
    )
    return Item(name, task, "yes-or-no", ("No", "Yes")[kind], text, times)
