"""What happens when an alert changes: evidence is written, an event and a message are made."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

from vicort.runtime.alerts.alert_event import AlertEvent
from vicort.runtime.alerts.alert_file import AlertEntry, AlertFile, StreamEntry
from vicort.runtime.alerts.clip_recorder import ClipRecorder
from vicort.runtime.alerts.evidence_folder import EvidenceFolder
from vicort.runtime.alerts.evidence_picture import evidence_picture
from vicort.runtime.alerts.evidence_ring import HISTORY, EvidenceRing, KeptFrame
from vicort.runtime.alerts.last_states import LastStates
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.rule import Change
from vicort.runtime.core import Answer, Event
from vicort.runtime.errors import VicortError
from vicort.runtime.safe_text import brief


@dataclass(frozen=True)
class Evidence:
    """What is kept when an alert changes.

    key: of the event. number: of the change, for `LastStates.note`. frame: the newest one that the
    answer saw. jpeg: its picture, with zones. picture, clip: files.
    """

    key: str
    number: int = 0
    frame: KeptFrame | None = None
    jpeg: bytes | None = None
    picture: str | None = None
    clip: str | None = None


class AlertReporter:
    """Keeps the newest frames of a stream, and reports the changes of its alerts. Thread-safe."""

    def __init__(
        self,
        name: str,
        entry: StreamEntry,
        folder: EvidenceFolder,
        *,
        before: Fraction,
        live: bool,
        on_event: Callable[[Event], None],
        send: Callable[[Message], None] | None,
        warn: Callable[[str], None],
        states: LastStates | None = None,
    ) -> None:
        """name, entry: of the stream. before: seconds that its longest clip begins before the
        evidence. live: whether events say their delay. send: delivers a message; None = nothing is
        delivered. states: of the run before, kept for the next one."""
        self._name = name
        self._zones = entry.zones
        self._folder = folder
        self._live = live
        self._on_event = on_event
        self._send = send
        self._warn = warn
        self._states = states
        self._ring = EvidenceRing(HISTORY + before)
        self._clips = ClipRecorder(folder, warn)
        self._lock = threading.Lock()  # one change at a time

    @classmethod
    def of_file(
        cls,
        name: str,
        file: AlertFile,
        *,
        live: bool,
        on_event: Callable[[Event], None],
        send: Callable[[Message], None] | None,
        warn: Callable[[str], None],
        folder: EvidenceFolder | None = None,
        states: LastStates | None = None,
    ) -> AlertReporter:
        """For a stream of an alert file. folder, states: shared with other streams; None = of its
        own. Where nothing is delivered, no state is kept: a dry run is the same each time."""
        clips = [each.clip for each in file.of_stream(name) if each.clip]
        folder = folder or EvidenceFolder(file.evidence, file.evidence_mb)
        if send and states is None:
            states = LastStates(folder.path, warn)
        return cls(
            name,
            file.streams[name],
            folder,
            before=max((clip.before for clip in clips), default=Fraction(0)),
            live=live,
            on_event=on_event,
            send=send,
            warn=warn,
            states=states if send else None,
        )

    def had_fired(self, entry: AlertEntry) -> bool:
        """Whether an alert had fired when the last run ended."""
        return self._states is not None and self._states.fired(self._name, entry.name)

    def add(self, frame: KeptFrame) -> None:
        """The next frame that the stream takes, with privacy masks."""
        self._ring.add(frame)
        self._clips.add(frame)

    def gather(self, entry: AlertEntry, change: Change) -> Evidence:
        """Take the evidence of a change at once: frames are not kept long. Evidence that cannot be
        made or written is a warning."""
        key, number = uuid.uuid4().hex, 0
        if self._states:
            key, number = self._states.next_key(self._name, entry.name, change.state)
        frame = self._ring.newest_until(change.at)
        if change.state != "fired":
            return Evidence(key, number, frame)
        jpeg = picture = clip = None
        try:
            clip = self._clip(entry, change, key)
            if frame:
                jpeg = evidence_picture(frame.image, self._zones, entry.zone)
                path = self._folder.name(self._name, entry.name, key, "jpg")
                self._folder.write(path, jpeg)
                picture = str(path)
        except Exception as error:  # noqa: BLE001 - the event must come
            self._warn(f"the picture of an alert is missing: {_why(error)}")
        return Evidence(key, number, frame, jpeg, picture, clip)

    def report(
        self,
        entry: AlertEntry,
        change: Change,
        answer: Answer,
        evidence: Evidence,
        description: str | None = None,
    ) -> None:
        """An alert changed with this answer.

        evidence: that `gather` took. description: the answer to the question of `then`.
        """
        frame = evidence.frame
        event = AlertEvent(
            entry.name,
            self._name,
            change.state,
            change.at,
            entry.question,
            entry.fire.choice,
            change.probability,
            tuple(change.readings),
            answer.choices or {},
            answer.read,
            evidence.key,
            delay_ms=1e3 * (time.monotonic() - frame.arrived) if self._live and frame else None,
            zone=entry.zone,
            picture=evidence.picture,
            clip=evidence.clip,
            description=description,
        )
        with self._lock:
            # after it: an event that was lost with this process comes again
            if self._sent(event, evidence.jpeg) and self._states:
                self._states.note(self._name, entry.name, change.state, evidence.number)
            self._tell(event)

    def close(self) -> None:
        """Write the clips that have begun."""
        self._clips.close()

    def _tell(self, event: AlertEvent) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - the caller's
            self._warn(
                f"on_event raised {type(error).__name__} for alert {event.alert} "
                f"({brief(error)}): the stream goes on"
            )

    def _sent(self, event: AlertEvent, picture: bytes | None) -> bool:
        """Whether the delivery took the message of this event."""
        if not self._send:
            return False
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = {"time": now} | event.to_json()
        message = Message(event.key, event.alert, event.stream, event.state, body, picture)
        try:
            self._send(message)
        except Exception as error:  # noqa: BLE001 - the stream goes on
            self._warn(f"an event of alert {event.alert} is not sent: {_why(error)}")
            return False
        return True

    def _clip(self, entry: AlertEntry, change: Change, key: str) -> str | None:
        if entry.clip is None:
            return None
        path = self._folder.name(self._name, entry.name, key, "mp4")
        until = change.at + entry.clip.after
        since = self._ring.since(change.at - entry.clip.before)
        frames = [frame for frame in since if frame.at <= until]
        if not frames or not self._clips.start(path, frames, until):
            self._warn(
                f"alert {entry.name} has no clip: too many are recorded, or no frame is kept"
            )
            return None
        return str(path)


def _why(error: Exception) -> str:
    """One line. An error of vicort is one already."""
    return str(error) if isinstance(error, VicortError) else brief(error)
