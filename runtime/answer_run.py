"""One question from its snapshot to its answer: prefill of its text, then a token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

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
        memory = self._shared.memory
        recalls = self._snapshot.lease.recalls
        scratch = memory.scratch_slots.take(recalls + len(self._layout.tokens))
        run = self._shared.borrow()
        try:
            own = scratch[recalls:]
            memory.pool.clear(own)
            earlier = [slot for turn in self._turns for slot in turn.slots]
            self._slots = np.asarray(own)[self._layout.page]
            self._table = pad_table([*self._snapshot.lease.slots(scratch[:recalls]), *earlier, *own])
            with self._shared.device.urgency.hold():
                token = self._choice.choose(self._read(run, earlier), ())
                ttft = time.perf_counter_ns() - self._asked
            tokens, text = self._generate(run, token)
            if self._question.conversation is not None:
                self._shared.keep_turn(self._question, text, own[self._layout.run.index(len(self._snapshot.latest)) : self._pages_written])
            return self._report(tokens, text, ttft)
        finally:
            self._shared.give_back(run)
            memory.scratch_slots.free(scratch)

    def _read(self, run: LanguageRun, earlier: Sequence[int]) -> np.ndarray:
        """Prefill what the question brings; returns the logits [V] behind its last token."""
        first_text, vision = self._snapshot.first_text, np.empty((0, 3), np.int32)
        if latest := self._snapshot.latest:
            timeline = Timeline(self._shared.model, len(self._shared.prompt.prefix), 0)
            vision = np.concatenate([timeline.unit(unit.start) for unit in latest])
            first_text = timeline.next_text
        if earlier:  # text also comes behind the earlier turns of its conversation
            first_text = max(first_text, int(self._shared.memory.pool.where[list(earlier)].max()) + 1)
        self._first_text = first_text
        positions = np.concatenate([vision, text_positions(first_text, len(self._suffix))])
        tokens = np.concatenate([np.full(len(vision), FEATURE_ROW, np.int32), np.asarray(self._suffix, np.int32)])
        features = np.zeros((len(tokens), self._shared.model.width), self._shared.memory.pool.data.dtype)
        if latest:
            features[: len(vision)] = np.concatenate([unit.rows for unit in latest])
        for first in range(0, len(tokens), self._shared.model.max_rows):
            rows = slice(first, first + self._shared.model.max_rows)
            logits = self._step(run, tokens[rows], features[rows], positions[rows])
        return logits

    def _generate(self, run: LanguageRun, token: int) -> tuple[list[int], str]:
        """The answer's tokens and text, from its first token on."""
        model, text = self._shared.model, TextStream(self._shared.prompt)
        tokens: list[int] = []
        while token not in model.eos_tokens:
            tokens.append(token)
            if piece := text.add(token):
                self._on_token(piece)
            position = self._first_text + len(self._suffix) + len(tokens) - 1
            logits = self._step(run, np.array([token], np.int32), None, text_positions(position, 1))
            if len(tokens) == self._question.sampling.max_tokens or position + 1 >= model.max_position:
                break
            token = self._choice.choose(logits, tokens)
        if piece := text.finish():
            self._on_token(piece)
        return tokens, text.text

    def _step(self, run: LanguageRun, tokens: np.ndarray, features: np.ndarray | None, positions: np.ndarray) -> np.ndarray:
        """Run rows over the table and place their keys and values in the scratch pages; returns logits [V]."""
        shared = self._shared
        with shared.clock.measure("question", rows=len(tokens)):
            out = shared.stream.submit(run, tokens, features, positions, self._table, shared.stream).result()
            rows = slice(self._rows, self._rows + len(tokens))
            shared.memory.pool.write(self._slots[rows], self._layout.cell[rows], out.k, out.v, positions)
            self._rows = rows.stop
        return out.logits

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
