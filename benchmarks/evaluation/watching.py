"""A session goes over a video, and is asked at the moments at which the data asks: never with a
frame that came later.

`state` is one pass with all its questions in order; `restart` is a fresh session for each, as the
papers did. While a question is answered the stream stands, so that its time to the first token
holds no other question's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, Literal, Protocol, get_args

from vicort.benchmarks.evaluation.frame_arrays import FrameArraySource, is_frame_array
from vicort.benchmarks.evaluation.items import Item, Reply, Video
from vicort.benchmarks.evaluation.own_sampling import OwnSampling
from vicort.benchmarks.evaluation.rules import is_settled
from vicort.runtime.core import Answer, Constraint, Frame, Question, Sampling, Summary
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import SourceError, TruncatedSource, VicortError
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.sources import Source, open_source
from vicort.runtime.sources.source import Ending, Wanted, Warn

Carry = Literal["state", "restart"]
CARRIES: tuple[Carry, ...] = get_args(Carry)


class AskedSession(Protocol):
    """The methods of Session that are used."""

    @property
    def now(self) -> Fraction: ...
    def wants(self, at: Fraction) -> Wanted: ...
    def push(self, frame: Frame) -> None: ...
    def submit(self, question: Question) -> Future: ...
    def finish(self, ending: Ending | None = None) -> None: ...
    def summary(self) -> Summary: ...


OpenSession = Callable[[], AbstractContextManager[AskedSession]]


@dataclass(frozen=True)
class Candidate:
    """A system that is evaluated: how a session of it is opened."""

    open_session: OpenSession
    motion: bool = False  # whether frames must carry the codec's motion data

    @classmethod
    def of(cls, engines: EngineSet, system: System, **options: Any) -> Candidate:
        return cls(partial(Session, engines, system, **options), system.wants_motion)


@dataclass(frozen=True)
class Asking:
    at: Fraction  # seconds
    item: Item


@dataclass
class Watched:
    """Replies of one system to one video."""

    replies: list[Reply] = field(default_factory=list)  # in the order in which they were asked
    warnings: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)  # of the last session

    def settles(self, item: Item) -> bool:
        return is_settled(item, [reply for reply in self.replies if reply.item == item.id])


def watch(
    video: Video,
    candidate: Candidate,
    carry: Carry = "state",
    context: Fraction | None = None,
    max_tokens: int = 64,
    sampling: OwnSampling | None = None,
) -> Watched:
    """Ask all items of a video, of sessions that see it from its start, or (restart) from `context`
    seconds before the question.

    sampling: which frames before a question are pushed (restart only), to sessions that take every
    frame; clips start where the item says. None = all frames, and the session samples.

    If a session fails with a VicortError, each question that is still open gets a reply with the
    error. Raises SourceError if there is no video in the file.
    """
    watched = Watched()
    askings = sorted(
        (Asking(at, item) for item in video.items for at in item.times),
        key=lambda asking: asking.at,
    )
    times = frame_times(video) if sampling else []
    for group in [askings] if carry == "state" else [[asking] for asking in askings]:
        if carry == "restart" and watched.settles(group[0].item):
            continue
        start = Fraction(0) if context is None else max(Fraction(0), group[0].at - context)
        with open_video(video, watched.warnings.append, candidate.motion) as source:
            taken = None
            if sampling:
                (asking,) = group
                start = start if asking.item.since is None else asking.item.since
                chosen = sampling.chosen(times, start, asking.at)
                taken = frozenset(times[index] for index in chosen)
            _Pass(source, group, start, max_tokens, watched, taken).go(candidate.open_session)
    return watched


def frame_times(video: Video) -> list[Fraction]:
    """Of all frames of a video, in seconds. Raises SourceError if there is no video in the file."""
    times: list[Fraction] = []

    def first_alone(at: Fraction) -> bool:
        times.append(at)
        return len(times) == 1

    with open_video(video, lambda line: None) as source, suppress(TruncatedSource):
        for _ in source.frames(first_alone):
            pass
    return times


def open_video(video: Video, warn: Warn, motion: bool = False) -> Source:
    """motion: whether frames carry the codec's motion data; arrays of frames and images have none.

    Raises SourceError if there is no video in the file.
    """
    if video.path is None:
        raise SourceError(f"{video.name} is not there")
    if is_frame_array(video.path):
        return FrameArraySource(video.path, fps=video.image_fps, warn=warn)
    options: dict[str, Any] = {"motion": True} if motion else {}
    fps = video.image_fps
    return open_source(str(video.path), live=False, image_fps=fps, warn=warn, **options)


class _Pass:
    """One session over one video, from `start` to its last question."""

    def __init__(
        self,
        source: Source,
        askings: Sequence[Asking],
        start: Fraction,
        max_tokens: int,
        watched: Watched,
        taken: Collection[Fraction] | None,
    ) -> None:
        """taken: times of the frames that are pushed if the session wants them; None = all."""
        self._source = source
        self._taken = taken
        self._start = start
        self._watched = watched
        self._sampling = Sampling(max_tokens=max_tokens)
        self._open = deque(askings)

    def go(self, open_session: OpenSession) -> None:
        try:
            with open_session() as session:
                self._feed(session)
                self._ask_at_end(session)
                self._watched.summary = session.summary().to_json()
        except SourceError:
            raise
        except VicortError as error:
            self._watched.replies += [
                Reply(asking.item.id, asking.at, error=str(error)) for asking in self._open
            ]

    def _feed(self, session: AskedSession) -> None:
        """Pushes the frames that the session wants, and asks each question before the first later
        frame."""

        def wants(at: Fraction) -> Wanted | bool:
            if self._ask_until(at, session, session.wants) == Wanted.BOTH:
                return Wanted.BOTH  # asked when it is here
            return not self._open or (self._takes(at) and session.wants(at))

        def reach(at: Fraction) -> Wanted:
            return session.wants(at) if session.wants(at) == Wanted.BOTH else Wanted.YES

        try:
            for frame in self._source.frames(wants):
                self._ask_until(frame.time, session, reach)
                if not self._open:
                    return
                session.push(frame)
        except TruncatedSource as error:  # the questions are asked about the part that was read
            self._watched.warnings.append(str(error))

    def _takes(self, at: Fraction) -> bool:
        return at >= self._start and (self._taken is None or at in self._taken)

    def _ask_until(
        self, at: Fraction, session: AskedSession, reach: Callable[[Fraction], Wanted]
    ) -> Wanted:
        """Ask what is due before a frame at that time. reach: brings the stream's clock to a
        moment; if it says BOTH, the frame before is to come first, and nothing more is asked."""
        while self._open and self._open[0].at < at:
            if reach(self._open[0].at) == Wanted.BOTH:
                return Wanted.BOTH
            self._ask(session)
        return Wanted.NO

    def _ask_at_end(self, session: AskedSession) -> None:
        """Asks what is due at the last frame; then completes the last unit and asks what is due
        after the video's end."""
        while self._open and self._open[0].at <= session.now:
            self._ask(session)
        if self._open:
            session.finish(self._source.ending if self._taken is None else None)
        while self._open:
            self._ask(session)

    def _ask(self, session: AskedSession) -> None:
        asking = self._open[0]
        if not self._watched.settles(asking.item):
            self._watched.replies.append(self._reply(session, asking))
        self._open.popleft()

    def _reply(self, session: AskedSession, asking: Asking) -> Reply:
        try:
            answer: Answer = session.submit(self._question(asking)).result()
        except VicortError as error:
            return Reply(asking.item.id, asking.at, error=str(error))
        return Reply(
            asking.item.id,
            asking.at,
            answer.text,
            answer.seen_until,
            answer.ttft_ms,
            answer.tokens_read,
            answer.pages,
            answer.memory_from,
            choices=answer.choices,
            outside=answer.outside,
        )

    def _question(self, asking: Asking) -> Question:
        choices = asking.item.choices
        return Question(
            asking.item.text,
            asking.at,
            sampling=self._sampling,
            constraint=Constraint(choices=choices) if choices else None,
        )
