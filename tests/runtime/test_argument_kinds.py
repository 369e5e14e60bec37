"""Values of a wrong kind, given to every public function of Python: one line of VicortError, never
an error from within."""

import logging
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Frame, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.stages.shared_vision import SharedVision

ASK = "what is there now?"
SHORT = Sampling(max_tokens=2)
# a value and the kinds that it is
VALUES = {
    "None": (None, {"nothing"}),
    "5": (5, {"number"}),
    "-1": (-1, {"negative"}),
    "True": (True, {"flag"}),
    "nan": (math.nan, set()),
    "inf": (math.inf, set()),
    "huge": (10**400, {"large"}),
    "float32": (np.float32(2), {"number"}),
    "int64": (np.int64(1), {"number", "whole"}),
    "Fraction": (Fraction(1, 3), {"number", "fraction"}),
    "bytes": (b"abc", set()),
    "text": ("abc", {"text"}),
    "empty": ("", {"text", "empty"}),
    "NUL": ("a\0b", {"text"}),
    "surrogate": ("\udc80", {"text"}),
    "Path": (Path("no such path"), {"path"}),
    "list": ([1], set()),
    "tuple": ((), set()),
    "dict": ({}, set()),
    "array": (np.zeros((2, 2)), set()),
    "object": (object(), set()),
    "function": (lambda *_: None, {"function"}),
}


@pytest.fixture(scope="module")
def engines() -> FakeEngineSet:
    return FakeEngineSet(seed=5)


@pytest.fixture(scope="module")
def clip() -> str:
    return str(Path(__file__).parents[1] / "fixtures" / "shapes.mp4")


def opened(engines: FakeEngineSet, **options) -> Session:
    return Session(engines, options.pop("system", system()), **({"sampling": SHORT} | options))


# the kinds that each takes
SESSION = {
    "system": {"never"},
    "fps": {"nothing", "number"},
    "sampling": {"nothing"},
    "trace": {"nothing"},
    "on_event": {"nothing", "function"},
    "memory": {"never"},
    "threads": {"nothing", "whole"},
    "on_lag": {"never"},
    "freshness": {"never"},
    "shared_vision": {"nothing"},
    "max_questions": {"number", "whole", "large"},
    "system_prompt": {"nothing", "text"},
}
METHODS = {
    "push": (lambda session, value: session.push(value), {"never"}),
    "push time": (
        lambda session, value: session.push(Frame(frames(1)[0].image, value, 1)),
        {"number", "negative"},
    ),
    "push picture": (lambda session, value: session.push(Frame(value, Fraction(1), 1)), {"never"}),
    "Frame.of": (lambda session, value: Frame.of(value, 0), {"never"}),
    "wants": (lambda session, value: session.wants(value), {"number", "negative"}),
    "ask": (lambda session, value: session.ask(value), {"text"}),
    "ask conversation": (
        lambda session, value: session.ask(ASK, conversation=value),
        {"text", "nothing"},
    ),
    "ask sampling": (lambda session, value: session.ask(ASK, sampling=value), {"nothing"}),
    "ask on_token": (
        lambda session, value: session.ask(ASK, on_token=value),
        {"nothing", "function"},
    ),
    "submit": (lambda session, value: session.submit(value), {"never"}),
    "submit at": (
        lambda session, value: session.submit(Question(ASK, value)).cancel(),
        {"number", "nothing"},
    ),
    "submit id": (
        lambda session, value: session.submit(Question(ASK, id=value)).cancel(),
        {"text"},
    ),
    "submit sampling": (
        lambda session, value: session.submit(Question(ASK, sampling=value)),
        {"never"},
    ),
    "unknown_words": (lambda session, value: session.unknown_words(value), {"text"}),
    "change_lag_policy": (lambda session, value: session.change_lag_policy(value), {"never"}),
}
SOURCE = {
    "stream": {"nothing"},
    "live": {"nothing", "flag"},
    "image_fps": {"number"},
    "warn": {"nothing", "function"},
    "on_state": {"nothing", "function"},
    "threads": {"number"},
    "decode": {"never"},
    "rtsp_transport": {"never"},
    "patience": {"nothing"},
    "limits": {"nothing"},
    "motion": {"flag"},
    "at_once": {"flag"},
    "isolate": {"flag"},
    "input_format": {"nothing"},
}
LIMITS = {
    "pixels": {"never"},
    "fps": {"never"},
    "seconds": {"number"},
    "memory": {"nothing", "number"},
}
PATIENCE = {
    "open_timeout": {"number"},
    "read_timeout": {"nothing", "number"},
    "first_delay": {"number"},
    "max_delay": {"number"},
    "steady": {"number"},
    "attempts": {"nothing", "number"},
}
REQUEST = {
    "device_mb": {"nothing", "number"},
    "host_mb": {"nothing", "number"},
    "sessions": {"number"},
    "share": {"number"},
}


