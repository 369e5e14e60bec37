"""What many standing yes/no questions cost: all at one moment as one batch, one after another, and
as free text; and whether a camera's frames wait for 100 of them a second.

    python -m vicort.benchmarks.studies.standing_questions \\
        --out benchmarks/results/standing_questions.json

The three ways take turns in each round, in one session that has seen a stream of the synthetic
world, system `distinct`. Questions of one moment have the same time, those one after another times
that are a microsecond apart. The camera gives 4 frames, which are 2 units, a second of the clock;
frames that come too late are dropped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import interleaved, percentiles, spread
from vicort.benchmarks.common.study import finish, study_parser, with_budget
from vicort.export.tiny.evaluation_files import HELD_OUT, LONG, evaluation_stream
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import SHAPES, StreamPlan
from vicort.runtime.core import Answer, ChunkEvent, Constraint, Event, Frame, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.session import Session

RATE = 4  # frames a second
YES_NO = Constraint(choices=("yes", "no"))
WINDOWS = {"the last 2 s": Fraction(2), "all of memory": None}
MICROSECOND = Fraction(1, 10**6)
ONE_WORD = Sampling(temperature=0.0, max_tokens=1)


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__)
    parser.add_argument("--questions", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="of the camera; 0: without it")
    options = parser.parse_args()
    engines = EngineSet.open(options.engine_dir)
    images = pictures(max(options.seconds, 60))
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
        "questions": options.questions,
        "cost": {
            name: cost(engines, images[: 60 * RATE], window, options.questions, options.rounds)
            for name, window in WINDOWS.items()
        },
    }
    if options.seconds:
        report["camera"] = {
            "no questions": camera(engines, images, 0, None),
            **{
                name: camera(engines, images, options.questions, window)
                for name, window in WINDOWS.items()
            },
        }
    return finish(report, options.out)


def pictures(seconds: int) -> list[np.ndarray]:
    """[height, width, 3] uint8 RGB, RATE a second: seven things one after another, then nothing."""
    setting = replace(LONG, name="ages", tail=seconds, look=look_without_photo, plan=StreamPlan())
    stream, look, size = evaluation_stream(setting, HELD_OUT)
    painter = Painter(stream, *size, look=look)
    return [painter.frame(number / RATE) for number in range(seconds * RATE)]


def cost(
    engines: EngineSet,
    images: Sequence[np.ndarray],
    window: Fraction | None,
    count: int,
    rounds: int,
) -> dict[str, Any]:
    """Milliseconds a question, of the clock and of all CPU threads, in each way of asking."""
    with Session(engines, with_budget("distinct"), fps=RATE) as session:
        for number, image in enumerate(images):
            session.push(Frame(image, Fraction(number, RATE), number))
        session.settle()
        ways: dict[str, Callable[[Fraction], list[Question]]] = {
            "one batch": partial(asked, count=count, window=window),
            "one after another": partial(asked, count=count, window=window, apart=MICROSECOND),
            "free text": partial(asked, count=count, window=window, constraint=None),
        }
        measured = interleaved(
            {name: partial(milliseconds, session, make) for name, make in ways.items()}, rounds + 1
        )
    return {
        name: {
            "wall ms a question": spread([wall / count for wall, _ in values[1:]]),
            "CPU ms a question": spread([cpu / count for _, cpu in values[1:]]),
        }
        for name, values in measured.items()
    }


def asked(
    at: Fraction,
    count: int,
    window: Fraction | None,
    *,
    apart: Fraction = Fraction(0),
    constraint: Constraint | None = YES_NO,
) -> list[Question]:
    """Questions about stream time `at`, in seconds, and what came in the window before it."""
    since = None if window is None else max(Fraction(0), at - window)
    return [
        Question(
            f"was there a {SHAPES[number % len(SHAPES)]}?",
            at + (number + 1) * apart if apart else at + MICROSECOND,
            sampling=ONE_WORD,
            since=since,
            constraint=constraint,
        )
        for number in range(count)
    ]


def milliseconds(
    session: Session, make: Callable[[Fraction], list[Question]]
) -> tuple[float, float]:
    """(of the clock, of all CPU threads) until all are answered. They become due together: when
    the session hears of a later time."""
    answers = [session.submit(question) for question in make(session.now)]
    began, cpu = time.perf_counter(), time.process_time()
    session.wants(session.now + Fraction(1, 1000))
    for answer in answers:
        answer.result()
    return (time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3


def camera(
    engines: EngineSet, images: Sequence[np.ndarray], count: int, window: Fraction | None
) -> dict[str, Any]:
    """A camera of the clock: how late its chunks are in memory, and answers come."""
    chunks: list[float] = []
    firsts: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, ChunkEvent):
            chunks.append(event.wall_ms)
        if isinstance(event, Answer):
            firsts.append(event.ttft_ms)

    cpu = time.process_time()
    with Session(
        engines, with_budget("distinct"), fps=RATE, on_lag="drop-oldest", on_event=note
    ) as session:
        for number, at in enumerate(paced(len(images))):
            if count and number and number % RATE == 0:
                for question in asked(at, count, window):
                    session.submit(question)
            session.push(Frame(images[number], at, number))
        session.finish()
        dropped = session.summary().dropped
    return {
        "seconds": len(images) / RATE,
        "answers": len(firsts),
        "frames dropped": dropped,
        "ms from a chunk's last frame until it is in memory": percentiles(chunks),
        "ms from a question to its answer": percentiles(firsts) if firsts else None,
        "CPU seconds": round(time.process_time() - cpu, 2),
    }


def paced(count: int) -> Iterator[Fraction]:
    """The times of frames, in seconds, each when the clock gets there."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        yield Fraction(number, RATE)


if __name__ == "__main__":
    raise SystemExit(main())
