"""What memory holds at one moment, as the gates of standing questions compare it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from vicort.runtime.core import Page, TimeRange
from vicort.runtime.memory.chunk_fork import ChunkFork
from vicort.runtime.memory.memory import Memory
from vicort.runtime.policies.chunk_index import ChunkEntry


@dataclass(frozen=True)
class ContentMark:
    """What a standing question could read when it was asked."""

    mark: bytes  # two contents with the same mark are the same
    chunk: int  # index of the newest chunk of which anything is kept; -1 = there is none
    chunk_mark: bytes  # of that chunk, which may have been open
    chunks_kept: int  # by the stream until then, the open one not counted
    newest_kept: int  # index of the newest of them


class KeptContent:
    """The units in memory, those of a forked chunk, units that wait for a question, and appended
    text. Used in the order of the stream, before it goes on.

    A unit is known by its number, its end and its number of tokens: within a unit a drop policy
    only ever keeps more tokens as its chunk is filled, and half a unit ends earlier than the whole
    one. Tokens that are dropped, and units of which nothing is kept, are no content.
    """

    def __init__(self, memory: Memory, fork: ChunkFork | None, deferred: Sequence[Page]) -> None:
        """fork: the chunk that is being filled, where questions see it. deferred: a page for each
        unit that a question prefills itself."""
        self._memory = memory
        self._fork = fork
        self._deferred = deferred
        self._gone = memory.displaced_by(fork)
        self._marks: dict[TimeRange | None, bytes] = {}
        entries = list(memory.chunks)
        if fork and fork.locations:
            entries.append(fork.entry())
        self._entries = entries

    def mark(self, within: TimeRange | None) -> ContentMark:
        """Of what a question about this part of the stream could read."""
        if within not in self._marks:
            self._marks[within] = self._mark(within)
        newest = self._entries[-1] if self._entries else None
        return ContentMark(
            self._marks[within],
            newest.chunk if newest else -1,
            self._chunk_mark(newest) if newest else b"",
            self._memory.chunks_kept,
            self._memory.newest_kept,
        )

    def likeness_since(
        self, before: ContentMark, question: np.ndarray, within: TimeRange | None
    ) -> float | None:
        """The largest cosine of a question's mean embedding, [width] float32, with the digests of
        the chunks that came or grew since `before`, and have units in the range; -1 if there are
        none. None where it is not known: where units have no digest before they are asked about, or
        one of these chunks has left already."""
        memory = self._memory
        came = memory.chunks_kept - before.chunks_kept
        held = sum(entry.chunk > before.newest_kept for entry in memory.chunks)
        if self._deferred or held < came:
            return None
        seen = memory.seen_chunks(self._fork, within)
        is_new = [self._is_new(entry.chunk, before) for entry in seen]
        return float(max(seen.cosines(question)[np.array(is_new, bool)], default=-1.0))

    def _is_new(self, chunk: int, before: ContentMark) -> bool:
        if chunk != before.chunk:
            return chunk > before.chunk
        entry = next(each for each in reversed(self._entries) if each.chunk == chunk)
        return self._chunk_mark(entry) != before.chunk_mark

    def _mark(self, within: TimeRange | None) -> bytes:
        memory, parts = self._memory, []
        for entry in self._entries:
            pages = self._pages(entry)
            inside = [
                page.unit not in self._gone
                and (within is None or within.overlaps(page.start, page.end))
                for page in pages
            ]
            if any(inside):  # the others count too: a chunk's digest is that of all
                parts.append((*map(_facts, pages), *inside))
        waiting = [
            _facts(page)
            for page in self._deferred
            if within is None or within.overlaps(page.start, page.end)
        ]
        texts = [location.page.id for run in memory.texts for location in run]
        return _digest((parts, waiting, texts, self._long_term(within)))

    def _long_term(self, within: TimeRange | None) -> object:
        """What was absorbed so far. A range that reaches into it always counts as another one."""
        until = self._memory.absorbed_until
        if until is None or (within and within.since is not None and within.since > until):
            return None
        return self._memory.chunks_absorbed, within

    def _chunk_mark(self, entry: ChunkEntry) -> bytes:
        return _digest([_facts(page) for page in self._pages(entry)])

    def _pages(self, entry: ChunkEntry) -> list[Page]:
        """Of a chunk, or of the open one."""
        if self._fork and self._fork.locations and entry.chunk == self._fork.index:
            return [location.page for location in self._fork.locations]
        tiers = self._memory.tiers
        return [location.page for unit in entry.units for location in tiers.locations(unit)]


def _facts(page: Page) -> tuple[int, int, str]:
    return page.unit, page.tokens, str(page.end)


def _digest(content: object) -> bytes:
    return blake2b(repr(content).encode(), digest_size=16).digest()
