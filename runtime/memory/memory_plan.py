"""How a system's byte budgets become pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.protocols import LongTermSize
from vicort.runtime.policies.system import System

# Chunks that the stream can write while a question leases the pages that they would replace.
SPARE_CHUNKS = 4
QUESTIONS_AT_ONCE = 4  # questions whose text fits in the scratch pages at the same time
ANSWER_TOKENS = 512  # longest answer
CONVERSATION_TOKENS = 1024  # text of earlier turns that is kept for the next one


@dataclass(frozen=True)
class LeastPages:
    """The fewest device pages with which a system works."""

    stream: int  # prompt, window and appended text
    spare: int  # replace pages that are evicted under a question's lease
    questions: int  # text of running questions
    recalled: int  # copies of what they read from the host
    conversation: int

    @staticmethod
    def of(
        model: ModelSpec,
        system: System,
        long_term: LongTermSize | None,
        prompt_tokens: int,
        host_pages: int,
    ) -> LeastPages:
        """host_pages: of the host tier, 0 with long-term memory."""

        def pages(tokens: int) -> int:
            return math.ceil(tokens / model.page_tokens)

        chunk_units = model.chunk_frames // UNIT_FRAMES
        chunk_pages = chunk_units * unit_pages(model)
        prefills = system.ingest.prefills
        recalled = (system.retrieval.max_units(chunk_units) or 0) * unit_pages(model)
        recalled = min(recalled, host_pages)
        if long_term:
            readers = 2 if long_term.reads_in_prefill else 1  # one question, and the stream itself
            recalled = long_term.max_cells * long_term.recall_sets * readers
        deferred = 0 if prefills else chunk_pages
        question = pages(model.max_rows) + pages(ANSWER_TOKENS) + deferred
        # Where the window is counted in units, one more chunk may be there in pieces.
        pieces = 1 if long_term or system.ingest.slides else 0
        window = 1 + pieces + (system.ingest.window or 0)
        text = (
            pages(system.text.tokens + model.max_rows + ANSWER_TOKENS) if system.text.joins else 0
        )
        return LeastPages(
            stream=pages(prompt_tokens) + window * chunk_pages + text,
            spare=SPARE_CHUNKS * chunk_pages if prefills else 0,
            questions=QUESTIONS_AT_ONCE * question,
            recalled=recalled,
            conversation=pages(CONVERSATION_TOKENS),
        )

    @property
    def others(self) -> int:
        """All but the stream's."""
        return self.spare + self.questions + self.recalled + self.conversation

    @property
    def total(self) -> int:
        return self.stream + self.others


@dataclass(frozen=True)
class MemoryPlan:
    """Page counts: stream, questions and conversations on the device; stream pages on the host."""

    stream: int
    spare: int  # replace pages that are evicted under a question's lease
    scratch: int  # of running questions
    conversation: int
    host: int

    @staticmethod
    def of(
        model: ModelSpec,
        system: System,
        long_term: LongTermSize | None,
        prompt_tokens: int,
        bytes_of_page: int,
    ) -> MemoryPlan:
        """Divide a system's budget; bytes_of_page: on the device.

        Raises MemoryBudgetError, with the smallest budget that works, if one chunk does not fit.
        """
        budget = system.budget
        host = 0 if long_term else pages_in(budget.host_mb, bytes_of_page)
        least = LeastPages.of(model, system, long_term, prompt_tokens, host)
        stream = pages_in(budget.device_mb, bytes_of_page) - least.others
        if stream < least.stream:
            raise too_small(budget.device_mb, least.total * bytes_of_page, model, system)
        scratch = least.questions + least.recalled
        return MemoryPlan(stream, least.spare, scratch, least.conversation, host)


def too_small(
    device_mb: float, smallest: int, model: ModelSpec, system: System
) -> MemoryBudgetError:
    """smallest: bytes with which it would work."""
    megabytes = math.ceil(smallest / 1e6)
    return MemoryBudgetError(
        f"a device budget of {device_mb:g} MB is too small for one chunk of {model.chunk_frames} "
        f"frames with system {system.name}: give --memory {megabytes}MB or more, or set "
        f"memory.device_mb to at least {megabytes}"
    )


def unit_pages(model: ModelSpec) -> int:
    """Pages of a temporal unit of which nothing is dropped."""
    return math.ceil(model.unit_tokens / model.page_tokens)


def pages_in(megabytes: float, bytes_of_page: int) -> int:
    return int(megabytes * 1e6) // bytes_of_page
