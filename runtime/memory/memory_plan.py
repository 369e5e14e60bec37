"""How a system's byte budgets become pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.protocols import LongTerm
from vicort.runtime.policies.system import System

# Chunks that the stream can write while a question leases the pages that they would replace.
SPARE_CHUNKS = 4
QUESTIONS_AT_ONCE = 4  # questions whose text fits in the scratch pages at the same time
ANSWER_TOKENS = 512  # longest answer
CONVERSATION_TOKENS = 1024  # text of earlier turns that is kept for the next one


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
        long_term: LongTerm | None,
        prompt_tokens: int,
        bytes_of_page: int,
    ) -> MemoryPlan:
        """Divide a system's budget; bytes_of_page: on the device.

        Raises MemoryBudgetError, with the smallest budget that works, if one chunk does not fit.
        """

        def pages(tokens: int) -> int:
            return math.ceil(tokens / model.page_tokens)

        chunk_units = model.chunk_frames // UNIT_FRAMES
        unit_pages = pages(model.unit_tokens)
        host = 0 if long_term else int(system.budget.host_mb * 1e6) // bytes_of_page
        deferred = 0 if system.ingest.prefills else chunk_units * unit_pages
        recalled = min((system.retrieval.max_units(chunk_units) or 0) * unit_pages, host)
        if long_term:
            readers = 2 if long_term.reads_in_prefill else 1  # one question, and the stream itself
            recalled = long_term.max_cells * long_term.recall_sets * readers
        question = pages(model.max_rows) + pages(ANSWER_TOKENS) + deferred
        scratch = QUESTIONS_AT_ONCE * question + recalled
        conversation = pages(CONVERSATION_TOKENS)
        spare = SPARE_CHUNKS * chunk_units * unit_pages if system.ingest.prefills else 0
        # Where the window is counted in units, one more chunk may be there in pieces.
        pieces = 1 if long_term or system.ingest.slides else 0
        window = 1 + pieces + (system.ingest.window or 0)
        text = (
            pages(system.text.tokens + model.max_rows + ANSWER_TOKENS) if system.text.joins else 0
        )
        needed = pages(prompt_tokens) + window * chunk_units * unit_pages + text
        others = spare + scratch + conversation
        stream = int(system.budget.device_mb * 1e6) // bytes_of_page - others
        if stream < needed:
            smallest = math.ceil((needed + others) * bytes_of_page / 1e6)
            raise MemoryBudgetError(
                f"a device budget of {system.budget.device_mb:g} MB is too small for one chunk "
                f"of {model.chunk_frames} frames with system {system.name}: "
                f"set memory.device_mb to at least {smallest}"
            )
        return MemoryPlan(stream, spare, scratch, conversation, host)
