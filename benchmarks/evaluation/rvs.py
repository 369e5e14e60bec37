"""RVS-Ego and RVS-Movie (VStream-QA's realtime part, arXiv 2406.08085): open questions about hours
of video.

test_qa_ego4d.json, test_qa_movienet.json: a list of {id, video_id, question, answer, answer_type,
start_time, end_time}. A question comes at end_time: seconds of the *source* video, where the clip
starts as rvs_ego.json beside the file says, or the name of a frame. ReKV's form (video_id,
conversations: [{question, answer, start_time, end_time}], seconds of the clip) is read too; its
RVS-Movie names .npy files, arrays of frames [N, height, width, 3] uint8, one a second.
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
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Video
from vicort.benchmarks.evaluation.own_sampling import WholeVideo
from vicort.benchmarks.evaluation.rules import JUDGED
from vicort.runtime.sources.images import is_image, natural_order

FPS = Fraction(1, 2)  # frames a second that are taken (paper of ReKV, arXiv 2503.00540: 0.5)
# images a second of folders whose questions come at seconds, and of arrays of frames: RVS-Ego's
# folders and RVS-Movie's .npy files hold one a second (ReKV's video_qa/rekv_stream_vqa.py)
SECONDS_FPS = Fraction(1)
# of folders whose questions come at frames: ours, so that each is taken, as shots of films have no
# times
NAMES_FPS = Fraction(1, 2)
MAX_TOKENS = 256  # of an answer: ReKV's video_qa/rekv_stream_vqa.py
SAMPLING = WholeVideo(FPS, "0.5 frames a second of the whole video (ReKV)")
CLIPS = {"test_qa_ego4d.json": "rvs_ego.json"}
ABOUT = {
    "benchmark": "RVS-Ego and RVS-Movie of VStream-QA, arXiv 2406.08085",
    "prompts": "the question alone, as github.com/IVGSZ/Flash-VStream asks it",
    "scoring": (
        "a judge says yes or no, and 0 to 5; averages over questions. Figures of different "
        "judges cannot be compared"
    ),
}


def load(
    files: Sequence[Path], folders: Sequence[Path], image_fps: Fraction | None = None
) -> Dataset:
    """files: JSON; folders: where videos, .npy files or folders of frames may lie. image_fps:
    images a second of such folders and .npy files.

    Raises ConfigError for data that is not RVS.
    """
    videos: list[Video] = []
    tasks: dict[str, str] = {}
    for file in files:
        for video in _read(file, folders, image_fps):
            videos.append(video)
            tasks |= {item.task: item.task for item in video.items}
    settings = {"data": digests(files), "image_fps": str(image_fps or "by the data")}
    return Dataset(
        "rvs",
        tuple(videos),
        (Group("RVS", dict(sorted(tasks.items()))),),
        "questions",
        settings,
        ABOUT,
        max_tokens=MAX_TOKENS,
        own_sampling=SAMPLING,
    )


def _read(file: Path, folders: Sequence[Path], image_fps: Fraction | None) -> Iterator[Video]:
    entries = entries_of(read_json(file), str(file))
    starts = _clip_starts(file)
    questions: dict[str, list[Entry]] = defaultdict(list)
    named: dict[str, str] = {}
    for entry in entries:
        video = entry.text("video_id")
        named[video] = entry.text("video_path") if "video_path" in entry else video
        questions[video] += entry.entries("conversations") if "conversations" in entry else [entry]
    for video, asked in questions.items():
        path = find_any(folders, [video]) or find_video(folders, named[video])
        by_name = isinstance(asked[0].content.get("end_time"), str)
        fps = image_fps or (NAMES_FPS if by_name else SECONDS_FPS)
        frames = _frames(path) if by_name and path else {}
        items = []
        for number, question in enumerate(asked):
            if by_name:
                at = _time_of_frame(question, frames, fps) if path else Fraction(0)
            else:
                at = question.seconds("end_time") - starts.get(video, Fraction(0))
                if at < 0:
                    raise question.wrong(
                        "end_time", f"a time that is not before the clip's start, {starts[video]} s"
                    )
            items.append(_item(question, f"{file.stem}/{video}/{number}", at))
        yield Video(f"{file.stem}/{video}", path, tuple(items), fps)


def _item(question: Entry, name: str, at: Fraction) -> Item:
    task = question.text("answer_type") if "answer_type" in question else "all"
    words = question.text("question")
    return Item(name, task, JUDGED, question.text("answer"), words, (at,))


def _clip_starts(file: Path) -> dict[str, Fraction]:
    """Second of the source video at which each clip starts, from a file beside this one; empty
    without it."""
    clips = file.with_name(CLIPS.get(file.name, file.name))
    if clips == file or not clips.is_file():
        return {}
    return {
        entry.text("video_id"): entry.seconds("start_time")
        for entry in entries_of(read_json(clips), str(clips))
    }


def _frames(folder: Path) -> dict[str, int]:
    """Index of each image of a folder, by its name."""
    images = (
        sorted((path for path in folder.iterdir() if is_image(path)), key=natural_order)
        if folder.is_dir()
        else []
    )
    return {path.name: place for place, path in enumerate(images)}


def _time_of_frame(question: Entry, frames: dict[str, int], fps: Fraction) -> Fraction:
    name = question.text("end_time")
    if name not in frames:
        raise question.wrong(
            "end_time", "seconds, or the name of an image in the folder of its video"
        )
    return frames[name] / fps
