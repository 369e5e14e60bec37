"""Benchmarks of a few questions, in each format as its users have it, about small real files of the
synthetic world."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from support.videos import write_image

from vicort.export.tiny.painter import Painter
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import StreamPlan, ThingStream, make_stream

SIZE, FPS = (160, 120), 4
COLORS = ["red", "green", "blue", "yellow", "white", "purple"]
SEED = 10_000_123  # never trained on
PLAN = StreamPlan(stay=(3, 3), gap=(1, 1))


def make_film(path: Path, number: int = 0, things: int = 3) -> ThingStream:
    """A file with `things` things, each there for 3 seconds, a second apart, then 2.5 of nothing:
    58 frames, of which 29 are taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = make_stream(SEED + number, things, SIZE[0] / SIZE[1], lead=1, tail=2.5, plan=PLAN)
    write_video(path, stream, SIZE, FPS)
    return stream


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def options_of(stream: ThingStream, thing: int) -> tuple[list[str], int]:
    """Four colours in a fixed order, and which of them is the thing's."""
    color = stream.things[thing].color
    options = [each for each in COLORS if each != color][:3]
    place = thing % 4
    return [*options[:place], color, *options[place:]], place


def clock(seconds: float) -> str:
    return f"{int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def after(stream: ThingStream, thing: int) -> int:
    """A whole second at which the thing has been seen."""
    return int(stream.things[thing].start) + 2


def streamingbench(folder: Path, films: int = 2) -> tuple[list[Path], list[ThingStream]]:
    """real.json, its CSV, sqa.json and proactive.json, and their videos below folder/videos."""
    streams = [make_film(folder / "videos" / f"sample_{n + 1}_real.mp4", n) for n in range(films)]
    real, rows, series, proactive = [], [], [], []
    for number, stream in enumerate(streams, 1):
        path, questions = f"./videos/sample_{number}_real.mp4", []
        for thing, each in enumerate(stream.things):
            options, place = options_of(stream, thing)
            question = {
                "task_type": ["Object Perception", "Counting", "Attribute Perception"][thing],
                "question": f"What color was the {each.shape}?",
                "time_stamp": clock(after(stream, thing)),
                "answer": "ABCD"[place],
                "options": options
                if number % 2
                else [f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=True)],
            }
            questions.append(question | {"required_ability": "episodic memory"})
            identity = {
                "question_id": f"Real-Time Visual Understanding_sample_{number}_{thing + 1}"
            }
            rows.append(
                identity
                | question
                | {
                    "options": str(question["options"]),
                    "frames_required": "1",
                    "temporal_clue_type": "now",
                }
            )
        common = {"time": "[0:00:00 - 0:00:10]", "video_categories": "shapes", "video_path": path}
        real.append({**common, "questions": questions})
        series.append([{**common, "questions": [question]} for question in questions])
        asked = {
            "task_type": "Proactive Output",
            "question": f"When the {stream.things[1].shape} appears, output 'now'.",
            "time_stamp": clock(stream.things[1].start - 3),
            "ground_truth_time_stamp": clock(stream.things[1].start),
            "ground_truth_output": "now",
        }
        proactive.append({**common, "questions": [asked]})
    with (folder / "Real_Time_Visual_Understanding.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files = [
        write_json(folder / f"{name}.json", each)
        for name, each in (("real", real), ("sqa", series), ("proactive", proactive))
    ]
    return [*files, folder / "Real_Time_Visual_Understanding.csv"], streams


def ovo_bench(folder: Path) -> tuple[Path, ThingStream]:
    """ovo.json with one entry of each of the 12 tasks, about folder/src_videos/shapes/film.mp4."""
    stream = make_film(folder / "src_videos" / "shapes" / "film.mp4")
    video, entries = "shapes/film.mp4", []
    for number, task in enumerate(("EPM", "ASI", "HLD", "OCR", "ACR", "ATR", "STU", "FPD", "OJR")):
        options, right = options_of(stream, number % 3)
        entries.append(
            {
                "id": number,
                "task": task,
                "video": video,
                "realtime": after(stream, number % 3) + 0.37,
                "question": f"what color was the {stream.things[number % 3].shape}?",
                "answer": options[right],
                "options": options,
                "gt": right,
            }
        )
    entries += [
        {
            "id": 9,
            "task": "REC",
            "video": video,
            "activity": "show a shape",
            "test_info": [{"realtime": 3.5, "count": 1}, {"realtime": 7, "count": 2}],
        },
        {
            "id": 10,
            "task": "SSR",
            "video": video,
            "tutorial": "Shapes",
            "test_info": [
                {"realtime": 2, "step": "show a shape", "type": 1},
                {"realtime": 4.5, "step": "show a shape", "type": 0},
            ],
        },
        {
            "id": 11,
            "task": "CRR",
            "video": video,
            "question": "what came last?",
            "answer": "a shape",
            "ask_time": 3,
            "clue_time": 9,
            "test_info": [{"realtime": 4, "type": 0}, {"realtime": 10.5, "type": 1}],
        },
    ]
    return write_json(folder / "ovo.json", entries), stream