def outcomes(act, takes: set[str]) -> list[str]:
    """What is wrong with what a function does with each value."""
    wrong = []
    for name, (value, kinds) in VALUES.items():
        try:
            act(value)
        except VicortError as error:
            if not str(error).isprintable() or len(str(error)) > 1000:
                wrong.append(f"{name}: {error!r}")
        except Exception as error:  # noqa: BLE001 - what is being tested
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if not kinds & takes:
                wrong.append(f"{name}: taken")
    return wrong


@pytest.mark.parametrize("name", SESSION)
def test_options_of_a_session(engines: FakeEngineSet, name: str) -> None:
    def act(value: object) -> None:
        opened(engines, **{name: value}).close()

    assert outcomes(act, SESSION[name]) == []


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_session(engines: FakeEngineSet, name: str) -> None:
    act, takes = METHODS[name]
    with opened(engines) as session:
        session.push(frames(1)[0])
        assert outcomes(lambda value: act(session, value), takes) == []
        assert session.ask(ASK).tokens <= 2  # nothing was harmed


@pytest.mark.parametrize("name", Sampling.__dataclass_fields__)
def test_fields_of_sampling(engines: FakeEngineSet, name: str) -> None:
    with opened(engines) as session:
        session.push(frames(1)[0])
        every = {"nothing", "number", "negative", "text", "large", "flag"}
        options = {} if name == "max_tokens" else {"max_tokens": 2}

        def act(value: object) -> None:
            session.ask(ASK, sampling=Sampling(**({name: value} | options)))

        assert [line for line in outcomes(act, every) if "taken" not in line] == []


def test_engine_sets_and_systems() -> None:
    for act in (EngineSet.open, Session.open, SharedVision, load_system):
        assert outcomes(act, {"never"}) == []
    assert outcomes(lambda value: Session.open("no such set", value), {"never"}) == []


def test_sources() -> None:
    assert outcomes(open_source, {"never"}) == []
    assert outcomes(lambda value: open_source([value]), {"text", "path"}) == []


@pytest.mark.parametrize("name", SOURCE)
def test_options_of_a_source(clip: str, name: str) -> None:
    options = {} if name == "isolate" else {"isolate": False}

    def act(value: object) -> None:
        open_source(clip, **({name: value} | options)).close()

    assert outcomes(act, SOURCE[name]) == []


@pytest.mark.parametrize(
    ("kind", "name"), [(Limits, name) for name in LIMITS] + [(Patience, name) for name in PATIENCE]
)
def test_limits_and_patience_of_a_source(clip: str, kind: type, name: str) -> None:
    argument, takes = ("limits", LIMITS) if kind is Limits else ("patience", PATIENCE)

    def act(value: object) -> None:
        open_source(clip, isolate=False, **{argument: kind(**{name: value})}).close()

    assert outcomes(act, takes[name]) == []


@pytest.mark.parametrize("name", REQUEST)
def test_requests_of_memory(name: str) -> None:
    assert outcomes(lambda value: MemoryRequest(**{name: value}), REQUEST[name]) == []


def test_a_path_is_a_source(clip: str) -> None:
    with open_source(Path(clip)) as source, open_source(clip) as same:
        assert (source.name, source.frames_total) == (same.name, same.frames_total)


def test_numbers_of_numpy_do_not_overflow(engines: FakeEngineSet) -> None:
    with opened(engines, fps=np.int64(2)) as session:
        for count, frame in enumerate(frames(4)):
            session.push(Frame(frame.image, np.int64(count * 10**7), count))
        assert type(session.now.numerator) is int
        assert session.now == 3 * 10**7


@pytest.mark.parametrize("name", ["videollm-online", "distinct"])
def test_a_model_that_was_not_taught_to_speak_is_warned_about(
    tiny_engines: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vicort"), Session.open(tiny_engines, name):
        pass
    assert ("without an adapter" in caplog.text) == (name == "videollm-online")
