"""What is drawn on a video: questions with their answers, and what the model says by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from vicort.runtime.core import Answer, Event, Spoken
from vicort.runtime.safe_text import without_controls

MAX_LETTERS = 1000  # of a question and of an answer: more is not legible on a picture
MAX_TICKS = 1_000_000  # in a second, of the times of a written video
MILLISECONDS = 1000


@dataclass(frozen=True)
class Note:
    at: Fraction  # seconds, when it was asked or said
    question: str  # "" where nobody asked
    answer: str

    @property
    def letters(self) -> int:
        return len(self.question) + len(self.answer)


class Notes:
    """Collects notes from the events of a run, and the times of the frames that it saw. Any thread
    may give events."""

    def __init__(self) -> None:
        self._notes: list[Note] = []
        self.last: Fraction | None = None  # seconds, of the newest frame
        self._ticks = MILLISECONDS

    def event(self, event: Event) -> None:
        match event:
            case Answer():
                doubt = f" (a guess: {event.probability:.2f})" if event.doubtful else ""
                self._notes.append(Note(event.at, _line(event.question), _line(event.text) + doubt))
            case Spoken():
                self._notes.append(Note(event.at, "", _line(event.text)))

    def frame(self, at: Fraction) -> None:
        self.last = at
        if self._ticks:
            ticks = math.lcm(self._ticks, at.denominator)
            self._ticks = ticks if ticks <= MAX_TICKS else 0

    @property
    def in_order(self) -> list[Note]:
        """By time; those of one time in the order of their answers."""
        return sorted(self._notes, key=lambda note: note.at)

    @property
    def ticks(self) -> int:
        """Ticks a second in which the times of all frames are whole numbers, or MAX_TICKS."""
        return self._ticks or MAX_TICKS


def _line(text: str) -> str:
    line = " ".join(without_controls(text).split())
    return line if len(line) <= MAX_LETTERS else f"{line[:MAX_LETTERS]}..."
