"""The data types that all of vicort shares: frames, chunks, pages, questions and events.

This module does not depend on engines, devices or files.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from numbers import Rational
from typing import Any, Literal, Self, TypeVar

import numpy as np

from vicort.runtime.errors import ConfigError
from vicort.runtime.frame_grid import Grid
from vicort.runtime.safe_text import is_real, shown

T = TypeVar("T")

# DLPack device types that the CPU can read: CPU, pinned by CUDA or ROCm, and CUDA managed memory
HOST_MEMORY = (1, 3, 11, 13)
# pixels: side of a macroblock, the largest block that has one motion vector
MOTION_CELL = 16
# frames in a temporal unit, the smallest input of the vision encoder (temporal patch size of
# Qwen2.5-VL)
UNIT_FRAMES = 2
MAX_SECONDS = 10**12  # of a time in a stream: 31,700 years
# probability below which an answer is a guess. Of the embedded model's answers about streams of its
# own world, 35 of 48 wrong ones and 11 of 331 right ones lie below; docs/confidence.md
DOUBTFUL = 0.5


class TokenMode(IntEnum):
    """By which rule the token control graph keeps visual tokens, see `export/token_control.py`."""

    WITHIN_CHUNK = 0
    FROM_FIRST = 1  # no unit came before
    FROM_BEFORE = 2


@dataclass(frozen=True)
class Motion:
    """Motion between a frame and the previous one, as the codec reports it."""

    # an I picture, or the previous picture is unknown: no cell continues the previous frame
    refreshed: bool
    # [rows, columns] float32: the longest motion vector of each cell of MOTION_CELL pixels a side,
    # in pixels, inf where the cell is coded anew; None = the codec reports none
    cells: np.ndarray | None
    # pixels: where the first cell starts in the upright frame; negative if the first cell is cut by
    # the edge
    top: int = 0
    left: int = 0
    # pixels: height and width of the upright frame that the cells cover, as the codec stores it;
    # None = those of the frame
    size: tuple[int, int] | None = None

    def after(self, earlier: Motion | None) -> Motion:
        """Combine this motion with that of an earlier frame which was skipped.

        Each cell keeps the longer vector. A sum would count motion twice, because the vectors of P
        and B pictures may span several pictures, and it would add up the noise of the encoder.
        """
        if earlier is None or self.refreshed:
            return self
        if self.cells is None or earlier.cells is None:
            return replace(self, refreshed=earlier.refreshed, cells=None)
        if self.cells.shape != earlier.cells.shape:
            return replace(self, refreshed=True)
        return replace(
            self, refreshed=earlier.refreshed, cells=np.maximum(self.cells, earlier.cells)
        )


@dataclass(frozen=True)
class Frame:
    # np.ndarray [height, width, 3] uint8, RGB, upright; or a Surface in the memory of a GPU
    image: Any
    # seconds since the source's start, exact: of the container, or of a live source's first frame
    time: Fraction
    index: int  # 0, 1, 2, … in the source, before sampling
    # since the previous frame; None = not requested, or not reported by the codec
    motion: Motion | None = None
    # height and width of the image before it was reduced; None = those of `image`
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture, in pixels, before it was reduced."""
        height, width = self.size or self.image.shape[:2]
        return height, width

    def without_image(self) -> Frame:
        """The same, with an image of the same shape that takes no memory and is black."""
        nothing = np.broadcast_to(np.uint8(0), self.image.shape)
        return replace(self, image=nothing, size=self.shape)

    @classmethod
    def of(cls, tensor: Any, time: Fraction | float, index: int = 0) -> Self:
        """A frame from any object that supports DLPack in host memory, such as a NumPy array or a
        PyTorch tensor.

        tensor: [height, width, 3] uint8 RGB, or [3, height, width], with any strides. A tensor that
        fits both shapes is read as the first. It is not copied: do not change it until its chunk is
        processed. time: seconds since the stream's start; a float means its decimal text.
        Raises ConfigError for another type, shape, time or memory.
        """
        return cls(_as_image(tensor), checked_frame_time(time), index)


