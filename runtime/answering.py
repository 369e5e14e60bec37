"""What questions share: snapshots of the stream, and buffers for their runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial

import numpy as np

from vicort.runtime.ask_gates import AskGates, check_gate
from vicort.runtime.conversations import Conversations
from vicort.runtime.core import Page, Question, WhyEmpty
from vicort.runtime.devices.device import Device, StreamEvent
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import QuestionError
from vicort.runtime.language.choice_calibration import ChoiceCalibration
from vicort.runtime.language.choice_tree import ChoiceTree
from vicort.runtime.language.constraints import check_logprobs
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.language.token_grammars import TokenGrammars
from vicort.runtime.manifest import MAX_ENDS, ModelSpec
from vicort.runtime.memory.chunk_fork import ChunkFork
from vicort.runtime.memory.kept_content import KeptContent
from vicort.runtime.memory.lease import Lease
from vicort.runtime.memory.long_term.protocols import View
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.memory_plan import ANSWER_TOKENS
from vicort.runtime.safe_text import shown
from vicort.runtime.stages.prefill import DeferredUnit, Prefill

logger = logging.getLogger(__name__)

CHOICE_TREES = 256  # kept, as standing questions repeat
MAX_NAME = 1000  # characters of a question's id, and of the name of a conversation


@dataclass(frozen=True)
class Snapshot:
    """The stream as it was when a question came, kept by a lease."""

    lease: Lease
    wider: Lease | None  # of what is read if the question is run again; None: it never is
    view: View | None  # of long-term memory by layer and head, where the system has it
    first_text: int  # position of the question's first token
    seen_until: Fraction | None  # seconds; None = nothing was seen
    deferred: tuple[DeferredUnit, ...]  # units that the question has to prefill itself
    memory_from: Fraction | None  # seconds, start of the oldest unit that is remembered
    ready: StreamEvent  # done when all of it is in memory
    # why the question is not asked: its gate is closed, and nothing is leased; None = it is asked
    closed: WhyEmpty | None = None

    def release(self) -> None:
        self.lease.release()
        if self.wider:
            self.wider.release()
        if self.view:
            self.view.release()


class Answerer:
    """What questions share: the question stream, conversations, idle buffers."""

    def __init__(
        self,
        device: Device,
        engines: EngineSet,
        memory: Memory,
        prompt: Prompt,
        prefill: Prefill,
        clock: StageClock,
    ) -> None:
        self.device = device
        self.engines = engines
        self.memory = memory
        self.prompt = prompt
        self.clock = clock
        self.model = engines.manifest.model
        self.stream = device.stream("question", urgent=True)
        self.conversations = Conversations(memory, self.stream)
        self.grammars = TokenGrammars(prompt, self.model.vocabulary, self.model.eos_tokens)
        self.calibration = ChoiceCalibration.of_folder(engines.folder)
        self.gates = AskGates()
        self._prefill = prefill
        self._choice_trees = lru_cache(maxsize=CHOICE_TREES)(
            partial(_tree_of, prompt, min(ANSWER_TOKENS - 1, MAX_ENDS, self.model.max_rows))
        )
        self._idle_runs: list[LanguageRun] = []
        self._lock = threading.Lock()

    def check(self, question: Question) -> None:
        """Raises QuestionError, or ConfigError for its sampling, if no stream could answer the
        question."""
        if not isinstance(question.text, str):
            raise QuestionError(
                f"the question {shown(question.text)} is no text: give a str, such as 'what is "
                "there now?'"
            )
        tokens = len(self.prompt.question(question.text))
        if tokens > self.model.max_rows:
            raise QuestionError(
                f"the question has {tokens} tokens, this engine takes {self.model.max_rows}: ask "
                "a shorter one"
            )
        TokenChoice(question.sampling)
        if question.sampling.max_tokens > ANSWER_TOKENS:
            raise QuestionError(
                f"max_tokens {shown(question.sampling.max_tokens)} is too many: an answer has room "
                f"for {ANSWER_TOKENS}"
            )
        conversation = question.conversation
        for field, name in (
            ("id", question.id),
            ("conversation", "" if conversation is None else conversation),
        ):
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise QuestionError(
                    f"the question's {field} is {shown(name)}: give a text of at most {MAX_NAME} "
                    "characters"
                )
        if question.at is not None and question.at < 0:
            raise QuestionError(
                f"the question's time {float(question.at):g} s is negative: the stream starts at 0"
            )
        check_range(question)
        self.grammars.check(question.constraint)
        check_logprobs(question)
        check_gate(question)

    def choice_tree(self, question: Question) -> ChoiceTree:
        """Of a question with choices. Raises QuestionError for too many tokens of a choice."""
        if question.constraint is None:
            raise ValueError("the question has no choices")
        return self._choice_trees(question.constraint.choices)

    def sized(self, question: Question) -> Question:
        """The question with as many tokens for its answer as its longest choice and an end have."""
        if question.constraint is None or not question.constraint.choices:
            return question
        longest = max(map(len, self.choice_tree(question).choices))
        return replace(question, sampling=replace(question.sampling, max_tokens=longest + 1))

    def snapshots_in_stream(
        self, questions: Sequence[Question], newest_chunk: StreamEvent | None, forked: bool
    ) -> list[Snapshot | Exception]:
        """Retrieve units for each of some questions about one moment, and lease them; or what that
        failed with. Runs in the prefill stream's own work.

        newest_chunk: done when the chunks that the questions see are in memory. forked: whether
        they also see the chunk that is being filled, which was forked before.
        """
        if newest_chunk:
            self._prefill.stream.wait(newest_chunk)
        memory, deferred = self.memory, self._deferred(forked)
        content = KeptContent(
            memory, memory.fork if forked else None, [unit.page for unit in deferred]
        )
        taken: list[Snapshot | Exception] = []
        for question in questions:
            try:
                taken.append(self._snapshot_in_stream(question, forked, deferred, content))
            except Exception as error:  # noqa: BLE001 - of this question alone
                taken.append(error)
        return taken

    def _snapshot_in_stream(
        self,
        question: Question,
        forked: bool,
        deferred: tuple[DeferredUnit, ...],
        content: KeptContent,
    ) -> Snapshot:
        memory, prefill = self.memory, self._prefill
        digest = self._query(question)
        closed = self.gates.closed(question, content, digest)
        if memory.system.text.joins and not closed:
            needed = len(self.prompt.question(question.text)) + question.sampling.max_tokens + 1
            memory.keep_text_in_range(needed, forked, prefill.stream)
        fork, within = memory.fork if forked else None, question.within
        memory_from = memory.oldest()
        if memory_from is None and fork:
            memory_from = fork.start
        if memory_from is None and deferred:
            memory_from = deferred[0].start
        if closed:
            logger.debug("question %s is not asked: %s", question.id, closed)
            lease, wider, view = Lease(memory.tiers, []), None, None
        else:
            lease, wider = self._leases(question, digest, fork)
            view = memory.view(within)
        if within:
            deferred = tuple(unit for unit in deferred if within.overlaps(unit.start, unit.end))
        return Snapshot(
            lease=lease,
            wider=wider,
            view=view,
            first_text=fork.next_text if fork else memory.timeline.next_text,
            seen_until=prefill.forked_until if forked else prefill.seen_until,
            deferred=() if closed else deferred,
            memory_from=memory_from,
            ready=prefill.stream.record(),
            closed=closed,
        )

    def _leases(
        self, question: Question, digest: np.ndarray, fork: ChunkFork | None
    ) -> tuple[Lease, Lease | None]:
        """Of what a question reads, and of what it reads if it is run again."""
        memory, within, policy = self.memory, question.within, self.memory.system.retrieval
        units = memory.choose(policy, digest, fork, within)
        more = memory.choose(policy.wider(), digest, fork, within) if policy.ask_again else units
        logger.debug(
            "question %s reads units %s of %d chunks in memory%s",
            question.id,
            units,
            len(memory.chunks),
            " and one that is being filled" if fork else "",
        )
        return memory.lease(units, fork), memory.lease(more, fork) if more != units else None

    def _deferred(self, forked: bool) -> tuple[DeferredUnit, ...]:
        """The units that a question prefills itself."""
        units = tuple(self._prefill.deferred)
        if not forked:
            return units
        most = self.memory.system.ingest.deferred_units
        return (*units, *self._prefill.forked_units)[-most:]

    def _query(self, question: Question) -> np.ndarray:
        """[width] float32: the mean embedding that retrieval compares with chunks."""
        alone = self.memory.system.retrieval.query_tokens == "question"
        read = self.prompt.words if alone else self.prompt.question
        tokens = np.asarray(read(question.text), np.int32)
        query: np.ndarray = self.engines.embedding[tokens].mean(axis=0)
        return query

    def append_to_stream(self, pages: Sequence[Page], slots: Sequence[int], end: int) -> None:
        """A question and its answer become part of the stream.

        slots: scratch slots of its text's pages; end: position of its last token. Runs in the
        prefill stream's own work, in which the question is answered too.
        """
        stream = self._prefill.stream
        stream.wait(self.stream.run(self.stream.record).enqueued())
        self.memory.append_text(pages, slots, end, stream)

    def borrow(self) -> LanguageRun:
        """Buffers for one answer."""
        with self._lock:
            if self._idle_runs:
                return self._idle_runs.pop()
        return LanguageRun(self.engines, self.device, self.memory.pool)

    def give_back(self, run: LanguageRun) -> None:
        with self._lock:
            self._idle_runs.append(run)


def _tree_of(prompt: Prompt, most: int, choices: tuple[str, ...]) -> ChoiceTree:
    """most: tokens of a choice. Raises QuestionError."""
    tokens = [prompt.words(choice) for choice in choices]
    for choice, its in zip(choices, tokens, strict=True):
        if len(its) > most:
            raise QuestionError(
                f"the choice {shown(choice)} has {len(its)} tokens, at most {most} are allowed: "
                "give a shorter one"
            )
    return ChoiceTree(tokens)


def check_range(question: Question) -> None:
    """Raises QuestionError for a part of the stream that begins before 0, or ends before it
    begins."""
    since, until = question.since, question.until
    for name, time in (("since", since), ("until", until)):
        if time is not None and time < 0:
            raise QuestionError(
                f"the question's {name} {float(time):g} s is negative: the stream starts at 0"
            )
    if since is not None and until is not None and since > until:
        raise QuestionError(
            f"the question's since {float(since):g} s is after its until {float(until):g} s: give "
            "the earlier time as since"
        )


def too_few_positions(tokens: int, free: int, model: ModelSpec) -> QuestionError:
    """free: positions after the video."""
    return QuestionError(
        f"the question has {tokens} tokens, and {max(free, 0)} of the model's "
        f"{model.max_position} positions are free after the video: ask a shorter one"
    )
