"""A standing question that is asked whenever the scene changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction

from vicort.runtime.core import UNIT_FRAMES, Answer, ChunkEvent, Event, Question
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.change_trigger import ChangeTrigger
from vicort.runtime.policies.system import System

SHOWS_CHANGES = "timechat-online"  # the system that errors name


class ChangeAsker:
    """Asks one question of one stream at each change of its scene, by the rule `changes` of the
    system (`ChangeTrigger`).

    `event` takes the events of the session and may be its on_event; `advance` asks. Ids of the
    answers are the question's and the time of the change in seconds, such as `change@12.5`.
    """

    def __init__(
        self,
        question: Question,
        system: System,
        *,
        waits: bool = True,
        chunk_frames: int | None = None,
    ) -> None:
        """question: its time is not used. waits: whether `advance` waits for the previous answer,
        so that a file gets the same questions on every machine; otherwise changes that come before
        it is complete are skipped, and counted. chunk_frames: of the engines, for systems that set
        none.

        Raises ConfigError if what the system keeps says nothing about changes.
        """
        check_shows_changes(system, chunk_frames)
        self._question = question
        self._waits = waits
        self._trigger = ChangeTrigger(system.changes.kept, Fraction(system.changes.apart))
        self._changes: deque[Fraction] = deque()  # seconds, those not asked about yet
        self._answer: Future[Answer] | None = None
        self.skipped = 0  # changes at which it was not asked

    def event(self, event: Event) -> None:
        """Take an event of the session; only a ChunkEvent matters. Any thread, one at a time."""
        if isinstance(event, ChunkEvent) and self._trigger.changed(
            event.end, event.kept, event.tokens
        ):
            self._changes.append(event.end)

    def advance(self, submit: Callable[[Question], Future[Answer]]) -> list[Future[Answer]]:
        """Ask about the changes since the last call; returns the new answers.

        submit: of the session, whose thread that pushes frames calls this, after a frame was pushed
        and after the end. With `Session.settle` before it, a change is asked about before the next
        frame comes, and its answer sees nothing later. Raises the error of the previous answer if
        it waits for it, and what `submit` raises.
        """
        asked = []
        while self._changes:
            at = self._changes.popleft()
            if self._answer and not self._answer.done() and not self._waits:
                self.skipped += 1
                continue
            if self._answer and self._waits:
                self._answer.result()
            label = f"{self._question.id or 'change'}@{float(at):g}"
            self._answer = submit(replace(self._question, at=at, id=label))
            asked.append(self._answer)
        return asked


def check_shows_changes(system: System, chunk_frames: int | None = None) -> None:
    """Raises ConfigError if the share of tokens that the system keeps of a chunk is the same
    whatever changes.

    chunk_frames: of the engines, for systems that set none; None = several units.
    """
    frames = system.chunk_frames or chunk_frames or 2 * UNIT_FRAMES
    if system.drop.shows_changes(frames // UNIT_FRAMES):
        return
    size = f" of {UNIT_FRAMES} frames" if frames == UNIT_FRAMES else ""
    raise ConfigError(
        f"system {system.name} keeps the same share of every chunk{size} (drop "
        f"{system.drop.policy}), so it cannot say when the scene changes: take one that drops what "
        f"stays the same, such as --system {SHOWS_CHANGES}"
    )