@dataclass(frozen=True)
class Chunk:
    """Up to N frames that pass the stages together: the batch of the pipeline."""

    index: int
    first_unit: int  # index in the stream of its first temporal unit
    # UNIT_FRAMES per unit; the second one of a unit may be a repeat that completes it
    frames: tuple[Frame, ...]
    grid: Grid  # of the visual tokens of each of its frames
    repeated: int = 0  # number of repeats
    forked: bool = False  # seen by questions alone: the stream stores nothing of it
    encoded: int = 0  # leading units that the vision encoder has encoded for a fork of this chunk

    @property
    def units(self) -> int:
        return len(self.frames) // UNIT_FRAMES

    @property
    def start(self) -> Fraction:
        return self.frames[0].time

    @property
    def end(self) -> Fraction:
        return self.frames[-1].time


PageKind = Literal["prompt", "vision", "text"]
# what a question sees: every frame until its time, or what is in memory when it is asked
Freshness = Literal["complete", "now"]
# why an answer has no text: the model ended it with its first token, its text begins with a stop
# text, or its tokens stand for no text; or its question was not asked, see AskGate
WhyEmpty = Literal["ended-at-once", "stop-text", "no-text", "unchanged", "unlike"]
UNASKED: tuple[WhyEmpty, ...] = ("unchanged", "unlike")
SourceState = Literal["connected", "lost", "reconnecting", "resized", "ended", "given-up"]


@dataclass(frozen=True)
class Page:
    """Keys and values of up to T tokens, of one temporal unit or of one run of text."""

    id: int  # unique in a session, rising in transcript order; -1 = not kept by the stream
    kind: PageKind
    tokens: int  # filled cells, at most T
    chunk: int = -1  # of kind vision: index of its chunk
    unit: int = -1  # of kind vision: index of its temporal unit in the stream
    start: Fraction = Fraction(0)  # seconds, of the unit's first frame
    end: Fraction = Fraction(0)  # seconds, of the unit's last frame


@dataclass(frozen=True)
class PageTable:
    """The pages that one run of the engine attends to, besides its own new tokens."""

    slots: np.ndarray  # [L|1, Hkv|1, N] int32 slots of the device pool, -1 = none
    pages: tuple[Page, ...]  # the pages in these slots, in transcript order


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. None: as the model's generation_config.json says."""

    temperature: float | None = None  # 0 = greedy
    top_p: float | None = None  # smallest set of tokens whose total probability reaches this
    top_k: int | None = None  # 0 = all
    # Keskar et al. 2019, over the tokens of the prompt, the question and the answer; 1 = none
    repetition_penalty: float | None = None
    seed: int = 0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()  # an answer ends before the first of these texts

    @classmethod
    def greedy(cls) -> Sampling:
        return cls(temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0)

    def over(self, defaults: Sampling) -> Sampling:
        """With the values of `defaults` where this says nothing."""
        return replace(
            self,
            **{name: getattr(defaults, name) for name, own in vars(self).items() if own is None},
        )


@dataclass(frozen=True)
class Constraint:
    """What the text of an answer may be. Exactly one field is given."""

    # the answer is one of these texts, the most probable one where it is not sampled
    choices: tuple[str, ...] = ()
    regex: str | None = None  # the whole answer matches it; in the syntax of Rust's regex crate
    json_schema: str | None = None  # JSON text of a schema that the answer, which is JSON, obeys
    lark: str | None = None  # a grammar in the syntax of Lark, as llguidance reads it

    def __post_init__(self) -> None:
        if isinstance(self.choices, list):  # what holds one can be compared and kept
            object.__setattr__(self, "choices", tuple(self.choices))


