"""The messages that wait for each target, in order and within a byte budget.

Their order and sizes are held in memory; their content lies in the spool. Where the spool cannot be
written, as when the disk is full, the content stays in memory too, within the same budget, and is
written as soon as the spool takes it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.seldom import Seldom
from vicort.runtime.alerts.spool import Spool
from vicort.runtime.safe_text import brief

logger = logging.getLogger(__name__)

BATCH = 8  # messages that are written at a time, where several are in memory alone
OVERHEAD = 512  # bytes that are counted for each row besides its content


@dataclass(eq=False)
class Content:
    """What all targets of a message share. size: bytes of its body and its picture, which are held
    once. targets: for how many it waits."""

    size: int
    targets: int = 0


@dataclass(eq=False)
class Waiting:
    """One message that waits for one target. row: its number in the spool, None while it is in
    memory alone. held: a target is trying it, so that it is not dropped."""

    content: Content
    row: int | None = None
    held: bool = False
    gone: bool = False

    @property
    def size(self) -> int:
        return OVERHEAD + self.content.size


@dataclass(eq=False)
class _Unwritten:
    """A message that the spool did not take."""

    message: Message
    parts: list[tuple[str, Waiting]] = field(default_factory=list)

    def left(self) -> list[tuple[str, Waiting]]:
        return [(target, each) for target, each in self.parts if not each.gone]


class Outbox:
    """Thread-safe. `add` waits for one durable write of the spool and for nothing else."""

    def __init__(
        self,
        spool: Spool,
        labels: dict[str, str],
        budget: int,
        warn: Callable[[str], None],
        queues: Mapping[str, str] | None = None,
    ) -> None:
        """labels: of the targets of this run, by the names of their queues. budget: bytes of all
        that waits. queues: their names by the names that the spool has, where those differ."""
        self._spool = spool
        self._labels = labels
        self._budget = budget
        self._warn = warn
        self._names = queues or {}
        self._warnings: deque[str] = deque()  # that are given when the lock is free
        self._seldom = Seldom(self._warnings.append)
        self._changed = threading.Condition()
        self._queues: dict[str, deque[Waiting]] = defaultdict(deque)
        self._bytes: dict[str, int] = defaultdict(int)  # by target, as if it were the only one
        self._total = 0  # bytes of all, where the content of each message counts once
        self._dropped: dict[str, int] = defaultdict(int)
        self._lost: dict[str, int] = defaultdict(int)
        self._unwritten: list[_Unwritten] = []
        self._unremoved: set[int] = set()
        self._trouble: str | None = None
        self._ending = False
        self._closed = False
        self._load()
        self._give_warnings()

    def add(self, message: Message, targets: Sequence[str]) -> bool:
        """Take a message for targets, by their names in the spool. One that cannot fit is taken
        without its picture, or not at all; then nothing else is dropped for it. Raises ValueError
        or TypeError if its body is no JSON. Returns False after `close`: it is not taken."""
        forms = [(message, _size(message))]
        if message.picture:
            bare = replace(message, picture=None, body=message.body | {"picture_omitted": True})
            forms.append((bare, _size(bare)))
        if not targets:
            return True
        with self._changed:
            if self._closed:
                return False
            most = self._budget - self._held() - OVERHEAD * len(targets)
            queues = [self._names.get(name, name) for name in targets]
            fitting = next((form for form in forms if form[1] <= most), None)
            if fitting is None:
                self._too_large(queues)
            else:
                if fitting is not forms[0]:
                    self._without_picture()
                self._make_room(fitting[1] + OVERHEAD * len(targets))
                content = Content(fitting[1])
                new = _Unwritten(fitting[0], [(name, Waiting(content)) for name in targets])
                for queue, (_, each) in zip(queues, new.parts, strict=True):
                    self._put(queue, each)
                self._unwritten.append(new)
            self._write()
            self._changed.notify_all()
        self._give_warnings()
        return True

    def first(self, target: str) -> Waiting | None:
        """The oldest that waits for a target; from now on it is not dropped."""
        with self._changed:
            queue = self._queues[target]
            if not queue or self._closed:
                return None
            queue[0].held = True
            return queue[0]

    def content(self, waiting: Waiting) -> Message | None:
        """None if it is damaged. Raises sqlite3.Error if the spool cannot be read now."""
        with self._changed:
            if (row := waiting.row) is None:
                return next(
                    each.message
                    for each in self._unwritten
                    if any(part is waiting for _, part in each.parts)
                )
        try:
            return self._spool.read(row)
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            raise  # it may be whole: an error of the disk, a spool that is closed
        except (sqlite3.Error, ValueError) as error:
            logger.warning("a message of the spool cannot be read (%s)", brief(error))
            return None

    def done(self, target: str, waiting: Waiting, *, lost: bool = False) -> None:
        """Take the oldest out: it was delivered, or will never be. lost: it could not be read."""
        with self._changed:
            self._take_out(target, waiting)
            self._lost[target] += lost
            self._remove()
        self._spool.tidy()
        self._give_warnings()

    def tidy(self) -> None:
        """Try again to write what is in memory alone."""
        more = True
        while more:
            with self._changed:
                more = not self._closed and self._write()
        self._spool.tidy()
        self._give_warnings()

    def wait(self, target: str, seconds: float, *, for_more: bool) -> None:
        """Until that time is over or the end has begun, or, with `for_more`, a message waits."""

        def over() -> bool:
            return self._ending or (for_more and bool(self._queues[target]))

        with self._changed:
            self._changed.wait_for(over, seconds)

    def end(self) -> None:
        """From now on no thread waits here."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def close(self) -> None:
        """No message is taken or read any more. Write what is in memory alone, if it can be
        written, and close the spool."""
        with self._changed:
            if self._closed:
                return
            while self._write():
                pass
            self._closed = True
            left = sum(len(each.left()) for each in self._unwritten)
            self._spool.close()
        if left:
            self._warnings.append(
                f"messages that are lost, as the spool cannot be written ({self._trouble}): {left}"
            )
        self._give_warnings()

    def counts(self, target: str) -> tuple[int, int, int]:
        """How many wait for a target, were dropped, and could not be read."""
        with self._changed:
            return len(self._queues[target]), self._dropped[target], self._lost[target]

    def state(self) -> dict[str, int | str | None]:
        with self._changed:
            return {
                "bytes": self._total,
                "budget": self._budget,
                "waiting": sum(len(queue) for queue in self._queues.values()),
                "in_memory_only": sum(len(each.left()) for each in self._unwritten),
                "of_other_targets": sum(
                    len(queue) for name, queue in self._queues.items() if name not in self._labels
                ),
                "trouble": self._trouble,
            }

    def _load(self) -> None:
        contents: dict[int, Content] = {}
        for row in self._spool.waiting():
            content = contents.setdefault(row.message, Content(row.size - OVERHEAD))
            name = self._names.get(row.target, row.target)
            self._put(name, Waiting(content, row.number))
        strangers = sum(len(q) for name, q in self._queues.items() if name not in self._labels)
        if strangers:
            self._warnings.append(
                f"{strangers} of the messages in the spool wait for targets that are not named any "
                "more: they stay while there is room, and are sent when the targets are named again"
            )
        self._make_room(0)
        self._write()

    def _give_warnings(self) -> None:
        """Without the lock: whoever takes them may wait for something that waits for the lock."""
        while True:
            try:
                line = self._warnings.popleft()
            except IndexError:  # none is left, or another thread was first
                return
            self._warn(line)

    def _put(self, target: str, waiting: Waiting) -> None:
        self._queues[target].append(waiting)
        self._bytes[target] += waiting.size
        self._total += OVERHEAD + (0 if waiting.content.targets else waiting.content.size)
        waiting.content.targets += 1

    def _held(self) -> int:
        """Bytes of what is being tried, which is not dropped."""
        held = [each for queue in self._queues.values() for each in queue if each.held]
        contents = {id(each.content): each.content.size for each in held}
        return OVERHEAD * len(held) + sum(contents.values())

    def _make_room(self, size: int) -> None:
        """Drop the oldest of the target for which most waits, again and again, until `size` bytes
        fit. Targets that are not named any more come first."""
        while self._total + size > self._budget:
            droppable = sorted(
                name for name, queue in self._queues.items() if any(not each.held for each in queue)
            )
            if not droppable:
                break
            target = max(droppable, key=lambda name: (name not in self._labels, self._bytes[name]))
            oldest = next(each for each in self._queues[target] if not each.held)
            self._take_out(target, oldest)
            self._overflow([target])

    def _overflow(self, targets: Iterable[str]) -> None:
        for target in targets:
            self._dropped[target] += 1
            label = self._labels.get(target, "a target that is not named any more")
            self._seldom.say(
                ("overflow", target),
                f"{label}: dropped {{count}} of the messages that waited, the oldest first, as all "
                f"that waits may take {self._budget} bytes",
            )

    def _too_large(self, targets: Iterable[str]) -> None:
        for target in targets:
            self._dropped[target] += 1
        self._seldom.say(
            "too large",
            "dropped {count} of the messages, as they are too large: all that waits may take "
            f"{self._budget} bytes: raise spool_mb",
        )

    def _without_picture(self) -> None:
        self._seldom.say(
            "without picture",
            "left out {count} of the pictures, as they are too large: all that waits may take "
            f"{self._budget} bytes: raise spool_mb",
        )

    def _take_out(self, target: str, waiting: Waiting) -> None:
        if waiting.gone:
            return
        waiting.gone = True
        self._queues[target].remove(waiting)
        self._bytes[target] -= waiting.size
        waiting.content.targets -= 1
        self._total -= OVERHEAD + (0 if waiting.content.targets else waiting.content.size)
        if waiting.row is not None:
            self._unremoved.add(waiting.row)
        self._unwritten = [each for each in self._unwritten if each.left()]

    def _write(self) -> bool:
        """Write the first of what is in memory alone, and remove what is gone; or say why not.
        Returns whether there is more, and it may succeed."""
        batch = [(each, each.left()) for each in self._unwritten[:BATCH]]
        messages = [
            (each.message, [(target, part.size) for target, part in parts]) for each, parts in batch
        ]
        if not messages:
            self._remove()
            return False
        try:
            rows = self._spool.write(messages, self._unremoved)
        except (sqlite3.Error, OSError) as error:
            self._trouble = brief(error)
            self._seldom.say(
                "spool",
                f"the spool cannot be written ({self._trouble}): messages are kept in memory "
                "alone, where the end of this process loses them",
            )
            return False
        self._trouble = None
        self._unwritten = self._unwritten[BATCH:]
        self._unremoved = set()
        for (_, parts), numbers in zip(batch, rows, strict=True):
            for (_, part), number in zip(parts, numbers, strict=True):
                part.row = number
        return bool(self._unwritten)

    def _remove(self) -> None:
        if not self._unremoved or self._closed:
            return
        try:
            self._spool.remove(self._unremoved)
            self._unremoved = set()
        except (sqlite3.Error, OSError) as error:
            self._trouble = brief(error)  # removed with the next write


def _size(message: Message) -> int:
    """Bytes. Raises ValueError or TypeError for a body that is no JSON."""
    return len(json.dumps(message.body, allow_nan=False)) + len(message.picture or b"")
