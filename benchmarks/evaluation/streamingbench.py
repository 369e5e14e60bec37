"""StreamingBench (arXiv 2411.03628): 18 tasks over 900 videos; JSON as its repository has it, or
the real-time subset's CSV.

A JSON file is a list of entries {video_path, questions: [{task_type, question, time_stamp, answer,
options}]}; sequential questions are lists of such lists, proactive ones have
ground_truth_time_stamp and ground_truth_output. CSV rows name their video by question_id.
"""

from __future__ import annotations

import itertools
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
    read_csv,
    read_json,
)
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Scoring, Video
from vicort.benchmarks.evaluation.own_sampling import SpreadAtRate
from vicort.benchmarks.evaluation.rules import POLLED

LETTERS = "ABCD"
# seconds after the right moment until which a proactive question is asked
# (StreamingBenchProactive.py)
POLL_AFTER = 4
MAX_WAIT = 86_400  # seconds in which an event may come: it is asked about in each

# Prompts: github.com/THUNLP-MT/StreamingBench, src/benchmark/StreamingBench.py,
# StreamingBenchSQA.py, StreamingBenchProactive.py.
CHOICE = """You are an advanced video question-answering AI assistant. You have been provided \
with some frames from the video and a multiple-choice question related to the video. Your task is \
to carefully analyze the video and provide the best answer to question, choosing from the four \
options provided. Respond with only the letter (A, B, C, or D) of the correct option.

Question: {question}

Options:
{options}

The best option is:"""
SEQUENTIAL = """You are an advanced video question-answering AI assistant. You have been provided \
with a video and a multiple-choice question related to the video. Your task is to carefully \
analyze the video and the provided context to answer the question, choosing from the four options \
provided. Respond with only the letter (A, B, C, or D) of the correct option.

{context}

Here is the question. Answer it and don't confuse it with the previous conversation.
Question: {question}

Options:
{options}

The best option is:"""
CONTEXT = (
    "Here are the contextual information related to the video. Please answer the questions based "
    "on the contextual information: "
)
EARLIER = (
    "At timestamp {at}, the following question and answer occurred: Question: {question}; "
    "Options: {options}; Answer: {answer}; "
)
PROACTIVE = """You are an advanced image question-answering AI assistant. You have been provided \
with images and a question related to the images. Your task is to carefully analyze the images \
and provide the answer to the question. You need to carefully confirm whether the images content \
meet the conditions of the question, and then output the correct content.

Question: {question} Is it the right time to output "{output}"? You can only answer yes or no.

The answer is:
"""

# Columns of table 2 of the paper; where data files of two dates name a task differently, both
# names.
GROUPS = (
    Group(
        "Real-Time Visual Understanding",
        {
            "Object Perception": "OP",
            "Object Recognition": "OP",
            "Causal Reasoning": "CR",
            "Clips Summarize": "CS",
            "Attribute Perception": "ATP",
            "Attribute Recognition": "ATP",
            "Event Understanding": "EU",
            "Text-Rich Understanding": "TR",
            "Prospective Reasoning": "PR",
            "Spatial Understanding": "SU",
            "Action Perception": "ACP",
            "Action Recognition": "ACP",
            "Counting": "CT",
        },
    ),
    Group(
        "Omni-Source Understanding",
        {
            "Emotion Recognition": "ER",
            "Scene Understanding": "SCU",
            "Source Discrimination": "SD",
            "Multimodal Alignment": "MA",
        },
    ),
    Group(
        "Contextual Understanding",
        {
            "Anomaly Context Understanding": "ACU",
            "Misleading Context Understanding": "MCU",
            "Sequential Question Answering": "SQA",
            "Proactive Output": "PO",
        },
    ),
)
MAX_TOKENS = 128  # of an answer: src/model/Qwen2VL.py, and ViCoStream
SEQUENTIAL_TASK, PROACTIVE_TASK = "Sequential Question Answering", "Proactive Output"
ABOUT = {
    "benchmark": "StreamingBench, arXiv 2411.03628",
    "prompts": "github.com/THUNLP-MT/StreamingBench, src/benchmark/",
    "scoring": (
        "first letter of the reply; proactive: first yes within 2 s, polled each second from 1 s "
        "after the ask to 4 s after the "
        "right moment, what is said then is not scored; averages over questions; an empty reply is "
        "wrong (theirs leaves it out)"
    ),
}
SAMPLING = SpreadAtRate(  # src/model/Qwen2VL.py; at 600 s sharp as ViCoStream, not 0.2
    ((300, Fraction(1)), (600, Fraction(1, 2)), (None, Fraction(1, 5))),
    768,
    "1 frame a second of clips up to 300 s, 0.5 up to 600 s, 0.2 of longer ones, spread evenly",
)
SCORINGS = (
    Scoring(
        "ViCoStream",
        "github.com/DgntYang/StreamingLLM, ViCoStream/eval/scripts/incremental_streamingbench.py",
        {"first-letter": "first-of-letters"},
    ),
    Scoring(
        "SimpleStream",
        "github.com/EvolvingLMMs-Lab/SimpleStream, lib/recent_window_eval.py",
        {"first-letter": "letter-word"},
    ),
)
FOLDER_OF_SUBSET = {
    "Real-Time Visual Understanding": "real",
    SEQUENTIAL_TASK: "sqa",
    PROACTIVE_TASK: "proactive",
}