@dataclass(frozen=True)
class AskGate:
    """When a standing question, which is asked again and again, need not be asked. Questions with
    the same text, constraint and name are one standing question, whose first asking is always
    asked. docs/alerts.md says what each gate misses."""

    # not asked if all that it could read is what it was when it was last asked
    changed: bool = False
    # not asked if, of the chunks of which something was kept since then, none has a digest whose
    # cosine with the question's mean embedding reaches this, -1 to 1; None = that is not looked at
    like: float | None = None
    name: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """How probable the model found a token of an answer, and others in its place: at temperature 1,
    before any constraint or penalty."""

    token: str  # its text; U+FFFD stands for bytes that are no whole character
    logprob: float  # natural logarithm of its probability
    top: tuple[tuple[str, float], ...]  # the most probable tokens and theirs, best first


@dataclass(frozen=True)
class TimeRange:
    """A part of the stream, both ends included; None = open on that side."""

    since: Fraction | None  # seconds
    until: Fraction | None  # seconds

    def overlaps(self, start: Fraction, end: Fraction) -> bool:
        """Whether a temporal unit from `start` to `end`, in seconds, lies in it, if only in part.

        >>> TimeRange(Fraction(4), None).overlaps(Fraction(3), Fraction(4))
        True
        >>> TimeRange(None, Fraction(2)).overlaps(Fraction(3), Fraction(4))
        False
        """
        return (self.since is None or end >= self.since) and (
            self.until is None or start <= self.until
        )

    def slice_of(self, units: Sequence[T], page: Callable[[T], Page]) -> slice:
        """Which of these temporal units overlap it: units that follow one another, as both their
        starts and their ends rise.

        page: gives a page of a unit.
        """
        first, last = 0, len(units)
        if self.since is not None:
            first = bisect_left(units, self.since, key=lambda unit: page(unit).end)
        if self.until is not None:
            last = bisect_right(units, self.until, key=lambda unit: page(unit).start)
        return slice(first, max(first, last))


@dataclass(frozen=True)
class Question:
    text: str
    at: Fraction | None = None  # seconds since the stream's start; None = at its end
    id: str = ""
    # questions of one conversation see each other; None = the question is evicted after its answer
    conversation: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    # seconds: only temporal units that overlap [since, until] are read; None = no limit
    since: Fraction | None = None
    until: Fraction | None = None
    constraint: Constraint | None = None  # None = the answer is free text
    logprobs: int | None = None  # alternatives that are reported of each token; None = no report
    gate: AskGate | None = None  # None = it is asked

    @property
    def within(self) -> TimeRange | None:
        """The part of the stream that is read; None = all that is remembered."""
        if self.since is None and self.until is None:
            return None
        return TimeRange(self.since, self.until)


@dataclass(frozen=True)
class Event:
    """An event of the JSONL output."""

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Event").lower()

    def to_json(self) -> dict[str, Any]:
        return {"event": self.name} | {key: _plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True)
class MemoryEvent(Event):
    """The budget of pages that a session has."""

    device_mb: float  # MB of 1e6 bytes
    host_mb: float
    # of a stream, nothing dropped, that is remembered; None where long-term memory decides that, or
    # where every frame is taken, whatever their rate
    seconds: float | None

    @property
    def options(self) -> str:
        """The options of vicort-run that ask for exactly this budget."""
        return f"--memory {self.device_mb:.15g}MB --host-memory {self.host_mb:.15g}MB"


@dataclass(frozen=True)
class ChunkEvent(Event):
    index: int
    frames: int
    start: Fraction  # seconds, first frame
    end: Fraction  # seconds, last frame
    tokens: int  # visual tokens that left the vision encoder
    kept: int  # visual tokens that were written to pages
    wall_ms: float  # from submission to the first stage until its last page was written

    @property
    def drop_ratio(self) -> float:
        """The share of its visual tokens that was dropped, 0 to 1. TimeChat-Online (arXiv
        2504.17343) takes a low one for a new scene."""
        return 1 - self.kept / self.tokens


