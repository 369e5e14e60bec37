"""Which askings of standing questions are left out, because their answers would be the same."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from vicort.runtime.core import AskGate, Constraint, Question, WhyEmpty
from vicort.runtime.errors import QuestionError
from vicort.runtime.memory.kept_content import ContentMark, KeptContent
from vicort.runtime.safe_text import is_real, shown

MAX_STANDING = 4096  # standing questions whose last asking is known
MAX_GATE_NAME = 1000  # characters


class AskGates:
    """What each standing question could read when it was asked last. Of more than MAX_STANDING, the
    one that was looked at longest ago is forgotten, and asked next time. Thread-safe."""

    def __init__(self) -> None:
        self._asked: OrderedDict[object, ContentMark] = OrderedDict()
        self._lock = threading.Lock()

    def closed(
        self, question: Question, content: KeptContent, embedding: np.ndarray
    ) -> WhyEmpty | None:
        """Why a question that is due is not asked; None = it is, which is noted. Runs in the order
        of the stream.

        embedding: [width] float32, the mean of the question's tokens.
        """
        gate = question.gate
        if gate is None:
            return None
        key, now = _key(question, gate), content.mark(question.within)
        with self._lock:
            before = self._asked.get(key)
        why = before and self._why(gate, before, now, question, content, embedding)
        with self._lock:
            if why and before:
                now = before
            self._asked[key] = now
            self._asked.move_to_end(key)
            if len(self._asked) > MAX_STANDING:
                self._asked.popitem(last=False)
        return why or None

    def _why(
        self,
        gate: AskGate,
        before: ContentMark,
        now: ContentMark,
        question: Question,
        content: KeptContent,
        embedding: np.ndarray,
    ) -> WhyEmpty | None:
        if gate.changed and now.mark == before.mark:
            return "unchanged"
        if gate.like is None:
            return None
        likeness = content.likeness_since(before, embedding, question.within)
        return "unlike" if likeness is not None and likeness < gate.like else None

    def forget(self, question: Question) -> None:
        """A question that was asked got no answer: its next asking is asked."""
        if question.gate:
            with self._lock:
                self._asked.pop(_key(question, question.gate), None)


def check_gate(question: Question) -> None:
    """Raises QuestionError for a gate that no question can have."""
    gate = question.gate
    if gate is None:
        return
    if not isinstance(gate, AskGate):
        raise QuestionError(
            f"the question's gate is {shown(gate)}: give an AskGate, such as AskGate(changed=True)"
        )
    if not isinstance(gate.name, str) or len(gate.name) > MAX_GATE_NAME:
        raise QuestionError(
            f"the gate's name is {shown(gate.name)}: give a text of at most {MAX_GATE_NAME} "
            "characters"
        )
    if gate.like is not None and not (is_real(gate.like) and -1 <= gate.like <= 1):
        raise QuestionError(
            f"the gate's like is {shown(gate.like)}: give a cosine from -1 to 1, such as 0.1"
        )
    if question.conversation is not None:
        raise QuestionError(
            "the question has a gate and a conversation: earlier turns change what it reads, so "
            "leave one of them out"
        )


def _key(question: Question, gate: AskGate) -> tuple[str, str, Constraint | None]:
    return gate.name, question.text, question.constraint
