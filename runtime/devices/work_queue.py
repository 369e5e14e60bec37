"""Work in order on one thread. Urgent work comes first, where the work before it allows that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vicort.runtime.devices.urgency import Urgency


@dataclass(frozen=True)
class _Work:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Future = field(default_factory=Future)

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001 (raised to whoever asks the future)
            self.future.set_exception(error)
            del self  # ends the cycle of the error, its frame and the future that has the error
        else:
            self.future.set_result(result)


class WorkQueue:
    """One worker thread. It begins ordinary work only while there is no urgent work elsewhere."""

    def __init__(self, name: str, urgency: Urgency | None = None) -> None:
        """urgency: that ordinary work waits for; None: it waits for nothing."""
        self._urgency = urgency
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._thread: int | None = None
        self._changed = threading.Condition()  # of the two below
        self._queued: deque[_Work] = deque()
        self._first: deque[_Work] = deque()

    @property
    def here(self) -> bool:
        """Whether the caller is the worker thread."""
        return threading.get_ident() == self._thread

    def put(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run `function` after all work that was put here before. Raises RuntimeError after
        `close`."""
        return self._put(self._queued, _Work(function, arguments))

    def put_first(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run `function` before all work that waits, as soon as the work in progress ends or is in
        `wait`."""
        future = self._put(self._first, _Work(function, arguments))
        if self._urgency:
            self._urgency.check_again()
        return future

    def wait(self, future: Future) -> None:
        """Wait in the work in progress until the future is done; meanwhile run what was put
        first."""
        future.add_done_callback(self._wake)
        while work := self._first_before(future):
            work.run()

    def close(self, *, wait: bool) -> None:
        """Cancel what has not begun. wait: until the work in progress has ended."""
        with self._changed:
            self._executor.shutdown(wait=False, cancel_futures=True)
            left = [*self._first, *self._queued]
            self._first.clear()
            self._queued.clear()
        for work in left:
            work.future.cancel()
        self._executor.shutdown(wait=wait)

    def _put(self, queue: deque[_Work], work: _Work) -> Future:
        with self._changed:
            self._executor.submit(self._run_next)
            queue.append(work)
            self._changed.notify_all()
        return work.future

    def _run_next(self) -> None:
        self._thread = threading.get_ident()
        if self._urgency:
            self._urgency.wait_for_urgent_work(unless=lambda: bool(self._first))
        with self._changed:
            queue = self._first or self._queued
            work = queue.popleft() if queue else None  # none: what was put first has run in `wait`
        if work:
            work.run()

    def _first_before(self, future: Future) -> _Work | None:
        """What was put first, as soon as there is any, or None when the future is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._first or future.done())
            return self._first.popleft() if self._first else None

    def _wake(self, future: Future) -> None:
        with self._changed:
            self._changed.notify_all()
