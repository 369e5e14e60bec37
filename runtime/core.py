"""The nouns of vicort. Everything else is a verb on them.

This module knows nothing of engines, devices or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np

from vicort.runtime.errors import ConfigError

# DLPack's device types that the CPU reads: its own, pinned by CUDA or ROCm, and CUDA's managed
HOST_MEMORY = (1, 3, 11, 13)
# pixels: a macroblock's side, which no motion vector's block exceeds in the codecs that give them
MOTION_CELL = 16
# frames in a temporal unit, the smallest thing the vision encoder takes (temporal patch size of
# Qwen2.5-VL)
UNIT_FRAMES = 2


@dataclass(frozen=True)
class Motion:
    """What the codec tells of how a frame differs from the frame before it."""

    # an I picture has come, or what came before is unknown: nothing is carried over
    refreshed: bool
    # [rows, columns] float32: the longest motion vector of each cell of MOTION_CELL pixels a side,
    # in pixels, inf where the cell is coded anew; None = the codec reports none
    cells: np.ndarray | None
    # pixels of the upright frame where the first cell starts: 0, or less where the last one is
    # whole instead
    top: int = 0
    left: int = 0

    def after(self, earlier: Motion | None) -> Motion:
        """This one and an earlier one, of a frame that is left out between.

        The longer vector counts, not the sum: a P picture's vectors may lead several pictures back
        and a B picture's go both ways, so that sums count a way twice, and add up the noise of an
        encoder. With sticky masks it is also what the rule asks: whether any picture since the I
        picture moved enough.
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
    time: Fraction  # seconds since the source's first frame, exact
    index: int  # 0, 1, 2, … in the source, before sampling
    # since the frame before; None = the source was not asked, or its codec knows nothing of it
    motion: Motion | None = None

    @classmethod
    def of(cls, tensor: Any, time: Fraction | float, index: int = 0) -> Self:
        """A frame of anything that speaks DLPack in the host's memory: an array of NumPy, a tensor
        of PyTorch, …

        tensor: [height, width, 3] uint8 RGB, or [3, height, width], told apart by where the 3 is,
        last if at both ends; with any strides. It is not copied: leave it as it is until its chunk
        is through. time: seconds since the first frame; a float is taken as it prints. Raises
        ConfigError for another type, shape, time, or memory.
        """
        if isinstance(time, float) and not math.isfinite(time):
            raise ConfigError(
                f"a frame at {time} s: give a finite number of seconds since the first frame"
            )
        return cls(
            _as_image(tensor),
            Fraction(str(time)) if isinstance(time, float) else Fraction(time),
            index,
        )


@dataclass(frozen=True)
class Chunk:
    """Up to N frames that go through the stages together: the batch of the pipeline."""

    index: int
    first_unit: int  # number, in the stream, of its first temporal unit
    # an even number of them, UNIT_FRAMES a unit; the last may be a repeat that completes its unit
    frames: tuple[Frame, ...]
    repeated: int = 0  # how many frames at the end are such repeats (0 or 1)

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


@dataclass(frozen=True)
class Page:
    """Keys and values of up to T tokens, of one temporal unit or of one run of text, never of
    two."""

    id: int  # unique in a session, rising in the order of the transcript
    kind: PageKind
    tokens: int  # filled cells, at most T
    chunk: int = -1  # of kind vision: the chunk it came with
    unit: int = -1  # of kind vision: the temporal unit, counted from the start of the stream
    start: Fraction = Fraction(0)  # seconds, of the unit's first frame
    end: Fraction = Fraction(0)  # seconds, of the unit's last frame