def load(files: Sequence[Path], folders: Sequence[Path]) -> Dataset:
    """files: JSON and CSV; folders: where videos may lie.

    Of more than four options the first four are taken as they stand, and the question is named in
    `remarks`. Raises ConfigError for data that is not StreamingBench's.
    """
    items: dict[str, list[Item]] = defaultdict(list)
    paths: dict[str, Path | None] = {}
    for file in files:
        read = (
            _read_rows(file, folders)
            if file.suffix.lower() == ".csv"
            else _read_entries(file, folders)
        )
        for name, path, item in read:
            paths[name] = path
            items[name].append(item)
    videos = tuple(Video(name, paths[name], tuple(each)) for name, each in items.items())
    return Dataset(
        "streamingbench",
        videos,
        GROUPS,
        "questions",
        {"data": digests(files)},
        ABOUT,
        _remarks(videos),
        max_tokens=MAX_TOKENS,
        scorings=SCORINGS,
        own_sampling=SAMPLING,
    )


def _remarks(videos: Sequence[Video]) -> tuple[str, ...]:
    """Names the questions with options that are not shown. The benchmark's loop prints the first
    four strings of the list, whatever follows."""
    more = [
        f"{item.id} ({item.note['options']} options)"
        for video in videos
        for item in video.items
        if item.note.get("options", len(LETTERS)) > len(LETTERS)
    ]
    if not more:
        return ()
    return (
        f"questions with more than {len(LETTERS)} options, of which the first {len(LETTERS)} are "
        f"shown as they stand, as the benchmark shows them ({len(more)}): {', '.join(more)}",
    )


def _read_entries(file: Path, folders: Sequence[Path]) -> Iterator[tuple[str, Path | None, Item]]:
    """(name of the video, where it lies, item) of each question of a JSON file."""
    content = read_json(file)
    nested = isinstance(content, list) and any(isinstance(each, list) for each in content)
    series = (
        [entries_of(each, f"{file}, series {n}") for n, each in enumerate(content)]
        if nested
        else [entries_of(content, str(file))]
    )
    count = itertools.count()
    for entries in series:
        context = ""
        for entry in entries:
            name = entry.text("video_path")
            path = find_video(folders, name)
            for question in entry.entries("questions"):
                yield (
                    name,
                    path,
                    _item(question, f"{file.stem}/{next(count)}", context if nested else None),
                )
                if nested:
                    context = (context or CONTEXT) + _earlier(question)


def _read_rows(file: Path, folders: Sequence[Path]) -> Iterator[tuple[str, Path | None, Item]]:
    """The same of a CSV file, whose question_id is `SUBSET_sample_NUMBER_QUESTION`; sequential
    questions of a sample are a series."""
    contexts: dict[str, str] = defaultdict(str)
    for number, row in enumerate(read_csv(file)):
        subset, found, rest = row.text("question_id").rpartition("_sample_")
        sample = rest.rpartition("_")[0]
        if not found or not sample.isdecimal():
            raise row.wrong(
                "question_id", "one such as 'Real-Time Visual Understanding_sample_1_1'"
            )
        kind = FOLDER_OF_SUBSET.get(subset, "omni")
        inside = [
            f"sample_{sample}_{kind}",
            f"{kind}/sample_{sample}_{kind}",
            f"{subset}/sample_{sample}/video",
        ]
        path = find_any(folders, [*inside, f"sample_{sample}/video", f"sample_{sample}"])
        series = row.content.get("task_type") == SEQUENTIAL_TASK
        yield (
            f"{subset}/sample_{sample}",
            path,
            _item(row, f"{file.stem}/{number}", contexts[sample] if series else None),
        )
        if series:
            contexts[sample] = (contexts[sample] or CONTEXT) + _earlier(row)


def _item(question: Entry, name: str, context: str | None) -> Item:
    """context: what was asked before in a series; None where questions stand alone."""
    at, words = question.clock("time_stamp"), question.text("question")
    if "ground_truth_time_stamp" in question:
        right = question.clock("ground_truth_time_stamp")
        if right + POLL_AFTER < at + 1:
            raise question.wrong("ground_truth_time_stamp", "a time that is not before time_stamp")
        if right - at > MAX_WAIT:
            raise question.wrong(
                "ground_truth_time_stamp", f"a time at most {MAX_WAIT} seconds after time_stamp"
            )
        polls = tuple(at + second for second in range(1, int(right - at) + POLL_AFTER + 1))
        text = PROACTIVE.format(question=words, output=question.text("ground_truth_output"))
        return Item(
            name,
            PROACTIVE_TASK,
            POLLED,
            str(right),
            text,
            polls,
            {"question": words, "asked": str(at)},
            since=at,
        )
    answer, options = question.one_of("answer", LETTERS), "\n".join(_options(question))
    if context is None:
        task, text = question.text("task_type"), CHOICE.format(question=words, options=options)
    else:
        task = SEQUENTIAL_TASK
        text = SEQUENTIAL.format(context=context, question=words, options=options)
    note = {"question": words, "options": len(question.texts("options"))}
    return Item(name, task, "first-letter", answer, text, (Fraction(at),), note)


def _options(question: Entry) -> list[str]:
    """The first four with their letters in front, in the order of the data."""
    options = question.texts("options")[: len(LETTERS)]
    if len(options) < len(LETTERS):
        raise question.wrong("options", f"{len(LETTERS)} options or more")
    lettered = options[0].startswith("A.")
    return (
        options
        if lettered
        else [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    )


def _earlier(question: Entry) -> str:
    return EARLIER.format(
        at=question.text("time_stamp"),
        question=question.text("question"),
        options=", ".join(_options(question)),
        answer=question.text("answer"),
    )
