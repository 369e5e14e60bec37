"""One question from its snapshot to its answer: prefill of its text, then a token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vicort.runtime.answering import Answerer, Snapshot
from vicort.runtime.core import Answer, Page, Question
from vicort.runtime.language.language_run import FEATURE_ROW, LanguageOutput, LanguageRun
from vicort.runtime.language.prompt import TextStream
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.long_term.long_term import Reader
from vicort.runtime.memory.timeline import Timeline, text_positions


class AnswerRun:
    """Its tokens go to scratch pages: units that wait for a question first, a page run each, then
    the text."""

    def __init__(
        self,
        shared: Answerer,
        question: Question,
        snapshot: Snapshot,
        asked: int,
        on_token: Callable[[str], None],
    ) -> None:
        self._shared = shared
        self._question = question
        self._snapshot = snapshot
        self._asked = asked
        self._on_token = on_token
        self._choice = TokenChoice(question.sampling)
        self._turns = shared.turns(question)
        self._suffix = shared.prompt.question(
            question.text, [(turn.question, turn.text) for turn in self._turns]
        )
        unit_lengths = [len(unit.rows) for unit in snapshot.latest]
        self._layout = Layout.of(
            [*unit_lengths, len(self._suffix) + question.sampling.max_tokens],
            shared.model.page_tokens,
        )
        self._rows = 0  # written so far
        self._reader: Reader | None = None  # of long-term memory by layer and head
        self._joins = shared.memory.system.text.joins

    def answer(self) -> Answer:
        shared, memory = self._shared, self._shared.memory
        scratch = memory.scratch_slots.allocate(
            self._snapshot.lease.recalls + memory.recall_slots + len(self._layout.tokens)
        )
        # its buffers are then in the order of the stream that uses them
        run = shared.stream.run(shared.borrow).enqueued()
        try:
            with shared.device.urgency.hold():
                shared.stream.run(self._prepare, scratch).enqueued()
                token = self._choice.choose(self._read(run), ())
                ttft = time.perf_counter_ns() - self._asked
            tokens, text = self._generate(run, token)
            if self._joins:
                self._join_stream()
            elif self._question.conversation is not None:
                shared.stream.run(self._keep_turn, text).done()
            return self._report(tokens, text, ttft)
        finally:
            if self._reader:
                self._reader.release()
                memory.count_reader(self._reader)
            shared.give_back(run)
            memory.scratch_slots.free(scratch)

    def _prepare(self, scratch: Sequence[int]) -> None:
        """The question's pages and its table. Runs in the question stream's work, as all does that
        touches pages."""
        shared, lease = self._shared, self._snapshot.lease
        shared.stream.wait(self._snapshot.ready)
        own = lease.recalls + shared.memory.recall_slots
        self._own = scratch[own:]
        self._earlier = [slot for turn in self._turns for slot in turn.slots]
        self._slots = np.asarray(self._own)[self._layout.page]
        self._table = [
            *lease.slots(scratch[: lease.recalls], shared.stream),
            *self._earlier,
            *self._own,
        ]
        if self._snapshot.view:
            self._reader = shared.memory.reader(self._snapshot.view, scratch[lease.recalls : own])

    def _join_stream(self) -> None:
        """The snapshot is let go first: making room may have to wait for what it holds."""
        self._snapshot.release()
        first, last = self._layout.run.index(len(self._snapshot.latest)), self._pages_written
        counts = np.bincount(self._layout.page[: self._rows], minlength=last)[first:last]
        pages = [Page(-1, "text", int(count)) for count in counts]
        end = (
            self._first_text
            + self._rows
            - sum(len(unit.rows) for unit in self._snapshot.latest)
            - 1
        )
        self._shared.join_stream(pages, self._own[first:last], end)

    def _keep_turn(self, text: str) -> None:
        shared = self._shared
        first = self._layout.run.index(len(self._snapshot.latest))
        shared.keep_turn(self._question, text, self._own[first : self._pages_written])
        shared.device.read(shared.stream)  # the pages are given back next

    def _read(self, run: LanguageRun) -> np.ndarray:
        """Prefill what the question brings, once more over what its own queries choose; returns the
        logits [V] behind its last token."""
        shared = self._shared
        first_text, vision = self._snapshot.first_text, np.empty((0, 3), np.int32)
        if latest := self._snapshot.latest:
            timeline = Timeline(shared.model, len(shared.prompt.prefix), 0)
            vision = np.concatenate([timeline.unit(unit.start) for unit in latest])
            first_text = timeline.next_text
        if self._earlier:  # text also comes behind the earlier turns of its conversation
            first_text = max(first_text, int(shared.memory.pool.host_positions[self._earlier].max()) + 1)
        self._first_text = first_text
        text = text_positions(first_text, len(self._suffix))
        while True:
            shared.stream.run(self._begin_pass).enqueued()
            for unit_rows, tokens, positions in self._runs(vision, text):
                logits, q = self._step(run, tokens, unit_rows, positions)
            if q is None or not shared.stream.run(self._must_rerun, q, True).done():
                return logits

    def _begin_pass(self) -> None:
        """A pass over the question's rows finds its pages empty."""
        self._shared.memory.pool.clear(self._own, self._shared.stream)
        self._rows = 0

    def _must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        return self._reader is not None and self._reader.must_rerun(q, prefill)

    def _runs(
        self, vision: np.ndarray, text: np.ndarray
    ) -> Iterator[tuple[list[Any], np.ndarray, np.ndarray]]:
        """The rows that the question brings, cut into runs that the engine takes: visual rows
        first, then text.

        vision: [n, 3] positions of the rows of the units that wait, text: [m, 3]. -> visual rows,
        token ids [C], positions [C, 3]
        """
        positions = np.concatenate([vision, text])
        tokens = np.concatenate(
            [np.full(len(vision), FEATURE_ROW, np.int32), np.asarray(self._suffix, np.int32)]
        )
        most = self._shared.model.max_rows
        for first in range(0, len(tokens), most):
            yield (
                self._visual_rows(first, first + most),
                tokens[first : first + most],
                positions[first : first + most],
            )

    def _visual_rows(self, first: int, last: int) -> list[Any]:
        """Arrays of the visual rows first, …, last - 1, counted over all units that wait."""
        pieces, start = [], 0
        for unit in self._snapshot.latest:
            rows = unit.rows.shape[0]
            if start < last and start + rows > first:
                pieces.append(unit.rows[max(first - start, 0) : min(last - start, rows)])
            start += rows
        return pieces

    def _generate(self, run: LanguageRun, token: int) -> tuple[list[int], str]:
        """The answer's tokens and text, from its first token on."""
        model, text = self._shared.model, TextStream(self._shared.prompt)
        tokens: list[int] = []
        while token not in model.eos_tokens:
            tokens.append(token)
            if piece := text.add(token):
                self._on_token(piece)
            logits = self._decode(run, token, len(tokens))
            if (
                len(tokens) == self._question.sampling.max_tokens
                or self._position(len(tokens)) >= model.max_position
            ):
                break
            token = self._choice.choose(logits, tokens)
        else:
            if self._joins:  # what comes sees that the answer has ended
                self._decode(run, token, len(tokens) + 1)
        if piece := text.finish():
            self._on_token(piece)
        return tokens, text.text

    def _decode(self, run: LanguageRun, token: int, number: int) -> np.ndarray:
        """Logits [V] behind the answer's `number`-th token, counted from 1."""
        positions = text_positions(self._position(number - 1), 1)
        return self._step(run, np.array([token], np.int32), [], positions, decodes=True)[0]

    def _position(self, number: int) -> int:
        """Of the answer's token `number`, counted from 0."""
        return self._first_text + len(self._suffix) + number

    def _step(
        self,
        run: LanguageRun,
        tokens: np.ndarray,
        features: Sequence[Any],
        positions: np.ndarray,
        decodes: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run rows over the table and place their keys and values in the scratch pages; returns
        logits [V], and mean queries [L, Hq, D] where the system reads by them."""
        return self._shared.stream.run(
            self._step_in_stream, run, tokens, features, positions, decodes
        ).done()

    def _step_in_stream(
        self,
        run: LanguageRun,
        tokens: np.ndarray,
        features: Sequence[Any],
        positions: np.ndarray,
        decodes: bool,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        shared, stream = self._shared, self._shared.stream
        with shared.clock.measure("question", stream, rows=len(tokens)):
            out, logits, q = self._run(run, tokens, features, positions)
            while decodes and q is not None and self._must_rerun(q, False):
                out, logits, q = self._run(run, tokens, features, positions)
            rows = slice(self._rows, self._rows + len(tokens))
            shared.memory.pool.write(
                self._slots[rows], self._layout.cell[rows], out.k, out.v, positions, stream
            )
            self._rows = rows.stop
        return logits, q

    def _run(
        self, run: LanguageRun, tokens: np.ndarray, features: Sequence[Any], positions: np.ndarray
    ) -> tuple[LanguageOutput, np.ndarray, np.ndarray | None]:
        shared, reader = self._shared, self._reader
        table = shared.memory.table(self._table, reader.table if reader else None)
        out = run(tokens, features, positions, table, shared.stream)
        if reader:
            logits, q = shared.device.read(shared.stream, out.logits, out.q)
            return out, logits[0], q.copy()
        (logits,) = shared.device.read(shared.stream, out.logits)
        return out, logits[0], None

    @property
    def _pages_written(self) -> int:
        return int(self._layout.page[self._rows - 1]) + 1

    def _report(self, tokens: list[int], text: str, ttft: int) -> Answer:
        latest = [
            Page(-1, "vision", len(unit.rows), unit.chunk, unit.number, unit.start, unit.end)
            for unit in self._snapshot.latest
        ]
        leased = [page for page in self._snapshot.lease.pages if page.kind == "vision"]
        recalled = self._reader.pages() if self._reader else []
        asked_at = self._snapshot.seen_until if self._question.at is None else self._question.at
        return Answer(
            id=self._question.id,
            at=asked_at,
            seen_until=self._snapshot.seen_until,
            question=self._question.text,
            text=text,
            ttft_ms=ttft / 1e6,
            tokens=len(tokens),
            read=time_ranges([*recalled, *leased, *latest]),
            pages=len(leased)
            + sum(run < len(latest) for run in self._layout.run)
            + (self._reader.selection.most if self._reader else 0),
            tokens_read=sum(page.tokens for page in [*leased, *latest])
            + (self._reader.selection.tokens if self._reader else 0),
            memory_from=self._snapshot.memory_from,
        )


def answer(
    shared: Answerer,
    question: Question,
    snapshot: Snapshot,
    asked: int,
    on_token: Callable[[str], None],
) -> Answer:
    """Answer a question from its snapshot, which is released afterwards.

    asked: perf_counter_ns when the question came. on_token gets each piece of text as it is ready.
    """
    try:
        return AnswerRun(shared, question, snapshot, asked, on_token).answer()
    finally:
        snapshot.release()


def time_ranges(pages: Sequence[Page]) -> tuple[tuple[Fraction, Fraction], ...]:
    """The stretches of time that pages cover, units that follow one another joined. Pages are in
    the order of the stream."""
    ranges: list[tuple[Fraction, Fraction]] = []
    before = None
    for page in pages:
        if before is not None and page.unit - before.unit <= 1:
            ranges[-1] = (ranges[-1][0], page.end)
        else:
            ranges.append((page.start, page.end))
        before = page
    return tuple(ranges)
