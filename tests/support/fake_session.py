"""A session without engines: it samples, counts, and answers with what it counted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from vicort.runtime.core import Answer, ChunkEvent, Frame, Question, Summary
from vicort.runtime.errors import QuestionError
from vicort.runtime.memory.budget import FittedSystem
from vicort.runtime.policies.system import load_system
from vicort.runtime.sources.sampler import Sampler

LONGEST = 40  # characters of a question
UNKNOWN = "rocket"  # a word that it does not know


class FakeEngines:
    """In place of EngineSet: nothing is loaded, the set is its folder."""

    opened: list[Path] = []  # noqa: RUF012 (a log, cleared by the test)

    @classmethod
    def open(
        cls, folder: Path, *, progress: Callable[[int, int], object], **options: object
    ) -> nullcontext[Path]:
        cls.opened.append(folder)
        progress(4, 4)
        return nullcontext(folder)


class FakeSession:
    """The answer to any question is `N frames`, given in two tokens; each frame is a chunk."""

    opened: list[FakeSession] = []  # noqa: RUF012 (a log, cleared by the test)

    def __init__(self, engine_dir: Path, system: str, options: dict[str, Any]) -> None:
        self.engine_dir = engine_dir
        self.system = system
        self.options = options
        fps = options["fps"]
        self._sampler = Sampler(None if fps == "source" else fps or 2)
        self.times: list[Fraction] = []
        self.due: list[tuple[Question, Callable[[str], None], Future]] = []
        self.calls: list[str] = []
        self.rate = 2.0
        self.fitted = FittedSystem(
            load_system(system).with_(memory={"device_mb": 1, "host_mb": 0}), units=60.0
        )
        FakeSession.opened.append(self)

    @classmethod
    def open(cls, engine_dir: Path, system: str, **options: Any) -> Self:
        return cls(engine_dir, system, options)

    def submit(self, question: Question, on_token: Callable[[str], None]) -> Future:
        if len(question.text) > LONGEST:
            raise QuestionError(
                f"the question has {len(question.text)} letters, this engine takes {LONGEST}: "
                "ask a shorter one"
            )
        answer: Future = Future()
        now = question.at is not None and question.at <= self.now
        self.due.append((question, on_token, answer))
        if now or "finish" in self.calls:
            self._answer(lambda each: each is question)
        return answer

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in text.split() if word == UNKNOWN]

    @property
    def now(self) -> Fraction:
        return self.times[-1] if self.times else Fraction(0)

    def wants(self, at: Fraction) -> bool:
        self._answer(lambda question: question.at is not None and question.at < at)
        return self._sampler.wants(at)

    def push(self, frame: Frame) -> None:
        assert self._sampler.accepts(frame.time)
        self.times.append(frame.time)
        self.options["on_event"](
            ChunkEvent(len(self.times) - 1, 1, frame.time, frame.time, 16, 8, 1.5)
        )
        if trace := self.options["trace"]:
            trace.span("vision", "chunk", 1000 * len(self.times), 1000 * len(self.times) + 500)

    def settle(self) -> None:
        self.calls.append("settle")

    def inspect(self) -> SimpleNamespace:
        return SimpleNamespace(chunk_frames=16)

    def finish(self, ending: Any = None) -> None:
        self.calls.append("finish")
        self._answer(lambda question: True)

    def text_of(self, question: Question) -> str:
        return f"{len(self.times)} frames"

    def probability_of(self, question: Question) -> float:
        return 1.0

    def _answer(self, is_due: Callable[[Question], bool]) -> None:
        now, self.due = (
            [item for item in self.due if is_due(item[0])],
            [item for item in self.due if not is_due(item[0])],
        )
        for question, on_token, answer in now:
            seen = self.times[-1] if self.times else Fraction(0)
            for token in (str(len(self.times)), " frames"):
                on_token(token)
            text = self.text_of(question)
            given = Answer(
                question.id,
                question.at or seen,
                seen,
                question.text,
                text,
                1.0,
                2,
                ((Fraction(0), seen),),
                len(self.times),
                0,
                None,
                self.probability_of(question),
                self.probability_of(question),
            )
            self.options["on_event"](given)
            answer.set_result(given)

    def summary(self) -> Summary:
        self.calls.append("summary")
        frames = len(self.times)
        return Summary(
            self.system,
            frames,
            0,
            frames,
            1.0,
            float(frames),
            {"vision": 1.0},
            1.0,
            None,
            {"device": 0, "host": 0},
            {"device": 1.0, "host": 0.0},
            0.0,
            0,
            1.0,
        )

    def cancel(self) -> None:
        self.calls.append("cancel")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.calls.append("close")
