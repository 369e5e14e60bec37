"""A question on its way, and the future that its asker holds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from fractions import Fraction

from vicort.runtime.callback_threads import CallbackThreads
from vicort.runtime.core import Answer, Question
from vicort.runtime.known_failures import KnownFailures

logger = logging.getLogger(__name__)


class AskedQuestion:
    """The session's side of a question.

    The future belongs to the asker, who may cancel it at any time or call anything on it. The
    session gives it the answer, and looks at whether it was cancelled; that the question's work
    has ended is known by `ended` alone. Thread-safe.
    """

    def __init__(
        self,
        question: Question,
        future: Future[Answer],
        on_token: Callable[[str], None] | None,
        callbacks: CallbackThreads,
        known: KnownFailures,
    ) -> None:
        self.question = question
        self.requested: Fraction | None = None  # seconds, its own time, if that had passed
        self.since = 0  # perf_counter_ns when its work began
        self.ended = threading.Event()  # the session does nothing for it any more
        self._unanswered: Future[Answer] | None = future
        self._on_token = on_token
        self._callbacks = callbacks
        self._known = known
        self._lock = threading.Lock()  # guards _unanswered

    @property
    def cancelled(self) -> bool:
        """Whether the asker no longer wants the answer."""
        unanswered = self._unanswered
        return unanswered is None or unanswered.cancelled()

    def check_wanted(self) -> None:
        """Raises CancelledError once the answer is no longer wanted."""
        if self.cancelled:
            raise CancelledError

    def token(self, text: str) -> None:
        """Give the asker a piece of the answer. Raises what his function raises."""
        if self._on_token:
            with self._callbacks.running():
                self._on_token(text)

    def give(self, answer: Answer) -> None:
        self._settle(lambda future: future.set_result(answer))

    def fail(self, error: BaseException) -> None:
        def settle(future: Future[Answer]) -> None:
            self._known.note(error)
            future.set_exception(error)

        self._settle(settle)

    def _settle(self, settle: Callable[[Future[Answer]], None]) -> None:
        """Only the first call has an effect, and only if the asker has not settled it himself."""
        with self._lock:
            # Without a reference from here, an exception that it holds ends with the future.
            future, self._unanswered = self._unanswered, None
        if future is None:
            return
        try:
            with self._callbacks.running():
                if future.set_running_or_notify_cancel():
                    settle(future)
        except (InvalidStateError, RuntimeError):
            logger.warning("question %s: its future was settled by its asker", self.question.id)