def rvs(folder: Path, form: str = "seconds") -> tuple[Path, ThingStream]:
    """Open questions that the embedded model can answer. form: seconds (of the source, RVS-Ego),
    frames (RVS-Movie), rekv, or rekv-npy (ReKV's RVS-Movie: an array of frames, one a second)."""
    if form == "rekv-npy":
        stream = make_stream(SEED, 3, SIZE[0] / SIZE[1], lead=1, tail=2.5, plan=PLAN)
        write_array(folder / "frames" / "film.npy", stream)
    elif form == "frames":
        stream = make_stream(SEED, 3, SIZE[0] / SIZE[1], lead=1, tail=2.5, plan=PLAN)
        write_frames(folder / "frames" / "film", stream)
    else:
        stream = make_film(folder / "frames" / "film.mp4")
    asked = []
    for thing, each in enumerate(stream.things):
        at: Any = after(stream, thing) + (100 if form == "seconds" else 0)
        if form == "frames":
            at = f"shot_{2 * after(stream, thing):04}_img_0.jpg"
        kind = "color" if thing else "first"
        question = {
            "question": f"what color was the {each.shape}?",
            "answer": f"The {each.color}.",
            "answer_type": kind,
        }
        asked.append(
            {"id": thing, "video_id": "film", "start_time": at, "end_time": at, "duration": 10}
            | question
        )
    if form.startswith("rekv"):
        name = "film.npy" if form == "rekv-npy" else "film.mp4"
        turns = [
            {key: value for key, value in each.items() if key not in ("id", "video_id")}
            for each in asked
        ]
        return write_json(
            folder / "ego4d_oe.json",
            [{"video_id": "film", "video_path": f"videos/{name}", "conversations": turns}],
        ), stream
    if form == "seconds":
        write_json(
            folder / "rvs_ego.json", [{"video_id": "film", "start_time": 100, "end_time": 120}]
        )
    return write_json(
        folder / ("test_qa_ego4d.json" if form == "seconds" else "test_qa_movienet.json"), asked
    ), stream


def write_array(path: Path, stream: ThingStream) -> None:
    """One frame a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    painter = Painter(stream, *SIZE)
    np.save(path, np.stack([painter.frame(second) for second in range(int(stream.duration))]))


def write_frames(folder: Path, stream: ThingStream, fps: int = 2) -> None:
    folder.mkdir(parents=True)
    painter = Painter(stream, *SIZE)
    for index in range(int(stream.duration * fps)):
        picture = np.ascontiguousarray(painter.frame(index / fps))
        write_image(folder / f"shot_{index:04}_img_0.jpg", picture, "mjpeg", "yuvj420p")


def frame_times(stream: ThingStream) -> list[Fraction]:
    """Of each frame of a film's file."""
    return [Fraction(index, FPS) for index in range(round(stream.duration * FPS))]


def streambench(folder: Path) -> tuple[Path, ThingStream]:
    """streaming_bench_v0.3.json about folder/Ego/Ego/film.mp4, and a video that is left out."""
    stream = make_film(folder / "Ego" / "Ego" / "film.mp4")
    kinds = ["OS", "LM", "OS"]
    asked = [
        {
            # both forms of a time
            "time": str(after(stream, thing)) if thing else after(stream, thing),
            "question": f"what color was the {each.shape}?",
            "answer": f"The {each.color}.",
            "class": kinds[thing],
        }
        for thing, each in enumerate(stream.things)
    ]
    info = {"video_path": "film.mp4", "class_1": "Ego", "class_2": "shapes"}
    entries = [
        {"info": info, "breakpoint": asked},
        {"info": info | {"video_path": "YxXrLCWFxTg.mp4"}, "breakpoint": asked[:1]},
    ]
    return write_json(folder / "streaming_bench_v0.3.json", entries), stream


def etbench(folder: Path) -> tuple[Path, ThingStream]:
    """etbench_txt_v1.0.json with an entry of each task that is scored and of one that is not, about
    folder/videos/shapes/film.mp4."""
    stream = make_film(folder / "videos" / "shapes" / "film.mp4")
    spans = [[float(each.start), float(each.end)] for each in stream.things]
    targets: dict[str, Any] = {
        "tvg": spans[0],
        "epm": spans[1],
        "tal": spans,
        "evs": spans[:2],
        "vhd": [spans[:1], spans[1:]],
        "tem": spans[1:],
        "dvc": spans,
    }
    entries = [
        {
            "version": 1.0,
            "idx": number,
            "task": task,
            "source": "charades_sta" if task == "tvg" else "shapes",
            "video": "shapes/film.mp4",
            "duration": float(stream.duration),
            "tgt": target,
            "q": f"When was it ({task})? Say 'start - end'.",
        }
        for number, (task, target) in enumerate(targets.items())
    ]
    return write_json(folder / "etbench_txt_v1.0.json", entries), stream


def videomme(folder: Path, form: str = "rows") -> tuple[Path, ThingStream]:
    """Three questions about folder/data/film.mp4. form: rows (of the published table), videos (the
    benchmark's form for results) or rekv."""
    stream = make_film(folder / "data" / "film.mp4")
    questions = []
    for thing, each in enumerate(stream.things):
        options, place = options_of(stream, thing)
        questions.append(
            {
                "question_id": f"001-{thing + 1}",
                "task_type": ["Attribute Perception", "OCR Problems", "Attribute Perception"][
                    thing
                ],
                "question": f"What color was the {each.shape}?",
                "options": [f"{letter}. {o}." for letter, o in zip("ABCD", options, strict=True)],
                "answer": "ABCD"[place],
            }
        )
    video = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law"}
    if form == "rows":
        rows = [video | {"url": "", "videoID": "film"} | each for each in questions]
        return write_json(folder / "videomme.json", rows), stream
    if form == "videos":
        return write_json(
            folder / "videomme.json", [video | {"videoID": "film", "questions": questions}]
        ), stream
    turns = [
        {
            "question": each["question"],
            "choices": [option[3:] for option in each["options"]],
            "answer": each["options"]["ABCD".index(each["answer"])][3:],
            "question_type": each["task_type"],
        }
        for each in questions
    ]
    whole = {
        "video_id": "fFjv93ACGo8",
        "video_path": "/data/videomme/videos/film.mp4",
        "duration": 14.5,
        "duration_category": "short",
        "conversations": turns,
    }
    return write_json(folder / "videomme.json", [whole]), stream
