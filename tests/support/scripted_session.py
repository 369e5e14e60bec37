"""A session that takes every frame, notes what it sees, and says what a script says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from fractions import Fraction
from functools import partial
from typing import Any, Self

from vicort.benchmarks.evaluation.watching import Candidate
from vicort.runtime.core import Answer, Frame, Question, Summary
from vicort.runtime.errors import VicortError

# the question and the times of all frames seen so far
Script = Callable[[Question, list[Fraction]], str]


def scripted(
    script: Script, opened: list[ScriptedSession] | None = None, fails_at: Fraction | None = None
) -> Candidate:
    return Candidate(partial(ScriptedSession, script, opened, fails_at))


class ScriptedSession:
    """`opened` collects every session of a script, in order."""

    def __init__(
        self,
        script: Script,
        opened: list[ScriptedSession] | None = None,
        fails_at: Fraction | None = None,
    ) -> None:
        """fails_at: seconds; a frame from then on is more than it can hold."""
        self.script, self.fails_at = script, fails_at
        self.seen: list[Fraction] = []
        self.asked: list[tuple[Question, int]] = []  # each with how many frames were seen then
        self.now = Fraction(0)
        self.finished = self.closed = self.told_motion = False
        self.ending: Any = None  # that `finish` was given
        if opened is not None:
            opened.append(self)

    def wants(self, at: Fraction) -> bool:
        assert at >= self.now, "time goes on"
        self.now = at
        return True

    def push(self, frame: Frame) -> None:
        if self.fails_at is not None and frame.time >= self.fails_at:
            raise VicortError("memory is full: give more")
        self.seen.append(frame.time)
        self.told_motion = frame.motion is not None

    def submit(self, question: Question) -> Future:
        self.asked.append((question, len(self.seen)))
        answer: Future = Future()
        assert question.at is not None
        assert question.at <= self.now or self.finished, "would wait for ever"
        seen = self.seen[-1] if self.seen else Fraction(0)
        text = self.script(question, list(self.seen))
        answer.set_result(
            Answer(
                question.id,
                question.at,
                seen,
                question.text,
                text,
                1.5,
                1,
                (),
                len(self.seen),
                16,
                None,
            )
        )
        return answer

    def finish(self, ending: Any = None) -> None:
        self.finished, self.ending = True, ending

    def summary(self) -> Summary:
        frames = len(self.seen)
        return Summary(
            "scripted",
            frames,
            0,
            0,
            1.0,
            float(frames),
            {},
            1.0,
            None,
            {"device": 0, "host": 0},
            {"device": 1.0, "host": 0.0},
            0.0,
            0,
            1.0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.closed = True
