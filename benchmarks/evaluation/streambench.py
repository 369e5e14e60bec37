"""StreamBench v0.3 of StreamChat (arXiv 2501.13468), as ViCoStream runs it: open questions at
breakpoints of a video.

streaming_bench_v0.3.json: a list of {info: {video_path, class_1, …}, breakpoint: [{time, question,
answer, class}]}; time in seconds, a number or a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vicort.benchmarks.evaluation.fields import Entry, digests, entries_of, find_video, read_json
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.benchmarks.evaluation.rules import JUDGED

# Prompt, rate, length and what is left out: github.com/DgntYang/StreamingLLM,
# ViCoStream/eval/scripts/increnmental_stream.py.
PROMPT = """You are an advanced streaming video understanding AI assistant. You are given frames \
decoded from the beginning of a video up to the current timestamp and a question about the video.
Answer the question in a short, factual sentence based on the visual evidence and useful \
commonsense when needed.
Question type: {kind}

Question: {question}

Answer:"""
FPS = Fraction(1)
MAX_TOKENS = 128
LEFT_OUT = ("YL5Vhd-WbB8.mp4", "YxXrLCWFxTg.mp4", "_tOrWlrdkIA.mp4", "vwNhd4q--RQ.mp4")
# folders below that of the data where a video may lie, besides those named by its class_1
FOLDERS = ("Movie/Movie", "WebVideo", "Ego", "Ego/all_videos")
ABOUT = {
    "benchmark": "StreamBench v0.3, arXiv 2501.13468",
    "prompts": "as ViCoStream's eval/scripts/increnmental_stream.py",
    "scoring": (
        "a judge says yes or no, and 0 to 5; averages over questions. Figures of different judges "
        "cannot be compared"
    ),
}


def load(files: Sequence[Path], folders: Sequence[Path]) -> Dataset:
    """files: JSON; folders: where the folders Ego, Movie and WebVideo may lie, or the videos.

    The four videos that ViCoStream leaves out are left out and named in `remarks`. Raises
    ConfigError for data that is not StreamBench's.
    """
    videos: list[Video] = []
    left_out: list[str] = []
    for file in files:
        for number, entry in enumerate(entries_of(read_json(file), str(file))):
            info = entry.inside("info")
            path = info.text("video_path")
            if Path(path).name in LEFT_OUT:
                left_out.append(Path(path).name)
                continue
            items = tuple(
                _item(each, f"{file.stem}/{number}/{place}")
                for place, each in enumerate(entry.entries("breakpoint"))
            )
            videos.append(Video(f"{file.stem}/{number} {path}", _find(folders, info, path), items))
    said = f"videos left out, as ViCoStream leaves them out: {', '.join(left_out)}"
    kinds = sorted({item.task for video in videos for item in video.items})
    return Dataset(
        "streambench",
        tuple(videos),
        (Group("StreamBench v0.3", {kind: kind for kind in kinds}),),
        "questions",
        {"data": digests(files)},
        ABOUT,
        (said,) if left_out else (),
        max_tokens=MAX_TOKENS,
    )


def _item(question: Entry, name: str) -> Item:
    kind, words = question.any_text("class"), question.text("question")
    answer, at = question.any_text("answer"), question.seconds_or_text("time")
    text = PROMPT.format(kind=kind, question=words)
    return Item(name, kind or "none", JUDGED, answer, text, (at,), {"question": words})


def _find(folders: Sequence[Path], info: Entry, path: str) -> Path | None:
    named = info.any_text("class_1")
    places = [f"{named}/{named}", *FOLDERS] if named else FOLDERS
    found = (find_video(folders, f"{place}/{path}") for place in places)
    return next((each for each in found if each), None)
