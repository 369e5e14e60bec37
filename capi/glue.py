"""The Python side of libvicort.so. It converts C arguments to Python values, converts exceptions to
status codes, and is compiled into the library.

`embedded.h` declares these functions, and vicort.h documents them.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _vicort_capi import ffi, lib

from vicort.runtime import errors
from vicort.runtime import shared_session as shared
from vicort.runtime.core import Constraint, Freshness, Sampling
from vicort.runtime.devices.surface import Surface, to_rgb
from vicort.runtime.language.constraints import MAX_CHOICES
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import backend_of
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import DEFAULT_SYSTEM, MAX_MB
from vicort.runtime.session import Session
from vicort.runtime.shared_session import SharedSession
from vicort.runtime.sources.decoder_host import HOST
from vicort.runtime.sources.packets import MAX_EXTRADATA_BYTES, MAX_PACKET_BYTES
from vicort.runtime.sources.process_apart import start_apart

HOST.starter = start_apart  # a source that is pushed starts a process, which is none of the host's

ERROR_SIZE = 1024  # bytes, as in vicort.c
MAX_SIDE = 65_535  # pixels
LAGS = {lib.VICORT_WAIT: "wait", lib.VICORT_DROP_OLDEST: "drop-oldest"}
FRESHNESS: dict[int, Freshness] = {lib.VICORT_COMPLETE: "complete", lib.VICORT_NOW: "now"}
AUTO = -1.0  # VICORT_MEMORY_AUTO
# VICORT_FPS_MODEL, VICORT_FPS_SOURCE
RATES: dict[float, Literal["source"] | None] = {0.0: None, -1.0: "source"}
# Kr and Kb of ITU-R BT.601 and BT.709, and whether the range is full (0 to 255)
COLOURS = {
    lib.VICORT_BT601: to_rgb(0.299, 0.114, False),
    lib.VICORT_BT709: to_rgb(0.2126, 0.0722, False),
    lib.VICORT_BT601_FULL: to_rgb(0.299, 0.114, True),
    lib.VICORT_BT709_FULL: to_rgb(0.2126, 0.0722, True),
}


class ArgumentError(errors.VicortError):
    """A value is not allowed."""


class SizeError(errors.VicortError):
    """Sizes of a picture are inconsistent."""


class CutText(errors.VicortError):
    """A buffer is too small for the whole text."""


CODES: dict[type[BaseException], int] = {
    ArgumentError: lib.VICORT_E_ARGUMENT,
    SizeError: lib.VICORT_E_SIZE,
    CutText: lib.VICORT_E_BUFFER,
    errors.SessionClosed: lib.VICORT_E_CLOSED,
    shared.StreamFinished: lib.VICORT_E_FINISHED,
    shared.TimeOrderError: lib.VICORT_E_TIME,
    shared.AnswerStopped: lib.VICORT_E_STOPPED,
    errors.EngineError: lib.VICORT_E_ENGINE,
    errors.ConfigError: lib.VICORT_E_CONFIG,
    errors.SourceError: lib.VICORT_E_SOURCE,
    errors.MemoryBudgetError: lib.VICORT_E_MEMORY,
    errors.DeviceError: lib.VICORT_E_DEVICE,
    errors.QuestionError: lib.VICORT_E_QUESTION,
    errors.VicortError: lib.VICORT_E_FAILED,
    MemoryError: lib.VICORT_E_MEMORY,
    BaseException: lib.VICORT_E_INTERNAL,
}

# by handle; a handle is a number, not an address, and is never reused
sessions: dict[int, SharedSession] = {}
handles = itertools.count(0x10000, 16)
opening = threading.Lock()  # guards sessions and handles


def embedded(function: Callable[..., None]) -> Callable[..., int]:
    """Define a function of embedded.h. It catches every exception and returns a status + 1."""

    @ffi.def_extern(name=f"embedded_{function.__name__}", error=0)
    @functools.wraps(function)
    def call(error: Any, *arguments: Any) -> int:
        try:
            function(*arguments)
        except BaseException as failure:  # noqa: BLE001 (becomes a status code)
            write_text(error, ERROR_SIZE, error_text(failure))
            return next(CODES[kind] for kind in type(failure).__mro__ if kind in CODES) + 1
        return lib.VICORT_OK + 1

    return call


def error_text(failure: BaseException) -> str:
    expected = isinstance(failure, errors.VicortError)
    return str(failure) if expected else " ".join(f"{type(failure).__name__}: {failure}".split())


def session_of(handle: Any) -> SharedSession:
    if found := sessions.get(int(ffi.cast("uintptr_t", handle))):
        return found
    raise errors.SessionClosed(
        "the session is closed, or was never opened: open one with vicort_open"
    )


def read_text(text: Any, name: str) -> str:
    try:
        return ffi.string(text).decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start}): convert it"
        ) from error


def write_text(target: Any, size: int, text: str) -> int:
    """Write as much text as fits into `size` bytes with a NUL, cut between characters. Returns the
    length of the whole text in bytes."""
    whole = text.encode(errors="replace")
    if size:
        cut = whole[: size - 1].decode(errors="ignore").encode()
        ffi.memmove(target, cut + b"\0", len(cut) + 1)
    return len(whole)


# ---- open and close ----


@embedded
def open(params: Any, result: Any) -> None:
    sampling = Sampling(
        params.temperature,
        params.top_p,
        params.top_k,
        repetition_penalty=1.0,
        seed=params.seed,
        max_tokens=params.max_tokens,
    )
    TokenChoice(sampling)
    if params.threads < 0:
        raise ArgumentError(
            f"{params.threads} threads: give 1 or more, or VICORT_THREADS_ALL for all cores"
        )
    memory = MemoryRequest(
        _megabytes("device_mb", params.device_mb, least=1),
        _megabytes("host_mb", params.host_mb, least=0),
    )
    if params.on_lag not in LAGS:
        raise ArgumentError(
            f"on_lag {params.on_lag} is unknown: give VICORT_WAIT or VICORT_DROP_OLDEST"
        )
    if params.freshness not in FRESHNESS:
        raise ArgumentError(
            f"freshness {params.freshness} is unknown: give VICORT_COMPLETE or VICORT_NOW"
        )
    if not params.system:
        raise ArgumentError(
            "system is null: start from vicort_params_default(), or name one, such as "
            f"{DEFAULT_SYSTEM}"
        )
    engine_dir = (
        Path(read_text(params.engine_dir, "engine_dir")) if params.engine_dir else default_engines()
    )
    session = Session.open(
        engine_dir,
        read_text(params.system, "system"),
        threads=params.threads or None,
        memory=memory,
        fps=RATES.get(params.fps, params.fps),
        on_lag=LAGS[params.on_lag],
        freshness=FRESHNESS[params.freshness],
        sampling=sampling,
    )
    with opening:
        handle = next(handles)
        sessions[handle] = SharedSession(
            session, sampling, on_gpu=backend_of(engine_dir) == "tensorrt"
        )
    result[0] = ffi.cast("vicort_session *", handle)


def _megabytes(field: str, value: float, least: float) -> float | None:
    """None for VICORT_MEMORY_AUTO."""
    if value == AUTO:
        return None
    if not least <= value <= MAX_MB:
        raise ArgumentError(
            f"{field} {value:g}: give {least:g} to {MAX_MB:g}, or VICORT_MEMORY_AUTO"
        )
    return value


def default_engines() -> Path:
    if found := find_engine_dir("tiny"):
        return found
    raise errors.EngineError(
        "no engines of the tiny model are built: run `vicort-build tiny`, or name a set in "
        "vicort_params.engine_dir"
    )


@embedded
def close(handle: Any) -> None:
    try:
        session_of(handle).close()
    except errors.DeviceError:  # the GPU is lost, and the session closed all the same
        sessions.pop(int(ffi.cast("uintptr_t", handle)), None)
        raise
    sessions.pop(int(ffi.cast("uintptr_t", handle)), None)


@embedded
def close_all() -> None:
    for session in list(sessions.values()):
        with suppress(errors.SessionClosed, errors.DeviceError):
            session.close()


# ---- frames ----


@embedded
def push_rgb24(
    handle: Any, pixels: Any, length: int, width: int, height: int, stride: int, time_us: int
) -> None:
    session = session_of(handle)
    check_sides(width, height)
    check_plane("pixels", length, stride, height, 3 * width)
    session.push(time_us, lambda: plane(pixels, stride, height, width, 3))


@embedded
def push_nv12(
    handle: Any,
    luma: Any,
    luma_length: int,
    luma_stride: int,
    chroma: Any,
    chroma_length: int,
    chroma_stride: int,
    width: int,
    height: int,
    colours: int,
    time_us: int,
) -> None:
    session = session_of(handle)
    check_sides(width, height)
    rows, pairs = (height + 1) // 2, (width + 1) // 2
    check_plane("luma", luma_length, luma_stride, height, width)
    check_plane("chroma", chroma_length, chroma_stride, rows, 2 * pairs)
    if colours not in COLOURS:
        raise ArgumentError(
            f"colours {colours} is unknown: give VICORT_BT601, VICORT_BT709, VICORT_BT601_FULL or "
            "VICORT_BT709_FULL"
        )
    if session.on_gpu:
        raise ArgumentError("engines on a GPU do not accept NV12 from host memory: push RGB24")

    def surface() -> Surface:
        return Surface(
            plane(luma, luma_stride, height, width, 1),
            plane(chroma, chroma_stride, rows, pairs, 2),
            COLOURS[colours],
        )

    session.push(time_us, surface)


@embedded
def set_codec(handle: Any, codec: Any, extradata: Any, extradata_length: int) -> None:
    session = session_of(handle)
    if extradata_length > MAX_EXTRADATA_BYTES:
        raise SizeError(
            f"{extradata_length} bytes of extradata: give at most {MAX_EXTRADATA_BYTES}"
        )
    extra_bytes = bytes(ffi.buffer(extradata, extradata_length)) if extradata_length else b""
    session.set_codec(read_text(codec, "codec"), extra_bytes)


@embedded
def push_packet(handle: Any, data: Any, length: int, time_us: int) -> None:
    session = session_of(handle)
    if not 0 < length <= MAX_PACKET_BYTES:
        raise SizeError(
            f"a packet of {length} bytes: give one picture, 1 to {MAX_PACKET_BYTES} bytes"
        )
    session.push_packet(bytes(ffi.buffer(data, length)), time_us)


@embedded
def push_source(handle: Any, source: Any, pace: float) -> None:
    session_of(handle).watch(read_text(source, "source"), pace)


@embedded
def finish(handle: Any) -> None:
    session_of(handle).finish()


def check_sides(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise SizeError(f"a picture of {width}x{height} pixels: give sides of 1 to {MAX_SIDE}")


def check_plane(name: str, length: int, stride: int, rows: int, row_bytes: int) -> None:
    if stride < row_bytes:
        raise SizeError(f"{name}: a stride of {stride} bytes is less than a row's {row_bytes}")
    if length < (needed := stride * (rows - 1) + row_bytes):
        raise SizeError(
            f"{name}: {length} bytes are too few: {rows} rows of {row_bytes} bytes with a "
            f"stride of {stride} need {needed}"
        )


def plane(data: Any, stride: int, rows: int, columns: int, channels: int) -> np.ndarray:
    """[rows, columns, channels] uint8: a copy, contiguous."""
    row = columns * channels
    step = stride if rows > 1 else row
    pixels = ffi.buffer(data, step * (rows - 1) + row)
    return np.ndarray(
        (rows, columns, channels), np.uint8, pixels, strides=(step, channels, 1)
    ).copy()


# ---- questions ----


@embedded
def ask(
    handle: Any, question: Any, text: Any, text_size: int, text_length: Any, facts: Any
) -> None:
    timed = session_of(handle).ask(read_text(question, "question"), lambda piece: True)
    length = write_text(text, text_size, timed.answer.text)
    write_facts(facts, timed)
    if text_length:
        text_length[0] = length
    if length >= text_size:
        raise CutText(
            f"the answer needs {length} bytes and a NUL, the buffer has {text_size}: give a larger "
            "one, or use vicort_ask_stream"
        )


@embedded
def ask_stream(handle: Any, question: Any, on_token: Any, user_data: Any, facts: Any) -> None:
    ask_in_pieces(handle, question, on_token, user_data, facts)


@embedded
def ask_between(
    handle: Any,
    question: Any,
    since_us: int,
    until_us: int,
    on_token: Any,
    user_data: Any,
    facts: Any,
) -> None:
    limits = time_limits(since_us, until_us)
    ask_in_pieces(handle, question, on_token, user_data, facts, **limits)


@embedded
def ask_constrained(
    handle: Any,
    question: Any,
    since_us: int,
    until_us: int,
    constraint: Any,
    on_token: Any,
    user_data: Any,
    probabilities: Any,
    facts: Any,
) -> None:
    limit = read_constraint(constraint) if constraint else None
    timed = ask_in_pieces(
        handle,
        question,
        on_token,
        user_data,
        facts,
        constraint=limit,
        **time_limits(since_us, until_us),
    )
    if probabilities and limit is not None:
        for place, choice in enumerate(limit.choices):
            probabilities[place] = (timed.answer.choices or {}).get(choice, 0.0)


def time_limits(since_us: int, until_us: int) -> dict[str, int | None]:
    """Of a question: the ends of int64 are none."""
    return {
        "since_us": None if since_us == -(2**63) else since_us,
        "until_us": None if until_us == 2**63 - 1 else until_us,
    }


def read_constraint(constraint: Any) -> Constraint:
    """Raises QuestionError for what is none; the session checks the texts."""
    if constraint.choice_count > MAX_CHOICES:
        raise errors.QuestionError(f"{constraint.choice_count} choices: give at most {MAX_CHOICES}")
    choices = [constraint.choices[place] for place in range(constraint.choice_count)]
    for place, choice in enumerate(choices):
        if not choice:
            raise ArgumentError(f"choice {place} is null: give choice_count texts")
    texts = {
        name: read_text(text, name) if (text := getattr(constraint, name)) else None
        for name in ("regex", "json_schema", "lark")
    }
    return Constraint(tuple(read_text(choice, "a choice") for choice in choices), **texts)


def ask_in_pieces(
    handle: Any, question: Any, on_token: Any, user_data: Any, facts: Any, **options: Any
) -> shared.TimedAnswer:
    """options: as of `SharedSession.ask`."""

    def give(piece: str) -> bool:
        whole = piece.encode(errors="replace")
        return on_token(user_data, ffi.from_buffer(whole + b"\0"), len(whole)) == 0

    timed = session_of(handle).ask(read_text(question, "question"), give, **options)
    write_facts(facts, timed)
    return timed


def write_facts(facts: Any, timed: shared.TimedAnswer) -> None:
    if facts:
        facts.at_us = timed.at_us
        facts.seen_until_us = timed.seen_until_us
        facts.ttft_ms = timed.answer.ttft_ms
        facts.probability = timed.answer.probability
        facts.first_probability = timed.answer.first_probability
        facts.outside = timed.answer.outside or 0.0
        facts.complete = timed.answer.complete
        facts.tokens = timed.answer.tokens
        facts.pages = timed.answer.pages


@embedded
def get_stats(handle: Any, stats: Any) -> None:
    summary = session_of(handle).summary()
    for name in ("frames", "dropped", "chunks", "seconds", "fps", "peak_rss_mb"):
        setattr(stats, name, getattr(summary, name))
    stats.device_pages = summary.pages["device"]
    stats.host_pages = summary.pages["host"]
    for percentile in ("p50", "p95", "p99"):
        milliseconds = summary.ttft_ms[percentile] if summary.ttft_ms else 0.0
        setattr(stats, f"ttft_{percentile}_ms", milliseconds)
