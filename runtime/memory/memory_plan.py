"""How a system's byte budgets become pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.protocols import LongTermSize
from vicort.runtime.policies.system import System

# Chunks that the stream can write while a question leases the pages that they would replace, and
# the one that is being filled, as questions see it.
SPARE_CHUNKS = 5
QUESTIONS_AT_ONCE = 4  # questions whose text fits in the scratch pages at the same time
ANSWER_TOKENS = 512  # longest answer
CONVERSATION_TOKENS = 1024  # text of earlier turns that is kept for the next one


@dataclass(frozen=True)
class LeastPages:
    """The fewest device pages with which a system works."""

    stream: int  # prompt, window and appended text
    spare: int  # replace pages that are evicted under a question's lease
    questions: int  # text of running questions, and the units that they prefill
    recalled: int  # copies of what they read from the host
    recalled_least: int  # the same where they read as little as the system's policy can
    conversation: int
    fixed: int  # of `stream`: prompt and appended text

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

        chunk_pages = chunk_units(system, model) * unit_pages(model)
        engine_chunk_pages = model.chunk_frames // UNIT_FRAMES * unit_pages(model)
        prefills = system.ingest.prefills
        most, fewest = units_read(system, model)
        recalled, recalled_least = (
            min(units * unit_pages(model), host_pages) for units in (most or 0, fewest)
        )
        if long_term:
            readers = 2 if long_term.reads_in_prefill else 1  # one question, and the stream itself
            recalled = long_term.max_cells * long_term.recall_sets * readers
            recalled_least = recalled
        question = pages(model.max_rows) + pages(ANSWER_TOKENS)
        if not prefills:
            question += system.ingest.deferred_units * unit_pages(model)
        # Where the window is counted in units, one more chunk may be there in pieces.
        pieces = 1 if long_term or system.ingest.slides else 0
        window = 1 + pieces + (system.ingest.window or 0)
        text = (
            pages(system.text.tokens + model.max_rows + ANSWER_TOKENS) if system.text.joins else 0
        )
        return LeastPages(
            stream=pages(prompt_tokens) + window * chunk_pages + text,
            fixed=pages(prompt_tokens) + text,
            spare=SPARE_CHUNKS * engine_chunk_pages if prefills else 0,
            questions=QUESTIONS_AT_ONCE * question,
            recalled=recalled,
            recalled_least=recalled_least,
            conversation=pages(CONVERSATION_TOKENS),
        )

    @property
    def others(self) -> int:
        """All but the stream's."""
        return self.spare + self.questions + self.recalled + self.conversation

    @property
    def total(self) -> int:
        return self.stream + self.others

    @property
    def least(self) -> int:
        """In total, where questions read as little as they can."""
        return self.total - self.recalled + self.recalled_least


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
        host = 0 if long_term else host_tier_pages(budget.host_mb, bytes_of_page, model)
        least = LeastPages.of(model, system, long_term, prompt_tokens, host)
        stream = pages_in(budget.device_mb, bytes_of_page) - least.others
        if stream < least.stream:
            raise too_small(least, bytes_of_page, model, system, budget.device_mb)
        scratch = least.questions + least.recalled
        return MemoryPlan(stream, least.spare, scratch, least.conversation, host)


def too_small(
    least: LeastPages, bytes_of_page: int, model: ModelSpec, system: System, device_mb: float
) -> MemoryBudgetError:
    whole, reduced = (
        math.ceil(pages * bytes_of_page / 1e6) for pages in (least.total, least.least)
    )
    return MemoryBudgetError(
        f"a device budget of {device_mb:g} MB is too small for a chunk of {model.chunk_frames} "
        f"frames and the questions of system {system.name}: give --memory {reduced}MB or more, or "
        f"set memory.device_mb to at least {whole}"
    )


def units_read(system: System, model: ModelSpec) -> tuple[int | None, int]:
    """The most units that a question reads, None = all, and the lowest that this can be set to."""
    of_chunk = chunk_units(system, model)
    most = system.retrieval.max_units(of_chunk)
    return most, min(system.retrieval.min_units(of_chunk), most or 0)


def chunk_units(system: System, model: ModelSpec) -> int:
    """Temporal units of a full chunk."""
    return (system.chunk_frames or model.chunk_frames) // UNIT_FRAMES


def unit_pages(model: ModelSpec) -> int:
    """Pages of a temporal unit of which nothing is dropped."""
    return math.ceil(model.unit_tokens / model.page_tokens)


def pages_in(megabytes: float, bytes_of_page: int) -> int:
    return int(megabytes * 1e6) // bytes_of_page


def host_tier_pages(host_mb: float, bytes_of_page: int, model: ModelSpec) -> int:
    """Raises MemoryBudgetError if a unit does not fit: pages would wait for room for ever."""
    pages = pages_in(host_mb, bytes_of_page)
    if host_mb > 0 and pages < unit_pages(model):
        smallest = math.ceil(unit_pages(model) * bytes_of_page / 1e4) / 100
        raise MemoryBudgetError(
            f"a host budget of {host_mb:g} MB does not hold two frames: give --host-memory "
            f"{smallest:g}MB or more, or 0MB, or set memory.host_mb"
        )
    return pages
