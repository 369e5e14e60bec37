"""The earlier turns of conversations, whose text later turns see."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.core import Question
from vicort.runtime.devices.device import Stream
from vicort.runtime.memory.memory import Memory

FORGOTTEN_AFTER = 3600  # seconds of the stream without a question


@dataclass(frozen=True)
class Turn:
    """One question and its answer, whose pages the next turn of the conversation sees."""

    question: str
    text: str
    slots: tuple[int, ...]  # of the pool's conversation part


@dataclass
class Conversation:
    used: Fraction  # seconds, time of its newest question
    turns: list[Turn] = field(default_factory=list)
    # the questions of it that are not answered yet: turns follow one another
    running: list[AskedQuestion] = field(default_factory=list)
    forked: int = -1  # the newest chunk that a turn saw while it was being filled


class Conversations:
    """What is kept of conversations, least recently used first.

    All share the conversations' part of the pool. Where it is full, the oldest turns of the
    conversation that was used least recently are forgotten; a conversation that is being answered
    loses turns only to itself. A conversation in which nothing was asked for FORGOTTEN_AFTER
    seconds of the stream is forgotten. Nothing is kept of one without turns, so that names take no
    memory. Thread-safe; methods that move pages run in the question stream's work.
    """

    def __init__(self, memory: Memory, stream: Stream) -> None:
        """stream: of questions."""
        self._memory = memory
        self._stream = stream
        self._kept: dict[str, Conversation] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def enter(self, asked: AskedQuestion, now: Fraction, forked: int) -> AskedQuestion | None:
        """Enter a question into its conversation; returns the question that it has to wait for.

        now: seconds, the stream's time; forked: the chunk that it sees while it is being filled, -1
        = none.
        """
        name = asked.question.conversation
        if name is None:
            return None
        with self._lock:
            self._forget_before(now - FORGOTTEN_AFTER)
            conversation = self._kept.pop(name, None) or Conversation(now)
            conversation.used = now
            conversation.forked = max(conversation.forked, forked)
            self._kept[name] = conversation
            before = conversation.running[-1] if conversation.running else None
            conversation.running.append(asked)
            return before

    def leave(self, asked: AskedQuestion) -> None:
        """Nothing is done for this question any more."""
        name = asked.question.conversation
        if name is None:
            return
        with self._lock:
            conversation = self._kept.get(name)
            if conversation and asked in conversation.running:
                conversation.running.remove(asked)
                if not conversation.running and not conversation.turns:
                    del self._kept[name]

    def forked(self, name: str | None) -> int:
        """The newest chunk that a turn of a conversation saw while it was being filled, or -1."""
        with self._lock:
            conversation = self._kept.get(name) if name is not None else None
            return conversation.forked if conversation else -1

    def turns(self, question: Question) -> list[Turn]:
        """The earlier turns of its conversation that are still cached; none where they are part of
        the stream anyway."""
        if question.conversation is None or self._memory.system.text.joins:
            return []
        with self._lock:
            conversation = self._kept.get(question.conversation)
            return list(conversation.turns) if conversation else []

    def place_in_stream(self, question: Question, after_video: int, needed: int) -> int:
        """Position of the question's first token: behind the video and its earlier turns.

        after_video: the first position behind the video; needed: positions from the first token
        on, which fit behind the video. Where they do not fit behind the turns, the turns' positions
        are moved back together, but never before the prompt's end: turns that would be there are
        forgotten.
        """
        turns, last = self.turns(question), self._memory.model.max_position
        if not turns:
            return after_video
        first = max(after_video, self._end(turns))
        excess = first + needed - last
        if excess <= 0:
            return first
        floor = self._memory.timeline.first
        # At least so far that the gap of turns that were forgotten is closed.
        back = max(excess, self._start(turns[0]) - after_video)
        while turns and self._start(turns[0]) - back < floor:
            self._forget_oldest(question)
            del turns[0]
        if not turns:
            return after_video
        slots = [slot for turn in turns for slot in turn.slots]
        self._memory.pool.shift(slots, np.array([back] * 3), floor, self._stream)
        return max(after_video, self._end(turns))

    def keep_turn_in_stream(self, question: Question, text: str, pages: Sequence[int]) -> None:
        """Copy a turn's text pages to the conversations' part.

        A turn for which no room can be made is not kept, and neither is anything before it: a
        conversation has no holes.
        """
        slots, pool = self._memory.tiers.conversation_slots, self._memory.pool
        with self._lock:
            own = self._kept.get(question.conversation or "")
            if own is None:
                return
            crowded = self._victims(own)
            while slots.live and slots.live + len(pages) > slots.count:
                victim = next(crowded, None)
                if victim is None:
                    break
                slots.free(victim.turns.pop(0).slots)
            if slots.live + len(pages) <= slots.count:
                kept = slots.allocate(len(pages))
                pool.copy_from(pool, pages, kept, self._stream)
                own.turns.append(Turn(question.text, text, tuple(kept)))
            self._drop_empty()

    def _victims(self, own: Conversation) -> Iterator[Conversation]:
        """The conversations that may lose a turn, once for each turn: the own one last."""
        idle = [each for each in self._kept.values() if each is not own and not each.running]
        for each in [*idle, own]:
            while each.turns:
                yield each

    def _forget_before(self, time: Fraction) -> None:
        """Conversations are in the order of their use, and so in that of their times."""
        for name, conversation in list(self._kept.items()):
            if conversation.used >= time:
                break
            if not conversation.running:
                for turn in self._kept.pop(name).turns:
                    self._memory.tiers.conversation_slots.free(turn.slots)

    def _forget_oldest(self, question: Question) -> None:
        with self._lock:
            turn = self._kept[question.conversation or ""].turns.pop(0)
            self._memory.tiers.conversation_slots.free(turn.slots)

    def _drop_empty(self) -> None:
        empty = [name for name, each in self._kept.items() if not (each.turns or each.running)]
        for name in empty:
            del self._kept[name]

    def _start(self, turn: Turn) -> int:
        """Position of a turn's first token."""
        return int(self._memory.pool.host_positions[turn.slots[0], 0, 0, 0, 0])

    def _end(self, turns: Sequence[Turn]) -> int:
        """The position behind the last token of some turns."""
        slots = [slot for turn in turns for slot in turn.slots]
        return int(self._memory.pool.host_positions[slots].max()) + 1
