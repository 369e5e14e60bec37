"""One question from its snapshot to its answer: prefill of its text, then a token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vicort.runtime.core import Answer, Page, Question
from vicort.runtime.language import FEATURE_ROW, LanguageRun
from vicort.runtime.memory import pad_table
from vicort.runtime.pool import Layout
from vicort.runtime.positions import Timeline, text_positions
from vicort.runtime.prompt import TextStream
from vicort.runtime.token_choice import TokenChoice

if TYPE_CHECKING:
    from vicort.runtime.answering import Answerer, Snapshot


class AnswerRun:
    """Its tokens go to scratch pages: units that wait for a question first, a page run each, then the text."""

    def __init__(self, shared: Answerer, question: Question, snapshot: Snapshot, asked: int, on_token: Callable[[str], None]) -> None:
        self._shared, self._question, self._snapshot, self._asked, self._on_token = shared, question, snapshot, asked, on_token
        self._choice = TokenChoice(question.sampling)
        self._turns = shared.turns(question)
        self._suffix = shared.prompt.question(question.text, [(turn.question, turn.text) for turn in self._turns])
        unit_lengths = [len(unit.rows) for unit in snapshot.latest]
        self._layout = Layout.of([*unit_lengths, len(self._suffix) + question.sampling.max_tokens], shared.model.page_tokens)
        self._rows = 0  # written so far

    def answer(self) -> Answer:
        shared, memory = self._shared, self._shared.memory
        scratch = memory.scratch_slots.take(self._snapshot.lease.recalls + len(self._layout.tokens))
        run = shared.borrow()
        try:
            with shared.device.urgency.hold():
                shared.stream.submit(self._prepare, scratch).value()
                token = self._choice.choose(self._read(run), ())
                ttft = time.perf_counter_ns() - self._asked
            tokens, text = self._generate(run, token)
            if self._question.conversation is not None:
                shared.stream.submit(self._keep_turn, text).result()
            return self._report(tokens, text, ttft)
        finally:
            shared.give_back(run)
            memory.scratch_slots.free(scratch)

    def _prepare(self, scratch: Sequence[int]) -> None:
        """The question's pages and its table. Runs in the question stream's work, as all does that touches pages."""
        shared, lease = self._shared, self._snapshot.lease
        shared.stream.wait(self._snapshot.ready)
        recalled, self._own = scratch[: lease.recalls], scratch[lease.recalls :]
        shared.memory.pool.clear(self._own, shared.stream)
        self._earlier = [slot for turn in self._turns for slot in turn.slots]
        self._slots = np.asarray(self._own)[self._layout.page]
        self._table = pad_table([*lease.slots(recalled, shared.stream), *self._earlier, *self._own])

    def _keep_turn(self, text: str) -> None:
        shared = self._shared
        first = self._layout.run.index(len(self._snapshot.latest))
        shared.keep_turn(self._question, text, self._own[first : self._pages_written])
        shared.device.read(shared.stream)  # the pages are given back next

    def _read(self, run: LanguageRun) -> np.ndarray:
        """Prefill what the question brings; returns the logits [V] behind its last token."""
        first_text, vision = self._snapshot.first_text, np.empty((0, 3), np.int32)
        if latest := self._snapshot.latest:
            timeline = Timeline(self._shared.model, len(self._shared.prompt.prefix), 0)
            vision = np.concatenate([timeline.unit(unit.start) for unit in latest])
            first_text = timeline.next_text
        if self._earlier:  # text also comes behind the earlier turns of its conversation
            first_text = max(first_text, int(self._shared.memory.pool.places[self._earlier].max()) + 1)
        self._first_text = first_text
        for unit_rows, tokens, positions in self._runs(vision, text_positions(first_text, len(self._suffix))):
            logits = self._step(run, tokens, unit_rows, positions)
        return logits

    def _runs(self, vision: np.ndarray, text: np.ndarray) -> Iterator[tuple[list[Any], np.ndarray, np.ndarray]]:
        """The rows that the question brings, cut into runs that the engine takes: visual rows first, then text.

        vision: [n, 3] positions of the rows of the units that wait, text: [m, 3]. -> visual rows, token ids [C], positions [C, 3]
        """
        positions = np.concatenate([vision, text])
        tokens = np.concatenate([np.full(len(vision), FEATURE_ROW, np.int32), np.asarray(self._suffix, np.int32)])
        most = self._shared.model.max_rows
        for first in range(0, len(tokens), most):
            yield self._visual_rows(first, first + most), tokens[first : first + most], positions[first : first + most]

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
            position = self._first_text + len(self._suffix) + len(tokens) - 1
            logits = self._step(run, np.array([token], np.int32), [], text_positions(position, 1))
            if len(tokens) == self._question.sampling.max_tokens or position + 1 >= model.max_position:
                break
            token = self._choice.choose(logits, tokens)
        if piece := text.finish():
            self._on_token(piece)
        return tokens, text.text

    def _step(self, run: LanguageRun, tokens: np.ndarray, features: Sequence[Any], positions: np.ndarray) -> np.ndarray:
        """Run rows over the table and place their keys and values in the scratch pages; returns logits [V]."""
        return self._shared.stream.submit(self._step_in_stream, run, tokens, features, positions).result()

    def _step_in_stream(self, run: LanguageRun, tokens: np.ndarray, features: Sequence[Any], positions: np.ndarray) -> np.ndarray:
        shared, stream = self._shared, self._shared.stream
        with shared.clock.measure("question", stream, rows=len(tokens)):
            out = run(tokens, features, positions, self._table, stream)
            rows = slice(self._rows, self._rows + len(tokens))
            shared.memory.pool.write(self._slots[rows], self._layout.cell[rows], out.k, out.v, positions, stream)
            self._rows = rows.stop
            (logits,) = shared.device.read(stream, out.logits)
        return logits[0]

    @property
    def _pages_written(self) -> int:
        return int(self._layout.page[self._rows - 1]) + 1

    def _report(self, tokens: list[int], text: str, ttft: int) -> Answer:
        latest = [Page(-1, "vision", len(unit.rows), unit.chunk, unit.number, unit.start, unit.end) for unit in self._snapshot.latest]
        leased = [page for page in self._snapshot.lease.pages if page.kind == "vision"]
        asked_at = self._snapshot.seen_until if self._question.at is None else self._question.at
        return Answer(
            id=self._question.id,
            at=asked_at,
            seen_until=self._snapshot.seen_until,
            question=self._question.text,
            text=text,
            ttft_ms=ttft / 1e6,
            tokens=len(tokens),
            read=time_ranges([*leased, *latest]),
            pages=len(leased) + sum(run < len(latest) for run in self._layout.run),
        )


def time_ranges(pages: Sequence[Page]) -> tuple[tuple[Fraction, Fraction], ...]:
    """The stretches of time that pages cover, units that follow one another joined. Pages are in the order of the stream."""
    ranges: list[tuple[Fraction, Fraction]] = []
    before = None
    for page in pages:
        if before is not None and page.unit - before.unit <= 1:
            ranges[-1] = (ranges[-1][0], page.end)
        else:
            ranges.append((page.start, page.end))
        before = page
    return tuple(ranges)
