"""A short clip with questions and answers: the fixture of the demo and the tests."""

from __future__ import annotations

import json
from pathlib import Path

from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import Style, ThingStream, make_stream, shifted
from vicort.export.tiny.world_questions import Asked, all_questions

SEED = 1
THINGS = 5
SIZE = (320, 240)  # pixels, width and height
FPS = 25
BITRATE = 45_000  # bits per second
STYLE = Style(level=70, contrast=25, strength=6)


def demo_stream() -> ThingStream:
    return shifted(
        make_stream(SEED, THINGS, SIZE[0] / SIZE[1], tail=2.0, stay=(2.5, 4.0), gap=(0.5, 2.0)),
        seconds=1.0,
    )


def make_demo(folder: Path) -> None:
    """Write shapes.mp4 and shapes.json into `folder`.

    The JSON has the things with their times in seconds, and questions as {"at", "question",
    "answer"}: while each thing is visible, and at the end.
    """
    stream = demo_stream()
    write_video(
        folder / "shapes.mp4",
        stream,
        SIZE,
        FPS,
        bitrate=BITRATE,
        style=STYLE,
        options={"preset": "slow"},
    )
    asked: list[tuple[float | None, Asked]] = []
    for index, thing in enumerate(stream.things):
        # a unit begins each second: the last frame seen is half a second older
        at = int(thing.end) - 0.01
        seen = stream.things[: index + 1]
        asked += [
            (at, each)
            for each in all_questions(seen, thing)
            if each.kind == "now" or (each.kind == "color" and each.about == index)
        ]
    asked += [
        (None, each)
        for each in all_questions(stream.things, None)
        if each.about is not None or each.kind in ("first", "now")
    ]
    shown = [
        {key: getattr(thing, key) for key in ("shape", "color", "start", "end")}
        for thing in stream.things
    ]
    questions = [
        {"at": at, "question": each.question, "answer": each.answer}
        for at, each in asked
        if each.kind != "way"
    ]
    sidecar = {"duration": stream.duration, "things": shown, "questions": questions}
    (folder / "shapes.json").write_text(json.dumps(sidecar, indent=1) + "\n")
