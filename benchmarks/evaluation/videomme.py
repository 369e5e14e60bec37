"""Video-MME (arXiv 2405.21075) without subtitles, an offline check: the whole video first, the
questions when it is over.

A JSON list in one of three forms: rows of the published table ({videoID, duration, task_type,
question, options, answer, …}, as pandas writes its Parquet file), videos with `questions` (the
benchmark's form for results), or ReKV's form ({video_id, video_path, duration_category,
conversations: [{question, choices, answer, question_type}]}).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from vicort.benchmarks.evaluation.fields import (
    Entry,
    digests,
    entries_of,
    find_any,
    find_video,
    read_json,
)
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Scoring, Video
from vicort.benchmarks.evaluation.own_sampling import SpreadAtRate

# github.com/MME-Benchmarks/Video-MME, README.md
PROMPT = """Select the best answer to the following multiple-choice question based on the video. \
Respond with only the letter (A, B, C, or D) of the correct option.
{question}
{options}
The best answer is:"""
LETTERS = "ABCD"
LENGTHS = ("short", "medium", "long")
AT_END = Fraction(10**6)  # seconds: after the end of any of its videos
# rate and length: github.com/yaolinli/TimeChat-Online, eval/scripts/videomme.py
FPS = Fraction(1)
MAX_TOKENS = 128
SAMPLING = SpreadAtRate(
    ((None, FPS),), 900, "1 frame a second, at most 900, spread evenly (TimeChat-Online)"
)
SCORINGS = (
    Scoring(
        "TimeChat-Online",
        "github.com/yaolinli/TimeChat-Online, eval/scripts/videomme.py (as ViCoStream)",
        {"first-of-letters-after-answer": "first-of-letters"},
    ),
)
ABOUT = {
    "benchmark": "Video-MME without subtitles, arXiv 2405.21075",
    "prompts": "github.com/MME-Benchmarks/Video-MME, README.md",
    "scoring": (
        "github.com/thanku-all/parse_answer, eval_your_results.py: the first A, B, C or D of the "
        "reply; averages over questions"
    ),
}


def load(files: Sequence[Path], folders: Sequence[Path]) -> Dataset:
    """files: JSON; folders: where videos named by their YouTube id (videoID) may lie. Raises
    ConfigError for data that is not Video-MME's."""
    items: dict[str, list[Item]] = defaultdict(list)
    paths: dict[str, Path | None] = {}
    for file in files:
        for name, path, item in _read(file, folders):
            paths[name] = path
            items[name].append(item)
    videos = tuple(Video(name, paths[name], tuple(each)) for name, each in items.items())
    return Dataset(
        "videomme",
        videos,
        _groups([item.task for video in videos for item in video.items]),
        "questions",
        {"data": digests(files)},
        ABOUT,
        max_tokens=MAX_TOKENS,
        scorings=SCORINGS,
        own_sampling=SAMPLING,
    )


def _groups(tasks: Sequence[str]) -> tuple[Group, ...]:
    """Every question counts by its video's length and by its type."""
    parts = {task: task.split("/", 1) for task in dict.fromkeys(tasks)}
    by_length = sorted(parts, key=lambda task: LENGTHS.index(parts[task][0]))
    by_type = sorted(parts, key=lambda task: parts[task][1])
    return (
        Group("by duration", {task: parts[task][0] for task in by_length}),
        Group("by task type", {task: parts[task][1] for task in by_type}, mean=None),
    )


def _read(file: Path, folders: Sequence[Path]) -> Iterator[tuple[str, Path | None, Item]]:
    """(name of the video, where it lies, item) of each question."""
    number = 0
    for entry in entries_of(read_json(file), str(file)):
        name = entry.text("videoID" if "videoID" in entry else "video_id")
        path = find_any(folders, [name])
        if path is None and "video_path" in entry:
            path = find_video(folders, entry.text("video_path"))
        rekv = "conversations" in entry
        length = "duration_category" if rekv else "duration"
        if entry.text(length) not in LENGTHS:
            raise entry.wrong(length, f"one of {', '.join(LENGTHS)}")
        for question in _questions(entry):
            kind = question.text("question_type" if rekv else "task_type")
            item = _item(question, f"{file.stem}/{number}", f"{entry.text(length)}/{kind}")
            yield name, path, item
            number += 1


def _questions(entry: Entry) -> list[Entry]:
    for key in ("conversations", "questions"):
        if key in entry:
            return entry.entries(key)
    return [entry]


def _item(question: Entry, name: str, task: str) -> Item:
    words = question.text("question")
    if "choices" in question:
        choices, answer = question.texts("choices"), question.text("answer")
        if answer not in choices or len(choices) != len(LETTERS):
            raise question.wrong("answer", f"one of its {len(LETTERS)} choices")
        pairs = zip(LETTERS, choices, strict=True)
        options = [f"{letter}. {choice}" for letter, choice in pairs]
        right = LETTERS[choices.index(answer)]
    else:
        options, right = question.texts("options"), question.one_of("answer", LETTERS)
        if len(options) != len(LETTERS):
            raise question.wrong("options", f"{len(LETTERS)} options")
    text = PROMPT.format(question=words, options="\n".join(options))
    rule = "first-of-letters-after-answer"
    return Item(name, task, rule, right, text, (AT_END,), {"question": words})
