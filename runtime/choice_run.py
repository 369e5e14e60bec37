"""Questions with choices that read the same pages: one run of the language engine for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vicort.runtime.answer_report import Reading, answer_to, unasked
from vicort.runtime.answering import Answerer, Snapshot, too_few_positions
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.choice_answer import chosen
from vicort.runtime.core import Answer, Question
from vicort.runtime.language.choice_tree import ChoiceTree
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.manifest import MAX_ENDS
from vicort.runtime.memory.timeline import text_positions


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question of a batch, with its rows: its text, then the tree of its choices."""

    asked: AskedQuestion
    snapshot: Snapshot
    text: np.ndarray  # [m] int32, tokens
    tree: ChoiceTree

    @classmethod
    def of(cls, shared: Answerer, asked: AskedQuestion, snapshot: Snapshot) -> ChoiceQuestion:
        """Raises QuestionError if it does not fit in the trained positions."""
        question = asked.question
        text = np.asarray(shared.prompt.question(question.text), np.int32)
        tree = shared.choice_tree(question)
        free = shared.model.max_position - snapshot.first_text - int(tree.depths.max()) - 1
        if len(text) > free:
            raise too_few_positions(len(text), free, shared.model)
        return cls(asked, snapshot, text, tree)

    @property
    def rows(self) -> int:
        return len(self.text) + len(self.tree)

    @property
    def ends(self) -> int:
        """Rows after which the next token is looked at."""
        return 1 + len(self.tree)

    def tokens(self) -> np.ndarray:
        return np.concatenate([self.text, self.tree.tokens])

    def positions(self) -> np.ndarray:
        """[rows,3] int32."""
        first = self.snapshot.first_text
        after = first + len(self.text)
        return np.concatenate([text_positions(first, len(self.text)), self.tree.positions(after)])

    def until(self, row: int) -> np.ndarray:
        """[rows] int32: the first row after those that see each, if its first one is `row`."""
        tree = row + len(self.text) + self.tree.until
        return np.concatenate([np.full(len(self.text), row + self.rows, np.int32), tree])

    def end_rows(self, row: int) -> list[int]:
        return list(range(row + len(self.text) - 1, row + self.rows))


class ChoiceRun:
    """Answers a batch of questions with choices, whose snapshots lease the same pages, without a
    page of its own: rows of a question and of a choice are seen by what continues them alone."""

    def __init__(self, shared: Answerer, batch: Sequence[ChoiceQuestion]) -> None:
        self._shared = shared
        self._batch = batch
        self._stream = shared.stream

    @staticmethod
    def takes(shared: Answerer, question: Question) -> bool:
        """Whether a question can be answered so. Otherwise `AnswerRun` answers it."""
        system, memory = shared.memory.system, shared.memory
        apart = (
            question.conversation is not None
            or system.text.joins
            or system.ingest.deferred_units > 0
            or system.retrieval.ask_again is not None
            or memory.long_term is not None
        )
        if apart or not (question.constraint and question.constraint.choices):
            return False
        nodes = len(shared.choice_tree(question))
        rows = len(shared.prompt.question(question.text)) + nodes
        return rows <= shared.model.max_rows and nodes < MAX_ENDS

    def answers(self) -> list[tuple[AskedQuestion, Answer]]:
        """Run the batch; each question with its answer."""
        shared, device = self._shared, self._shared.device
        lease = self._batch[0].snapshot.lease
        scratch = shared.memory.tiers.scratch_slots.allocate(lease.recalls)
        run = None
        try:
            run = self._stream.run(shared.borrow).enqueued()
            with device.urgency.urgent_work():
                logits = self._stream.run(self._run_in_stream, run, scratch).done()
        finally:
            if run:
                shared.give_back(run)
            shared.memory.tiers.scratch_slots.free(scratch)
        ended = time.perf_counter_ns()
        ends = np.cumsum([each.ends for each in self._batch])
        parts = np.split(logits, ends[:-1])
        return [
            (each.asked, self._answer(each, part, ended))
            for each, part in zip(self._batch, parts, strict=True)
        ]

    def _run_in_stream(self, run: LanguageRun, scratch: Sequence[int]) -> np.ndarray:
        """[E,V] float32, of each question after its text and after each node of its tree."""
        stream, batch, shared = self._stream, self._batch, self._shared
        for each in batch:
            stream.wait(each.snapshot.ready)
        table = shared.memory.table(batch[0].snapshot.lease.slots(scratch, stream))
        starts = np.cumsum([0, *(each.rows for each in batch)])
        rows = list(zip(batch, map(int, starts), strict=False))
        with shared.clock.measure("question", stream, rows=int(starts[-1])):
            run(
                np.concatenate([each.tokens() for each in batch]),
                [],
                np.concatenate([each.positions() for each in batch]),
                table,
                stream,
                until=np.concatenate([each.until(row) for each, row in rows]),
                ends=[end for each, row in rows for end in each.end_rows(row)],
            )
            out = run.logits(stream)
        return shared.device.read(stream, out)[0][: sum(each.ends for each in batch)].copy()

    def _answer(self, each: ChoiceQuestion, logits: np.ndarray, ended: int) -> Answer:
        scores = each.tree.scores(logits, self._shared.model.eos_tokens)
        _, fields = chosen(each.asked.question, scores, self._shared.calibration)
        return answer_to(
            each.asked,
            each.snapshot,
            Reading.of(each.snapshot.lease),
            ended - each.asked.since,
            **fields,
        )


def batches(
    shared: Answerer, questions: Sequence[ChoiceQuestion]
) -> Iterator[list[ChoiceQuestion]]:
    """The questions in batches that fit in one run: questions that read the same pages from the
    same position on, in their order."""
    together: dict[object, list[ChoiceQuestion]] = {}
    for each in questions:
        place = each.snapshot.lease.places, each.snapshot.first_text
        together.setdefault(place, []).append(each)
    for group in together.values():
        batch: list[ChoiceQuestion] = []
        for each in group:
            rows = sum(one.rows for one in batch) + each.rows
            ends = sum(one.ends for one in batch) + each.ends
            if batch and (rows > shared.model.max_rows or ends > MAX_ENDS):
                yield batch
                batch = []
            batch.append(each)
        yield batch


def answers_together(
    shared: Answerer, group: Sequence[AskedQuestion], snapshots: Sequence[Snapshot | Exception]
) -> Iterator[tuple[AskedQuestion, Answer | Exception]]:
    """Yield questions with their answers, or with what each of them failed with.

    snapshots: of each question, or why there is none. They are released before an answer from them
    is yielded.
    """
    questions: list[ChoiceQuestion] = []
    taken = [each for each in snapshots if isinstance(each, Snapshot)]
    try:
        for asked, snapshot in zip(group, snapshots, strict=True):
            try:
                if isinstance(snapshot, Exception):
                    raise snapshot
                asked.check_wanted()
                if not snapshot.closed:
                    questions.append(ChoiceQuestion.of(shared, asked, snapshot))
                    continue
                yield asked, unasked(asked, snapshot)
            except Exception as error:  # noqa: BLE001 - of this question alone
                yield asked, error
        for batch in batches(shared, questions):
            yield from _answers_of(shared, batch)
    finally:
        for snapshot in taken:
            snapshot.release()


def _answers_of(
    shared: Answerer, batch: Sequence[ChoiceQuestion]
) -> Sequence[tuple[AskedQuestion, Answer | Exception]]:
    try:
        return ChoiceRun(shared, batch).answers()
    except Exception as error:  # noqa: BLE001 - of this batch alone
        return [(each.asked, error) for each in batch]
    finally:
        for each in batch:
            each.snapshot.release()
