"""One question from its snapshot to its answer: prefill of its text, then a token at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vicort.runtime.answer_report import Reading, answer_to, unasked
from vicort.runtime.answering import Answerer, Snapshot, too_few_positions
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.choice_answer import chosen
from vicort.runtime.core import Answer, Page, WhyEmpty
from vicort.runtime.devices.device import Array
from vicort.runtime.language.choice_tree import ChoiceTree, ScoredChoice, split
from vicort.runtime.language.language_run import FEATURE_ROW, LanguageOutput, LanguageRun
from vicort.runtime.language.prompt import StopText, TextStream
from vicort.runtime.language.token_choice import TokenChoice, log_probability
from vicort.runtime.language.token_report import TokenReport
from vicort.runtime.manifest import MAX_ENDS
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.long_term.protocols import Reader
from vicort.runtime.memory.timeline import Timeline, text_positions


class AnswerRun:
    """The rows of one question and its answer, in scratch pages: units that were deferred until a
    question prefills them, then the text."""

    def __init__(
        self,
        shared: Answerer,
        asked: AskedQuestion,
        snapshot: Snapshot,
    ) -> None:
        question = asked.question
        self._shared = shared
        self._model = shared.model
        self._device = shared.device
        self._memory = shared.memory
        self._stream = shared.stream
        self._question = question
        self._snapshot = snapshot
        self._lease = snapshot.lease  # what is read
        self._asked = asked
        self._vision, after_video = self._place_deferred()
        self._place_text(after_video)
        earlier = [(turn.question, turn.text) for turn in self._turns]
        penalised = question.sampling.repetition_penalty not in (None, 1)
        context = shared.prompt.context(question.text, earlier) if penalised else ()
        self._choice = TokenChoice(question.sampling, context)
        self._mask = shared.grammars.start(question.constraint)  # None = any token may come
        self._token_report = TokenReport(shared.prompt, question.logprobs)
        unit_lengths = [unit.rows.shape[0] for unit in snapshot.deferred]
        has_choices = question.constraint is not None and question.constraint.choices
        self._choices = shared.choice_tree(question).choices if has_choices else ()
        text_length = len(self._suffix) + question.sampling.max_tokens
        self._layout = Layout.of([*unit_lengths, text_length], shared.model.page_tokens)
        self._log_probabilities: list[float] = []  # of the tokens so far
        self._rows = 0  # written so far
        self._stopped = False  # whether a stop text was found
        self._complete = False  # whether the answer came to its end
        self._reader: Reader | None = None  # of long-term memory by layer and head
        self._appends = shared.memory.system.text.joins  # whether the answer stays in the stream

    def answer(self) -> Answer:
        shared, slots = self._shared, self._memory.tiers.scratch_slots
        self._recalls = self._most_recalls()
        scratch = slots.allocate(
            self._recalls + self._memory.recall_slots + len(self._layout.tokens)
        )
        run = None
        try:
            # Borrowed in the stream's own work, so that its buffers are used in the stream's order.
            run = self._stream.run(shared.borrow).enqueued()
            with self._device.urgency.urgent_work():
                self._stream.run(self._prepare_in_stream, scratch).enqueued()
                logits = self._prefill(run)
                if self._snapshot.wider and self._is_doubtful(logits):
                    self._lease = self._snapshot.wider
                    self._stream.run(self._prepare_in_stream, scratch).enqueued()
                    logits = self._prefill(run)
                if self._choices:
                    scores = self._score_choices(run, logits)
                else:
                    token = self._next_token(logits, ())
                ttft = time.perf_counter_ns() - self._asked.since
            if self._choices:
                fields = self._choose(run, scores)
            else:
                self._report_token(logits, token)
                fields = self._generated(*self._generate(run, token))
            if self._appends:
                self._append_to_stream()
            elif self._question.conversation is not None and fields["text"]:
                # a template skips empty turns
                self._stream.run(self._keep_turn_in_stream, fields["text"]).done()
            return self._report(ttft, fields)
        finally:
            if self._reader:
                self._reader.release()
                self._memory.count_reader(self._reader)
            if run:
                shared.give_back(run)
            slots.free(scratch)

    def _most_recalls(self) -> int:
        """Pages on the host that either run reads."""
        snapshot = self._snapshot
        wider = snapshot.wider.recalls if snapshot.wider else 0
        return max(snapshot.lease.recalls, wider)

    def _is_doubtful(self, logits: np.ndarray) -> bool:
        """Whether the question has to be run again: its most probable first token, logits [V],
        has too low a probability."""
        again = self._memory.system.retrieval.ask_again
        if again is None:
            return False
        return math.exp(log_probability(logits, int(logits.argmax()))) < again.below

    def _place_deferred(self) -> tuple[np.ndarray, int]:
        """Positions [n, 3] of the rows of deferred units, and the first one behind all video."""
        snapshot = self._snapshot
        units = snapshot.deferred
        if not units:
            return np.empty((0, 3), np.int32), snapshot.first_text
        timeline = Timeline(
            self._model, len(self._shared.prompt.prefix), self._memory.timeline.text_tokens
        )
        timeline.begin(units[0].start)
        timeline.rebase(timeline.excess(units[-1].start))
        vision = np.concatenate([timeline.unit(unit.start, unit.grid) for unit in units])
        return vision, timeline.next_text

    def _place_text(self, after_video: int) -> None:
        """Choose the question's first position, and the earlier turns that it sees.

        Raises QuestionError if its text alone does not fit in the trained positions.
        """
        question, conversations = self._question, self._shared.conversations
        room = self._model.max_position - after_video
        while True:
            self._turns = conversations.turns(question)
            earlier = [(turn.question, turn.text) for turn in self._turns]
            self._suffix = self._shared.prompt.question(question.text, earlier)
            if len(self._suffix) >= room:
                raise too_few_positions(len(self._suffix), room - 1, self._model)
            needed = min(len(self._suffix) + question.sampling.max_tokens, room)
            self._first_text = after_video
            if self._turns:
                place = conversations.place_in_stream
                moved = self._stream.run(place, question, after_video, needed)
                self._first_text = moved.done()
            if len(conversations.turns(question)) == len(self._turns):
                return

    def _prepare_in_stream(self, scratch: Sequence[int]) -> None:
        """Find the question's pages, and make its table."""
        lease = self._lease
        self._stream.wait(self._snapshot.ready)
        recalls = self._recalls + self._memory.recall_slots
        self._own = scratch[recalls:]
        self._earlier = [slot for turn in self._turns for slot in turn.slots]
        self._slots = np.asarray(self._own)[self._layout.page]
        leased = lease.slots(scratch[: lease.recalls], self._stream)
        self._table = [*leased, *self._earlier, *self._own]
        if self._snapshot.view:
            self._reader = self._memory.reader(
                self._snapshot.view, scratch[self._recalls : recalls]
            )

    def _append_to_stream(self) -> None:
        # The snapshot is released first: making room may have to wait for the pages it leases.
        self._snapshot.release()
        first, last = self._first_text_page, self._pages_written
        counts = np.bincount(self._layout.page[: self._rows], minlength=last)[first:last]
        pages = [Page(-1, "text", int(count)) for count in counts]
        deferred = sum(unit.rows.shape[0] for unit in self._snapshot.deferred)
        end = self._first_text + self._rows - deferred - 1
        self._shared.append_to_stream(pages, self._own[first:last], end)

    def _keep_turn_in_stream(self, text: str) -> None:
        pages = self._own[self._first_text_page : self._pages_written]
        self._shared.conversations.keep_turn_in_stream(self._question, text, pages)
        self._device.read(self._stream)  # wait: the pages are freed next

    def _prefill(self, run: LanguageRun) -> np.ndarray:
        """Run the question's rows, again if its own queries choose other pages.

        Returns the logits [V] after its last token.
        """
        text = text_positions(self._first_text, len(self._suffix))
        while True:
            self._stream.run(self._begin_pass_in_stream).enqueued()
            if self._reader and self._reader.by_words:
                self._choose_by_words(run)
                continue
            for unit_rows, tokens, positions in self._runs(self._vision, text):
                self._asked.check_wanted()
                q = self._step(run, tokens, unit_rows, positions)
            if q is None or not self._stream.run(self._must_rerun_in_stream, q, True).done():
                return self._stream.run(self._logits_in_stream, run).done()

    def _choose_by_words(self, run: LanguageRun) -> None:
        """Run the question's words alone, so that their queries choose what is read next."""
        self._asked.check_wanted()
        words = np.asarray(self._shared.prompt.words(self._question.text), np.int32)
        q = self._step(run, words, [], text_positions(self._first_text, len(words)))
        if q is not None:
            self._stream.run(self._must_rerun_in_stream, q, True).done()

    def _begin_pass_in_stream(self) -> None:
        """Clear the question's pages, which a pass before may have written."""
        self._memory.pool.clear(self._own, self._stream)
        self._rows = 0

    def _must_rerun_in_stream(self, q: np.ndarray, prefill: bool) -> bool:
        return self._reader is not None and self._reader.must_rerun(q, prefill)

    def _runs(
        self, vision: np.ndarray, text: np.ndarray
    ) -> Iterator[tuple[list[Array], np.ndarray, np.ndarray]]:
        """The question's rows, cut into runs of at most `max_rows`: visual rows first, then text.

        vision: [n, 3] positions of the rows of deferred units, text: [m, 3]. Yields visual rows,
        token ids [C], positions [C, 3].
        """
        positions = np.concatenate([vision, text])
        tokens = np.concatenate(
            [np.full(len(vision), FEATURE_ROW, np.int32), np.asarray(self._suffix, np.int32)]
        )
        max_rows = self._model.max_rows
        for first in range(0, len(tokens), max_rows):
            last = first + max_rows
            yield self._visual_rows(first, last), tokens[first:last], positions[first:last]

    def _visual_rows(self, first: int, last: int) -> list[Array]:
        """Arrays of the visual rows first, …, last - 1, counted over all deferred units."""
        pieces, start = [], 0
        for unit in self._snapshot.deferred:
            rows = unit.rows.shape[0]
            if start < last and start + rows > first:
                pieces.append(unit.rows[max(first - start, 0) : min(last - start, rows)])
            start += rows
        return pieces

    def _score_choices(self, run: LanguageRun, logits: np.ndarray) -> list[ScoredChoice]:
        """The choices after the question's text. logits: [V] after it."""
        most = min(MAX_ENDS, self._model.max_rows)
        first = logits[None].copy()  # the next run overwrites it
        scores: list[ScoredChoice] = []
        for tree in split(self._choices, most):
            self._asked.check_wanted()
            after = self._stream.run(self._tree_in_stream, run, tree).done()
            every = np.concatenate([first, after])
            scores += tree.scores(every, self._model.eos_tokens)
        return scores

    def _tree_in_stream(self, run: LanguageRun, tree: ChoiceTree) -> np.ndarray:
        """[n,V] after each node of a tree, of which nothing is kept."""
        stream, reader = self._stream, self._reader
        with self._shared.clock.measure("question", stream, rows=len(tree)):
            run(
                tree.tokens,
                [],
                tree.positions(self._position(0)),
                self._memory.table(self._table, reader.table if reader else None),
                stream,
                until=tree.until,
                ends=range(len(tree)),
            )
            out = run.logits(stream)
        return self._device.read(stream, out)[0][: len(tree)].copy()

    def _choose(self, run: LanguageRun, scores: list[ScoredChoice]) -> dict[str, Any]:
        """Give the chosen text out, and keep its keys and values where later turns see them."""
        score, fields = chosen(self._question, scores, self._shared.calibration)
        kept = self._appends or self._question.conversation is not None
        ends = self._model.eos_tokens[:1] if self._appends else ()
        for number, token in enumerate([*score.tokens, *ends] if kept else (), 1):
            self._write(run, token, number)
        self._asked.token(fields["text"])
        return fields

    def _generate(self, run: LanguageRun, token: int) -> tuple[list[int], str]:
        """The answer's tokens and text, from its first token on."""
        model, text = self._model, TextStream(self._shared.prompt)
        stop = StopText(self._question.sampling.stop)
        tokens: list[int] = []
        written = 0  # tokens whose keys and values are in scratch pages
        while token not in model.eos_tokens:
            self._asked.check_wanted()
            tokens.append(token)
            if self._mask:
                self._mask.accept(token)
            if piece := stop.add(text.add(token)):
                self._asked.token(piece)
            if stop.found:
                self._stopped = True
                break
            is_last = (
                self._is_closed()
                or len(tokens) == self._question.sampling.max_tokens
                or self._position(len(tokens)) >= model.max_position
            )
            if is_last:
                self._write(run, token, len(tokens))
            else:
                logits = self._decode(run, token, len(tokens))
            written += 1
            if is_last or self._is_closed():
                break
            token = self._next_token(logits, tokens)
            self._report_token(logits, token)
        ended = token in model.eos_tokens
        self._complete = ended or self._is_fulfilled(stop.found)
        ends = [token] if ended else list(model.eos_tokens[:1]) * (stop.found or self._is_closed())
        if self._appends and ends:  # later chunks see that the answer has ended
            self._write(run, ends[0], written + 1)
        if piece := stop.add(text.finish()) + stop.finish():
            self._asked.token(piece)
        return tokens, stop.text

    def _next_token(self, logits: np.ndarray, tokens: Sequence[int]) -> int:
        """The answer's next token. logits: [V]; tokens: those before it."""
        allowed = self._mask.allowed() if self._mask else None
        return self._choice.choose(logits, tokens, allowed)

    def _report_token(self, logits: np.ndarray, token: int) -> None:
        """Note how probable the model found a token, whatever limits the answer."""
        self._log_probabilities.append(log_probability(logits, token))
        self._token_report.add(logits, token)

    def _is_closed(self) -> bool:
        """Whether the constraint lets nothing follow but the answer's end."""
        return self._mask is not None and self._mask.closed

    def _is_fulfilled(self, stopped: bool) -> bool:
        """Whether an answer without a token for its end is complete. stopped: whether a stop text
        ended it, which may cut off what a constraint asks for."""
        if self._mask is None:
            return stopped
        return not stopped and self._mask.closed and self._mask.fulfilled

    def _write(self, run: LanguageRun, token: int, number: int) -> None:
        """Run the answer's `number`-th token, counted from 1."""
        self._stream.run(self._write_in_stream, run, token, number).done()

    def _decode(self, run: LanguageRun, token: int, number: int) -> np.ndarray:
        """As `_write`. Returns the logits [V] after the token."""
        step = self._stream.run(self._decode_in_stream, run, token, number)
        try:
            if self._mask:  # what may follow is computed on this thread, while the stream's runs
                self._mask.allowed()
        finally:
            logits = step.done()
        return logits

    def _write_in_stream(self, run: LanguageRun, token: int, number: int) -> None:
        positions = text_positions(self._position(number - 1), 1)
        self._step_in_stream(run, np.array([token], np.int32), [], positions, decodes=True)

    def _decode_in_stream(self, run: LanguageRun, token: int, number: int) -> np.ndarray:
        self._write_in_stream(run, token, number)
        return self._logits_in_stream(run)

    def _logits_in_stream(self, run: LanguageRun) -> np.ndarray:
        """[V] after the last row of the newest run."""
        with self._shared.clock.measure("question", self._stream):
            out = run.logits(self._stream)
        return self._device.read(self._stream, out)[0][0]

    def _position(self, number: int) -> int:
        """Position of the answer's token `number`, counted from 0."""
        return self._first_text + len(self._suffix) + number

    def _step(
        self,
        run: LanguageRun,
        tokens: np.ndarray,
        features: Sequence[Array],
        positions: np.ndarray,
    ) -> np.ndarray | None:
        """Run rows over the table, and write their keys and values to the scratch pages.

        Returns mean queries [L, Hq, D] where the system reads by them.
        """
        return self._stream.run(self._step_in_stream, run, tokens, features, positions).done()

    def _step_in_stream(
        self,
        run: LanguageRun,
        tokens: np.ndarray,
        features: Sequence[Array],
        positions: np.ndarray,
        decodes: bool = False,
    ) -> np.ndarray | None:
        stream = self._stream
        with self._shared.clock.measure("question", stream, rows=len(tokens)):
            out, q = self._run_in_stream(run, tokens, features, positions)
            while decodes and q is not None and self._must_rerun_in_stream(q, False):
                out, q = self._run_in_stream(run, tokens, features, positions)
            rows = slice(self._rows, self._rows + len(tokens))
            self._memory.pool.write(
                self._slots[rows], self._layout.cell[rows], out.k, out.v, positions, stream
            )
            self._rows = rows.stop
        return q

    def _run_in_stream(
        self, run: LanguageRun, tokens: np.ndarray, features: Sequence[Array], positions: np.ndarray
    ) -> tuple[LanguageOutput, np.ndarray | None]:
        reader = self._reader
        table = self._memory.table(self._table, reader.table if reader else None)
        out = run(tokens, features, positions, table, self._stream)
        if reader is None:
            return out, None
        (q,) = self._device.read(self._stream, out.q)
        return out, q.copy()

    @property
    def _first_text_page(self) -> int:
        return self._layout.run.index(len(self._snapshot.deferred))

    @property
    def _pages_written(self) -> int:
        return int(self._layout.page[self._rows - 1]) + 1

    def _generated(self, tokens: list[int], text: str) -> dict[str, Any]:
        """The fields of the Answer that say what was generated."""
        return {
            "text": text,
            "tokens": len(tokens),
            "probability": math.exp(float(np.mean(self._log_probabilities[: max(1, len(tokens))]))),
            "first_probability": math.exp(self._log_probabilities[0]),
            "empty": None if text else self._why_empty(len(tokens)),
            "complete": self._complete,
            "logprobs": self._token_report.of(len(tokens)),
        }

    def _report(self, ttft: int, fields: dict[str, Any]) -> Answer:
        """ttft: nanoseconds."""
        snapshot, leased = self._snapshot, Reading.of(self._lease)
        deferred = tuple(unit.page for unit in snapshot.deferred)
        recalled = tuple(self._reader.pages()) if self._reader else ()
        pages = leased.most_pages + sum(run < len(deferred) for run in self._layout.run)
        tokens = leased.tokens + sum(page.tokens for page in deferred)
        if self._reader:
            pages += self._reader.selection.max_cells
            tokens += self._reader.selection.tokens
        reading = Reading((*recalled, *leased.pages, *deferred), pages, tokens)
        again = self._lease is snapshot.wider
        return answer_to(self._asked, snapshot, reading, ttft, asked_again=again, **fields)

    def _why_empty(self, tokens: int) -> WhyEmpty:
        """tokens: of the answer, of which no text is left."""
        if not tokens:
            return "ended-at-once"
        return "stop-text" if self._stopped else "no-text"


def answer(shared: Answerer, asked: AskedQuestion, snapshot: Snapshot) -> Answer:
    """Answer a question from its snapshot, which is released afterwards.

    Raises CancelledError as soon as the answer is no longer wanted, what the asker's function for
    tokens raises, and QuestionError if the question has no room in the trained positions.
    """
    try:
        asked.check_wanted()
        if snapshot.closed:
            return unasked(asked, snapshot)
        return AnswerRun(shared, asked, snapshot).answer()
    finally:
        snapshot.release()