@dataclass(frozen=True)
class PageTable:
    """What one run of the engine may attend to, besides its own new tokens."""

    slots: np.ndarray  # [L|1, Hkv|1, N] int32 slots of the device pool, -1 = none
    pages: tuple[Page, ...]  # the pages behind them, in transcript order


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy."""

    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0  # smallest set of tokens whose probability reaches this
    top_k: int = 0  # 0 = all
    repetition_penalty: float = 1.0  # Keskar et al. 2019, over the answer's own tokens
    seed: int = 0
    max_tokens: int = 64


@dataclass(frozen=True)
class Question:
    text: str
    at: Fraction | None = None  # seconds since the stream's first frame; None = at its end
    id: str = ""
    # questions of one conversation see each other; None = forgotten after its answer
    conversation: str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Event:
    """Something that happened, as it is written to a JSONL stream."""

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Event").lower()

    def to_json(self) -> dict[str, Any]:
        return {"event": self.name} | {key: _plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True)
class ChunkEvent(Event):
    index: int
    frames: int
    start: Fraction  # seconds, first frame
    end: Fraction  # seconds, last frame
    tokens: int  # visual tokens that left the vision encoder
    kept: int  # visual tokens that were placed in pages
    wall_ms: float  # from the hand-over to the first stage until its last page was placed


@dataclass(frozen=True)
class Answer(Event):
    id: str
    at: Fraction  # seconds, when it was asked
    seen_until: Fraction  # seconds, last frame of the last unit that was complete then
    question: str
    text: str
    ttft_ms: float  # from the ask to the first token, all waiting included
    tokens: int  # tokens in the answer
    # time ranges, in seconds, whose pages the question could see
    read: tuple[tuple[Fraction, Fraction], ...]
    # vision pages it could see; where they differ by layer and head, of the one that sees most
    pages: int
    # cached visual tokens that it could see; where they differ by layer and head, their mean
    tokens_read: int
    # seconds, start of the oldest unit that memory still held of, seen or not; None = it held none
    memory_from: Fraction | None


@dataclass(frozen=True)
class Spoken(Event):
    """What the model said by itself."""

    at: Fraction  # seconds, last frame of the chunk behind which it was said
    seen_until: Fraction  # seconds, the newest frame that it had seen: the same
    text: str
    tokens: int  # tokens in the text
    latency_ms: float  # from the hand-over of that chunk to the first stage until the first token
    silence: float  # probability that silence had


@dataclass(frozen=True)
class Summary(Event):
    system: str
    frames: int  # frames that entered the pipeline, after sampling
    dropped: int  # frames that a lag policy dropped
    chunks: int
    seconds: float  # first frame in to last page placed
    fps: float  # frames / seconds
    stage_ms: dict[str, float]  # total a stage: preprocess, vision, tokens, prefill
    overlap: float  # sum of the stage times / seconds
    ttft_ms: dict[str, float] | None  # p50, p95, p99 over the answers; None without any
    pages: dict[str, int]  # now in use: device, host
    moved_mb: float  # between the device and the tiers behind it, both ways, in MB of 1e6 bytes
    reruns: int  # runs of the language graph that were made again over pages chosen anew
    peak_rss_mb: float
    # of live sources and --realtime: what `LagMeter.summary` gives
    realtime: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        written = super().to_json()
        if self.realtime is None:
            del written["realtime"]
        return written


@dataclass(frozen=True)
class SourceEvent(Event):
    """A live source came, went, or is tried again."""

    state: Literal["connected", "lost", "reconnecting", "resized", "ended", "given-up"]
    at: Fraction  # seconds, of the newest frame
    reason: str  # of a loss or a failed attempt; of resized, from what to what
    attempt: int  # how many times in a row it was tried again; 0 = not


def _as_image(tensor: Any) -> np.ndarray:
    """[height, width, 3] uint8: a view. Raises ConfigError."""
    try:
        if tensor.__dlpack_device__()[0] not in HOST_MEMORY:
            raise BufferError("it is in a GPU's")
        image = np.from_dlpack(tensor)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"a {type(tensor).__name__} is no picture in the host's memory ({error}): move it to "
            "the CPU"
        ) from error
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = "x".join(map(str, image.shape))
        raise ConfigError(
            f"a tensor of {image.dtype} {shape} is no picture: give uint8 RGB, [height, width, "
            "3] or [3, height, width]"
        )
    return image


def _plain(value: Any) -> Any:
    """JSON's view of a value: fractions become seconds with microseconds, tuples become lists."""
    if isinstance(value, Fraction):
        return round(float(value), 6)
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
