"""The threads on which a session answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

ANSWERS_AT_ONCE = 4


def answer_threads(overlap: bool) -> Executor:
    """overlap: whether answers overlap; otherwise each is made in the thread that asks."""
    return ThreadPoolExecutor(ANSWERS_AT_ONCE, "answer") if overlap else _InlineExecutor()


class _InlineExecutor(Executor):
    """Runs work in the thread that submits it."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        done: Future = Future()
        done.set_result(work(*args, **kwargs))
        return done