@dataclass(frozen=True)
class Answer(Event):
    id: str
    at: Fraction  # seconds, when it was asked: never before seen_until
    # seconds, the newest frame that it could see; None = none: it was asked before the first one
    seen_until: Fraction | None
    question: str
    text: str
    ttft_ms: float  # from the question to the first token, including all waiting
    tokens: int  # tokens in the answer
    # time ranges, in seconds, whose pages the question could see; empty where nothing is
    # remembered, or nothing in the range of the question
    read: tuple[tuple[Fraction, Fraction], ...]
    # vision pages that it could see; the maximum over layers and heads
    pages: int
    # cached visual tokens that it could see; the mean over layers and heads
    tokens_read: int
    # seconds, start of the oldest unit in memory, seen or not; None = memory was empty
    memory_from: Fraction | None
    # as the model gives it, whatever the sampling: the geometric mean over the answer's tokens, its
    # end not counted unless it is all there is
    probability: float = 1.0
    first_probability: float = 1.0  # of the answer's first token, which decides between yes and no
    # seconds, the range that the question asked for; left out of the JSON where both are None
    since: Fraction | None = None
    until: Fraction | None = None
    # whether it was run again over more of memory, see `retrieval.again`; left out of the JSON
    # where it was not
    asked_again: bool = False
    # seconds, the question's own time where the stream had passed it already, so that it was asked
    # at `at`; left out of the JSON where it is None
    requested: Fraction | None = None
    empty: WhyEmpty | None = None  # of an answer without text; left out of the JSON of others
    # whether it came to its end, by a token for that or a stop text: False where max_tokens, or the
    # model's last position, cut it. One with a constraint came to its end where it fulfils that,
    # which a text that a stop text cut may not
    complete: bool = True
    # of a question with choices: the probability of each, which sum to 1; left out of the JSON of
    # others
    choices: dict[str, float] | None = None
    # of a question with choices: the probability of all other texts, before choices were limited
    # to; left out of the JSON of others
    outside: float | None = None
    # of each token, where the question asked for it; left out of the JSON of others
    logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether the question was asked: False where its gate was closed. Then there are no
        probabilities either."""
        return self.empty not in UNASKED

    @property
    def doubtful(self) -> bool:
        """Whether the model itself gave the answer little probability."""
        return self.probability < DOUBTFUL

    @property
    def limited(self) -> bool:
        """Whether the question asked for a part of the stream alone."""
        return self.since is not None or self.until is not None

    def to_json(self) -> dict[str, Any]:
        written = super().to_json()
        if not self.limited:
            del written["since"], written["until"]
        if not self.asked_again:
            del written["asked_again"]
        for key in ("requested", "empty", "choices", "outside", "logprobs"):
            if written[key] is None or written[key] == []:
                del written[key]
        if not self.asked:
            del written["probability"], written["first_probability"]
        if self.choices is not None:
            written["choices"] = {text: round(each, 6) for text, each in self.choices.items()}
        if self.outside is not None:
            written["outside"] = round(self.outside, 6)
        return written


@dataclass(frozen=True)
class Spoken(Event):
    """Text that the model said without a question."""

    at: Fraction  # seconds, last frame of the chunk after which it was said
    seen_until: Fraction  # seconds, the newest frame that it had seen; equal to `at`
    text: str
    tokens: int  # tokens in the text
    latency_ms: float  # from submission of that chunk to the first stage until the first token
    silence: float  # probability of silence


@dataclass(frozen=True)
class Summary(Event):
    system: str
    frames: int  # frames that entered the pipeline, after sampling
    dropped: int  # frames that a lag policy dropped
    chunks: int
    seconds: float  # from the first frame to the last written page
    fps: float  # frames / seconds
    stage_ms: dict[str, float]  # total per stage: preprocess, vision, tokens, prefill
    overlap: float  # sum of the stage times / seconds
    ttft_ms: dict[str, float] | None  # p50, p95, p99 over the answers; None without answers
    pages: dict[str, int]  # in use: device, host
    budget_mb: dict[str, float]  # of pages: device, host; MB of 1e6 bytes
    moved_mb: float  # between the device and the other tiers, both ways, in MB of 1e6 bytes
    reruns: int  # runs of the language graph that were repeated with a new choice of pages
    peak_rss_mb: float
    # frames that were pushed with a time not after the newest one, and left out
    late: int = 0
    # for live sources and --realtime: the result of `LagMeter.summary`
    realtime: dict[str, Any] | None = None
    event_failures: int = 0  # calls of on_event that raised; left out of the JSON where it is 0
    # as `stage_ms`, of chunks that questions saw while they were being filled
    fork_ms: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        written = super().to_json()
        if self.realtime is None:
            del written["realtime"]
        if not self.event_failures:
            del written["event_failures"]
        return written


@dataclass(frozen=True)
class WarningEvent(Event):
    """A warning of vicort-run, which it also writes to stderr."""

    message: str


@dataclass(frozen=True)
class SourceEvent(Event):
    """A live source changed its state."""

    state: SourceState
    at: Fraction  # seconds, of the newest frame
    reason: str  # of a loss or a failed attempt; for resized, the old and new size
    attempt: int  # number of attempts in a row; 0 = none


def exact_seconds(time: Fraction | Decimal | float) -> Fraction:
    """Seconds, exact; a float means its decimal text. Raises ValueError for what is no number, or
    is farther than MAX_SECONDS from 0."""
    if not is_real(time) and not isinstance(time, Decimal):
        raise ValueError(f"{shown(time)} is no number")
    if not -MAX_SECONDS <= time <= MAX_SECONDS:
        raise ValueError(f"{shown(time)} is not within {MAX_SECONDS} s")
    if type(time) is Fraction:
        return time
    if isinstance(time, Rational):  # those of NumPy would overflow
        return Fraction(int(time.numerator), int(time.denominator))
    return Fraction(str(time))


def checked_frame_time(time: Fraction | float) -> Fraction:
    """As `exact_seconds`; raises ConfigError."""
    try:
        return exact_seconds(time)
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"a frame at {shown(time)} s: give a finite number of seconds since the start, at most "
            f"{MAX_SECONDS}"
        ) from error


def check_picture(image: Any) -> None:
    """Raises ConfigError unless this has the shape and the type of a frame's picture."""
    shape = tuple(getattr(image, "shape", ()))
    dtype = image.dtype if isinstance(image, np.ndarray) else np.uint8
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        found = f"{dtype} {'x'.join(map(str, shape))}" if shape else type(image).__name__
        raise ConfigError(
            f"a picture of {found}: give uint8 RGB, [height, width, 3], or use Frame.of"
        )


def _as_image(tensor: Any) -> np.ndarray:
    """A view [height, width, 3] uint8 of the tensor. Raises ConfigError."""
    try:
        if tensor.__dlpack_device__()[0] not in HOST_MEMORY:
            raise BufferError("it is in GPU memory")
        image = np.from_dlpack(tensor)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"a {type(tensor).__name__} cannot be read from host memory as a picture ({error}): "
            "move it to the CPU"
        ) from error
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = "x".join(map(str, image.shape))
        raise ConfigError(
            f"a tensor of {image.dtype} {shape} is not a picture: give uint8 RGB, [height, "
            "width, 3] or [3, height, width]"
        )
    return image


def _plain(value: Any) -> Any:
    """A value for JSON: fractions become seconds with 6 decimals, tuples become lists."""
    if isinstance(value, Fraction):
        return round(float(value), 6)
    if isinstance(value, float):
        return round(value, 3) + 0.0  # which makes 0 of -0
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, TokenLogprobs):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
