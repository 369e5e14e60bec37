"""How a system's byte budgets become pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.long_term import LongTerm
from vicort.runtime.policies.system import System

# chunks that the stream can place while a question reads what it would have overwritten
SPARE_CHUNKS = 4
QUESTIONS_AT_ONCE = 4  # questions whose text has room in the scratch pages at the same time
ANSWER_TOKENS = 512  # longest answer
CONVERSATION_TOKENS = 1024  # text of earlier turns that is kept for the next one


@dataclass(frozen=True)
class MemoryPlan:
    """Of the stream, of running questions and of conversations on the device; of the stream behind
    it."""

    stream: int
    # stand in for pages that were forgotten under a question's lease, so that the stream goes on
    spare: int
    scratch: int
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
        """Raises MemoryBudgetError, with the smallest budget that works, if one chunk does not fit.
        bytes_of_page: on the device."""

        def pages(tokens: int) -> int:
            return math.ceil(tokens / model.page_tokens)

        chunk_units = model.chunk_frames // UNIT_FRAMES
        unit_pages = pages(model.unit_tokens)
        host = 0 if long_term else int(system.budget.host_mb * 1e6) // bytes_of_page
        deferred = 0 if system.ingest.prefills else chunk_units * unit_pages
        recalled = min((system.retrieval.most_units(chunk_units) or 0) * unit_pages, host)
        if long_term:  # of one question, and of the stream itself
            recalled = (
                long_term.most_cells
                * long_term.recall_sets
                * (2 if long_term.reads_in_prefill else 1)
            )
        scratch = (
            QUESTIONS_AT_ONCE * (pages(model.max_rows) + pages(ANSWER_TOKENS) + deferred) + recalled
        )
        conversation = pages(CONVERSATION_TOKENS)
        spare = SPARE_CHUNKS * chunk_units * unit_pages if system.ingest.prefills else 0
        window = (2 if long_term or system.ingest.slides else 1) + (
            system.ingest.window or 0
        )  # one may be of pieces, when questions cut it
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
                f"of {model.chunk_frames} frames with "
                f"system {system.name}: set memory.device_mb to at least {smallest}"
            )
        return MemoryPlan(stream, spare, scratch, conversation, host)
