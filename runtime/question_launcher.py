"""How a question gets in between the chunks: its snapshot, and the work of its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from vicort.runtime.answer_run import answer as answer_question
from vicort.runtime.answering import Answerer, Snapshot
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.core import Freshness
from vicort.runtime.errors import DeviceError
from vicort.runtime.event_emitter import EventEmitter
from vicort.runtime.frame_intake import FrameIntake
from vicort.runtime.ordinary_snapshots import OrdinarySnapshots
from vicort.runtime.question_queue import QuestionQueue
from vicort.runtime.stages.prefill import Prefill
from vicort.runtime.stream_health import StreamHealth

_STREAM = ""  # the conversation of all questions that become part of the stream


class QuestionLauncher:
    """Takes the snapshot of each question that is due, and starts the work of its answer.

    `launch_all` and `give_up` are called only by the thread that moves the stream.
    """

    def __init__(
        self,
        answerer: Answerer,
        prefill: Prefill,
        intake: FrameIntake,
        questions: QuestionQueue,
        health: StreamHealth,
        events: EventEmitter,
        drivers: Executor,
        freshness: Freshness,
    ) -> None:
        """drivers: runs the work of answers that do not become part of the stream."""
        self.freshness = freshness  # of the questions that are launched from now on
        self._text_joins = answerer.memory.system.text.joins
        self._answerer = answerer
        self._prefill = prefill
        self._intake = intake
        self._questions = questions
        self._health = health
        self._events = events
        self._drivers = drivers
        self._ordinary = OrdinarySnapshots()

    def launch_all(self, due: Sequence[AskedQuestion]) -> None:
        """Launch these questions, in this order. If one cannot be launched, its future fails."""
        for asked in due:
            try:
                asked.check_wanted()
                self._launch(asked)
            except BaseException as error:
                asked.fail(error)
                self._end(asked)
                if not isinstance(error, Exception):
                    raise

    def give_up(self, left: Sequence[AskedQuestion], error: BaseException) -> None:
        """These questions are not launched: their futures fail with this error."""
        for asked in left:
            asked.fail(error)
            self._end(asked)

    def _launch(self, asked: AskedQuestion) -> None:
        """Take the question's snapshot: of what is in memory now, or after all frames until its
        time; never before the snapshot of the turn that it follows."""
        asked.since = time.perf_counter_ns()
        if asked.question.at is None:
            asked.question = replace(asked.question, at=self._questions.now)
        until = max(asked.question.at or self._questions.now, self._questions.now)
        stream = self._prefill.stream
        turn = _STREAM if self._text_joins else asked.question.conversation
        now = self.freshness == "now" and self._sees_enough(turn)
        newest, forked = (None, False) if now else self._intake.enter_until(until)
        take: Callable[[], Snapshot] = partial(
            self._answerer.snapshot_in_stream, asked.question, newest, forked
        )
        if now and turn not in self._ordinary:
            run = stream.run_first
        else:
            run, take = stream.run, self._ordinary.counted(turn, take)
        if self._text_joins:  # the answer becomes part of the stream: chunks wait for it
            run(self._answer, asked, take, None)
            return
        seen = self._intake.chunk_number if forked else -1
        before = self._answerer.conversations.enter(asked, self._questions.now, seen)
        snapshot = run(take)
        self._drivers.submit(self._answer, asked, snapshot.enqueued, before)

    def _sees_enough(self, turn: str | None) -> bool:
        """Whether what is in memory is anything, and no less than the turn before saw."""
        newest = self._prefill.newest_chunk
        if self._text_joins:
            return newest >= 0
        waits = turn in self._ordinary or newest < self._answerer.conversations.forked(turn)
        return newest >= 0 and not waits

    def _answer(
        self, asked: AskedQuestion, snapshot: Callable[[], Snapshot], before: AskedQuestion | None
    ) -> None:
        """One answer from its snapshot to its event.

        before: the question before in the same conversation. Runs on a thread of the drivers, or in
        the prefill stream's own work where the answer becomes part of the stream.
        """
        try:
            taken = snapshot()
            if before:
                before.ended.wait()
            answer = answer_question(self._answerer, asked, taken)
            self._events.answered(answer)
            self._questions.make_room(asked)
            asked.give(answer)
        except BaseException as error:
            self._questions.make_room(asked)
            asked.fail(error)
            with suppress(DeviceError):  # which all open questions get
                self._health.check_device()
            if not isinstance(error, Exception):
                raise
        finally:
            self._end(asked)

    def _end(self, asked: AskedQuestion) -> None:
        self._answerer.conversations.leave(asked)
        self._questions.end(asked)
