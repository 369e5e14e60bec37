"""What a session is called with: values of a wrong kind are refused before they are used."""

from __future__ import annotations

from typing import Any, get_args

from vicort.runtime.argument_kinds import check_functions, check_kind, wrong
from vicort.runtime.core import Frame, Freshness, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import System
from vicort.runtime.safe_text import is_real, is_text, shown
from vicort.runtime.stages.shared_vision import SharedVision

SAMPLING = "vicort.runtime.Sampling(...), or None for the model's own"


def check_session(
    system: Any, fps: Any, sampling: Any, trace: Any, on_event: Any, memory: Any
) -> None:
    """Raises ConfigError."""
    check_kind(system, System, "the system", "what load_system returns, or use Session.open")
    if fps is not None and not is_real(fps) and not (isinstance(fps, str) and fps == "source"):
        raise wrong(fps, "fps", "a number of frames a second, 'source' for every frame, or None")
    check_kind(sampling, (Sampling, type(None)), "sampling", SAMPLING)
    if trace is not None and not callable(getattr(trace, "span", None)):
        raise wrong(trace, "trace", "an object with a method `span`, or None")
    check_functions(on_event=on_event)
    check_memory(memory)


def check_freshness(freshness: Any) -> None:
    """Raises ConfigError."""
    if not isinstance(freshness, str) or freshness not in get_args(Freshness):
        allowed = ", ".join(get_args(Freshness))
        raise ConfigError(f"freshness {shown(freshness)}: give one of {allowed}")


def check_shared_vision(shared_vision: Any, engines: EngineSet) -> None:
    """Raises ConfigError."""
    if shared_vision is None:
        return
    check_kind(shared_vision, SharedVision, "shared_vision", "SharedVision(engines), or None")
    if shared_vision.engines is not engines:
        raise ConfigError(
            "shared_vision is of other engines than the session: give both the same open EngineSet"
        )


def check_memory(memory: Any) -> None:
    """Raises ConfigError."""
    check_kind(memory, MemoryRequest, "memory", "vicort.runtime.memory.budget.MemoryRequest(...)")


def check_frame(frame: Any) -> None:
    """Raises ConfigError."""
    check_kind(frame, Frame, "the frame", "vicort.runtime.Frame(...), or Frame.of(array, seconds)")


def check_question(question: Any, on_token: Any) -> None:
    """Raises QuestionError, or ConfigError for its sampling and for on_token."""
    if not isinstance(question, Question):
        raise QuestionError(
            f"the question is {shown(question)}: give vicort.runtime.Question(...), or a text to "
            "`ask`"
        )
    if not isinstance(question.id, str):
        raise QuestionError(f"the question's id is {shown(question.id)}: give a text")
    check_kind(question.sampling, Sampling, "sampling", SAMPLING)
    check_functions(on_token=on_token)


def check_words(text: Any) -> None:
    """Raises QuestionError."""
    if not isinstance(text, str) or not is_text(text):
        raise QuestionError(f"the question {shown(text)} is no text: give a str of Unicode")
