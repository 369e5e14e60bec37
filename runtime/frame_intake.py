"""From frames to chunks: which frames are taken, and when their chunk enters the pipeline."""

from __future__ import annotations

from fractions import Fraction

from vicort.runtime.core import Frame
from vicort.runtime.devices.device import StreamEvent
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.stages.chunker import Chunker
from vicort.runtime.stages.frame_reducer import FrameReducer
from vicort.runtime.stages.lag_policy import OnLag, lag_policy
from vicort.runtime.stages.pipeline import Pipeline
from vicort.runtime.stream_statistics import StreamStatistics


class FrameIntake:
    """frame -> sampler -> chunker -> lag policy -> pipeline

    Called only by the thread that moves the stream, except `wait_for_room`.
    """

    def __init__(
        self,
        sampler: Sampler,
        reducer: FrameReducer,
        chunker: Chunker,
        pipeline: Pipeline,
        on_lag: OnLag,
        statistics: StreamStatistics,
        *,
        text_joins: bool,
    ) -> None:
        """text_joins: whether questions and answers become part of the stream."""
        self._sampler = sampler
        self._reducer = reducer
        self._chunker = chunker
        self._pipeline = pipeline
        self._lag = lag_policy(on_lag, pipeline)
        self._statistics = statistics
        self._text_joins = text_joins
        self._pushed: Fraction | None = None  # time of the newest frame that was pushed
        self._said_both: Fraction | None = None  # where `wants_both` last said so
        self._forked: tuple[int, int] | None = None  # moment of the newest fork

    @property
    def chunk_frames(self) -> int:
        """Frames in a full chunk."""
        return self._chunker.chunk_frames

    @property
    def chunk_number(self) -> int:
        """Of the chunk that is being filled."""
        return self._chunker.moment[0]

    @property
    def dropped(self) -> int:
        """Frames that the lag policy dropped."""
        return self._lag.dropped

    # ---- frames ----

    def take(self, frame: Frame) -> None:
        """Take a frame that was pushed, unless the sampler leaves it out. One that is not later
        than the one before is counted."""
        if self._comes_late(frame.time):
            self._statistics.late += 1
        else:
            self._take(self._sampler.sample(frame))

    def take_stayed(self, until: Fraction) -> None:
        """Take the frame that was left out, if it stays on the screen where another one was due
        before a frame at this time."""
        self._take(self._sampler.stayed(until))

    def wants_both(self, at: Fraction) -> bool:
        """Whether the frame before one at this time is taken, too, which was not wanted when it
        came. Says so once."""
        if self._sampler.stays(at) and self._said_both != at:
            self._said_both = at
            return True
        return False

    def wants(self, at: Fraction) -> bool:
        """Whether a frame at this time will be taken."""
        return self._sampler.wants(at)

    def wait_for_room(self, frame: Frame) -> None:
        """Wait until the chunk that this frame would complete could enter the pipeline, if the lag
        policy is to wait."""
        if self._sampler.wants(frame.time) and self._chunker.closes(frame):
            self._lag.wait_for_room()

    def _take(self, sampled: Frame | None) -> None:
        if sampled:
            self._statistics.frame_entered()
            if self._sampler.missed:
                self._hold()
            if chunk := self._chunker.add(self._reducer(sampled)):
                self._lag.enter(chunk)

    def _comes_late(self, at: Fraction) -> bool:
        """Whether a pushed frame is not later than the one before."""
        if self._pushed is not None and at <= self._pushed:
            return True
        self._pushed = at
        return False

    def _hold(self) -> None:
        """The newest frame stays on the screen where another one was due."""
        if chunk := self._chunker.hold():
            self._lag.enter(chunk)

    # ---- what a question sees ----

    def enter_until(self, at: Fraction) -> tuple[StreamEvent | None, bool]:
        """Hand every frame until a question's time to the pipeline: the chunk that is being filled
        as a fork, which the stream does not store.

        Returns when all of them are in memory, and whether there is a fork. A question that becomes
        part of the stream ends the chunk after its last whole unit; the fork is half a unit then.
        """
        self._take(self._sampler.stayed_by(at))
        if self._sampler.has_missed(at):
            self._hold()
        if self._text_joins and (chunk := self._chunker.cut()):
            self._lag.enter(chunk)
        self._lag.flush()
        forked = self._fork()
        return self._pipeline.newest, forked

    def _fork(self) -> bool:
        """Let the next question see the chunk that is being filled, if there is one. Questions at
        the same moment share the fork, unless text of one comes before the next."""
        if not self._chunker.pending:
            return False
        shared = self._forked == self._chunker.moment and not self._text_joins
        if not shared and (fork := self._chunker.fork()):
            self._pipeline.enter(fork)
            self._forked = self._chunker.moment
        return True

    # ---- the end, and lag ----

    def end(self, at: Fraction) -> None:
        """The stream ends at this time: complete a half unit, and close the last chunk."""
        self._take(self._sampler.stayed_by(at))
        if chunk := self._chunker.flush():
            self._lag.enter(chunk)

    def flush(self) -> None:
        """Put every chunk that the lag policy keeps into the pipeline."""
        self._lag.flush()

    def change_lag_policy(self, on_lag: OnLag) -> None:
        """Raises ConfigError for a name that is none."""
        self._lag.flush()
        dropped = self._lag.dropped
        self._lag = lag_policy(on_lag, self._pipeline)
        self._lag.dropped = dropped
