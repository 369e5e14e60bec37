"""What standing questions answered over a stream: for each alert a row of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from vicort.runtime.alerts.rule import AlertRule, Hysteresis
from vicort.runtime.core import UNIT_FRAMES, Answer, Constraint, Event, Question, Spoken
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

YES, NO = "yes", "no"
DIGITS = 4  # of a probability in a record


@dataclass(frozen=True)
class Standing:
    """How the alerts of a stream are asked. All of them are asked at the same moments."""

    shapes: tuple[str, ...]  # an alert each
    every: Fraction  # seconds of stream between two askings
    window: Fraction  # seconds before an asking that its question reads

    def questions(self, at: Fraction) -> Iterator[Question]:
        since = max(Fraction(0), at - self.window)
        for shape in self.shapes:
            text = f"was there a {shape}?"
            yield Question(text, at, since=since, constraint=Constraint(choices=(YES, NO)))

    def is_due(self, unit: int, fps: Fraction) -> bool:
        """Whether it is asked when the unit of that number is complete."""
        seconds = UNIT_FRAMES / fps
        return unit * seconds // self.every != (unit + 1) * seconds // self.every


@dataclass
class Readings:
    """Of one stream."""

    # seconds, of the newest frame that each asking saw
    at: list[float] = field(default_factory=list)
    # of each alert: the probability of yes at each asking
    probabilities: dict[str, list[float]] = field(default_factory=dict)

    def add(self, at: Fraction, probabilities: Mapping[str, float]) -> None:
        self.at.append(round(float(at), 6))
        for name, probability in probabilities.items():
            self.probabilities.setdefault(name, []).append(round(probability, DIGITS))

    def fired(self, name: str, rule: AlertRule) -> list[float]:
        """Seconds of the evidence of each firing of an alert."""
        life = Hysteresis(rule)
        changes = (
            life.add(Fraction(at), probability)
            for at, probability in self.awake(name, rule.below, rule.fire.of + rule.clear.of)
        )
        return [float(each.at) for each in changes if each is not None and each.state == "fired"]

    def awake(self, name: str, low: float, reach: int) -> Iterator[tuple[float, float]]:
        """The readings of an alert, but those that follow `reach` others below `low`.

        After `reach` of them, as many as a rule looks at, an alert has cleared and has no reading
        left that could make it fire: more of them change nothing. Only without a cooldown.
        """
        quiet = 0
        for at, probability in zip(self.at, self.probabilities[name], strict=True):
            quiet = quiet + 1 if probability < low else 0
            if quiet <= reach:
                yield at, probability

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "probabilities": self.probabilities}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["at"], content["probabilities"])


OpenSession = Callable[[Callable[[Event], None] | None], AbstractContextManager[Session]]


def read_alerts(path: Path, standing: Standing, open_session: OpenSession) -> Readings:
    """Watch a file with a session, and ask every alert whenever enough units are complete.

    Of the file the frames at multiples of the session's rate are taken. The stream stands still
    while its questions are answered.
    """
    readings = Readings()
    asked: list[tuple[Fraction, list[Future[Answer]]]] = []  # one moment at most
    with open_session(None) as session, open_source(str(path), live=False) as source:
        fps = Fraction(str(session.rate))
        for number, frame in enumerate(source.frames(lambda at: (at * fps).denominator == 1)):
            unit, second = divmod(number, UNIT_FRAMES)
            if second and standing.is_due(unit, fps):
                # before the frame comes: they become due together, when the next one does
                futures = [session.submit(each) for each in standing.questions(frame.time)]
                asked.append((frame.time, futures))
            session.push(frame)
            if asked and asked[0][0] < frame.time:
                readings.add(*_read(standing, *asked.pop()))
        session.finish(source.ending)
        if asked:
            readings.add(*_read(standing, *asked.pop()))
    return readings


def _read(
    standing: Standing, at: Fraction, futures: Sequence[Future[Answer]]
) -> tuple[Fraction, dict[str, float]]:
    answers = [future.result() for future in futures]
    return at, {shape: _yes(answer) for shape, answer in zip(standing.shapes, answers, strict=True)}


def _yes(answer: Answer) -> float:
    return (answer.choices or {})[YES]


def hear_alerts(
    path: Path, shapes: Sequence[str], instruction: str, open_session: OpenSession
) -> dict[str, list[float]]:
    """Watch a file with a session that speaks by itself: of each alert the seconds at which a
    report names its shape."""
    said: list[Spoken] = []

    def note(event: Event) -> None:
        if isinstance(event, Spoken):
            said.append(event)

    with open_session(note) as session, open_source(str(path), live=False) as source:
        session.submit(Question(instruction, Fraction(0)))
        for frame in source.frames(session.wants):
            session.push(frame)
        session.finish(source.ending)
    return {
        shape: [float(each.at) for each in said if shape in each.text.split()] for shape in shapes
    }
