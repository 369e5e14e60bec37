"""How a question gets in between the chunks: its snapshot, and the work of its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from vicort.runtime.answer_run import answer as answer_question
from vicort.runtime.answering import Answerer, Snapshot
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.choice_run import ChoiceRun, answers_together
from vicort.runtime.core import Answer, Freshness
from vicort.runtime.errors import DeviceError
from vicort.runtime.event_emitter import EventEmitter
from vicort.runtime.frame_intake import FrameIntake
from vicort.runtime.ordinary_snapshots import OrdinarySnapshots
from vicort.runtime.question_queue import QuestionQueue
from vicort.runtime.stages.prefill import Prefill
from vicort.runtime.stream_health import StreamHealth

Taken = Callable[[], list[Snapshot | Exception]]
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
        """Launch these questions, in this order; those with choices that are about the same moment
        together. If one cannot be launched, its future fails."""
        for group in self._groups(due):
            wanted = [asked for asked in group if not asked.cancelled]
            try:
                self.give_up([asked for asked in group if asked.cancelled], CancelledError())
                if wanted:
                    self._launch(wanted)
            except BaseException as error:
                self.give_up(wanted, error)
                if not isinstance(error, Exception):
                    raise

    def _groups(self, due: Sequence[AskedQuestion]) -> Iterator[list[AskedQuestion]]:
        """Questions that follow one another, are about one moment and can be answered in one run;
        every other question alone."""
        group: list[AskedQuestion] = []
        for asked in due:
            together = ChoiceRun.takes(self._answerer, asked.question)
            if group and not (together and asked.question.at == group[-1].question.at):
                yield group
                group = []
            group.append(asked)
            if not together:
                yield group
                group = []
        if group:
            yield group

    def give_up(self, left: Sequence[AskedQuestion], error: BaseException) -> None:
        """These questions are not launched: their futures fail with this error."""
        for asked in left:
            self._answerer.gates.forget(asked.question)
            self._questions.make_room(asked)
            asked.fail(error)
            self._end(asked)

    def _launch(self, group: list[AskedQuestion]) -> None:
        """Take the questions' snapshots: of what is in memory now, or after all frames until their
        time; never before the snapshot of the turn that one follows."""
        since = time.perf_counter_ns()
        for asked in group:
            asked.since = since
            if asked.question.at is None:
                asked.question = replace(asked.question, at=self._questions.now)
        question = group[0].question
        until = max(question.at or self._questions.now, self._questions.now)
        stream = self._prefill.stream
        turn = _STREAM if self._text_joins else question.conversation
        now = self.freshness == "now" and self._sees_enough(turn)
        newest, forked = (None, False) if now else self._intake.enter_until(until)
        questions = [asked.question for asked in group]
        take: Taken = partial(self._answerer.snapshots_in_stream, questions, newest, forked)
        if now and turn not in self._ordinary:
            run = stream.run_first
        else:
            run, take = stream.run, self._ordinary.counted(turn, take)
        if self._text_joins:  # the answer becomes part of the stream: chunks wait for it
            run(self._answer, group[0], take, None)
            return
        seen = self._intake.chunk_number if forked else -1
        before = self._answerer.conversations.enter(group[0], self._questions.now, seen)
        taken = run(take).enqueued
        if ChoiceRun.takes(self._answerer, question):
            self._drivers.submit(self._answer_together, group, taken)
        else:
            self._drivers.submit(self._answer, group[0], taken, before)

    def _sees_enough(self, turn: str | None) -> bool:
        """Whether what is in memory is anything, and no less than the turn before saw."""
        newest = self._prefill.newest_chunk
        if self._text_joins:
            return newest >= 0
        waits = turn in self._ordinary or newest < self._answerer.conversations.forked(turn)
        return newest >= 0 and not waits

    def _answer(
        self,
        asked: AskedQuestion,
        snapshots: Taken,
        before: AskedQuestion | None,
    ) -> None:
        """One answer from its snapshot to its event.

        before: the question before in the same conversation. Runs on a thread of the drivers, or in
        the prefill stream's own work where the answer becomes part of the stream.
        """
        with self._ending(asked):
            (taken,) = snapshots()
            if isinstance(taken, Exception):
                raise taken
            if before:
                before.ended.wait()
            self._give(asked, answer_question(self._answerer, asked, taken))

    def _answer_together(self, group: list[AskedQuestion], snapshots: Taken) -> None:
        """The answers of questions with choices about one moment, from their snapshots to their
        events. Runs on a thread of the drivers."""
        left = list(group)
        stopped: BaseException | None = None  # by what an asker's function raised
        try:
            for asked, answer in answers_together(self._answerer, group, snapshots()):
                left.remove(asked)
                try:
                    with self._ending(asked):
                        if isinstance(answer, Exception):
                            raise answer
                        asked.check_wanted()
                        if answer.asked:
                            asked.token(answer.text)
                        self._give(asked, answer)
                except BaseException as error:  # noqa: BLE001 - raised when the others are answered
                    stopped = stopped or error
        except BaseException as error:
            self.give_up(left, error)
            with suppress(DeviceError):  # which all open questions get
                self._health.check_device()
            if not isinstance(error, Exception):
                raise
        if stopped:
            raise stopped

    @contextmanager
    def _ending(self, asked: AskedQuestion) -> Iterator[None]:
        """The last work of a question, which fails with what this raises."""
        try:
            yield
        except BaseException as error:
            self._answerer.gates.forget(asked.question)
            self._questions.make_room(asked)
            asked.fail(error)
            with suppress(DeviceError):  # which all open questions get
                self._health.check_device()
            if not isinstance(error, Exception):
                raise
        finally:
            self._end(asked)

    def _give(self, asked: AskedQuestion, answer: Answer) -> None:
        self._events.answered(answer)
        self._questions.make_room(asked)
        asked.give(answer)

    def _end(self, asked: AskedQuestion) -> None:
        self._answerer.conversations.leave(asked)
        self._questions.end(asked)
