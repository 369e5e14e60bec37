"""A session whose answers follow from the pixels of the newest frame that it took."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

import numpy as np

from vicort.runtime.core import Answer, Event, Frame, Question
from vicort.runtime.errors import VicortError
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.sources.source import Wanted

WHITE = 255


def brightness(image: np.ndarray) -> float:
    """The answer to every question: yes, with the mean brightness as its probability."""
    return float(image.mean()) / WHITE


@dataclass(eq=False)
class SeeingSession:
    """It takes frames as a session does. held: answers come when `answer_held` is called. fails:
    which questions have no answer."""

    fps: float | None = 2
    held: bool = False
    fails: Callable[[Question], bool] = lambda question: False
    on_event: Callable[[Event], None] = lambda event: None
    taken: list[Frame] = field(default_factory=list)
    # each with the number of frames that were taken when it was asked
    asked: list[tuple[Question, int]] = field(default_factory=list)
    now: Fraction = Fraction(0)
    closed: bool = False

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.fps)
        self.waiting: list[tuple[Question, Future]] = []
        self.launched: list[tuple[Question, Future]] = []
        self._said: Fraction | None = None
        self._finished = False

    def wants(self, at: Fraction) -> Wanted:
        self._take(self._sampler.stayed(at))
        if self._sampler.stays(at) and self._said != at:
            self._said = at
            return Wanted.BOTH
        self._advance(at)
        return Wanted(self._sampler.wants(at))

    def push(self, frame: Frame) -> None:
        self._take(self._sampler.stayed(frame.time))
        self._advance(frame.time)
        self._take(self._sampler.sample(frame))

    def _take(self, frame: Frame | None) -> None:
        if frame:
            self.taken.append(frame)

    def _advance(self, at: Fraction) -> None:
        self.now = max(self.now, at)
        self._launch(lambda question: question.at is not None and question.at < at)

    def submit(self, question: Question, on_token: Any = None) -> Future:
        answer: Future = Future()
        self.waiting.append((question, answer))
        if self._finished or (question.at is not None and question.at <= self.now):
            self._launch(lambda each: each is question)
        return answer

    def _launch(self, is_due: Callable[[Question], bool]) -> None:
        due = [each for each in self.waiting if is_due(each[0])]
        self.waiting = [each for each in self.waiting if not is_due(each[0])]
        for question, answer in due:
            if answer.set_running_or_notify_cancel():
                self.asked.append((question, len(self.taken)))
                self.launched.append((question, answer))
        if not self.held:
            self.answer_held()

    def answer_held(self) -> None:
        launched, self.launched = self.launched, []
        for question, answer in launched:
            if self.fails(question):
                answer.set_exception(VicortError("the answer broke off: ask again"))
                continue
            given = self._answer(question)
            self.on_event(given)
            answer.set_result(given)

    def _answer(self, question: Question) -> Answer:
        number = next(number for asked, number in self.asked if asked is question)
        frame = self.taken[number - 1] if number else None
        chances = None
        if frame and question.constraint:
            yes = brightness(frame.image)
            chances = {"yes": yes, "no": 1 - yes}
        return Answer(
            question.id,
            question.at or self.now,
            frame.time if frame else None,
            question.text,
            f"brightness {brightness(frame.image):.2f}" if frame else "",
            1.0,
            1,
            ((Fraction(0), frame.time),) if frame else (),
            1,
            1,
            None,
            since=question.since,
            choices=chances,
        )

    def finish(self, ending: Any = None) -> None:
        self._finished = True
        self._launch(lambda question: True)

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in text.split() if word == "rocket"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.closed = True
        for _, answer in self.waiting:
            answer.cancel()
