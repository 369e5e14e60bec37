"""What the tests have a process on the stand-in do: streams on a GPU that fails in the middle."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from support.fake_engines import FakeEngineSet
from support.reported_streams import ASK, SHORT, SPILLING, told
from support.stand_in_driver.engines import StandInEngineSet, cubins, stand_in_driver
from support.streams import frames

from vicort.runtime.core import Question
from vicort.runtime.devices.cuda import CudaDevice, Gpu
from vicort.runtime.devices.cuda.cuda_core import CudaCoreDriver
from vicort.runtime.devices.cuda.gpu import _open_driver
from vicort.runtime.engines.gpu_fit import check_fits, gpu_memory
from vicort.runtime.errors import DeviceError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.manifest import Manifest
from vicort.runtime.session import Session
from vicort.runtime.shared_session import SharedSession
from vicort.runtime.stages.shared_vision import SharedVision

FRAMES = 20
LATER = Fraction(10**6)  # seconds


@dataclass
class Outcome:
    """The errors that a caller gets, and what is left afterwards."""

    errors: list[tuple[str, str, str]] = field(default_factory=list)  # call, type and text
    seconds: float = 0.0
    calls: int = 0  # of the driver
    unanswered: int = 0  # questions whose askers would wait for ever
    threads: list[str] = field(default_factory=list)
    printed: str = ""  # on stderr

    def note(self, call: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 -- looked at by the test
            self.errors.append((call, type(error).__name__, str(error)))
            return None


@contextmanager
def _standard_error(outcome: Outcome) -> Iterator[None]:
    """What is printed, by C too."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            outcome.printed = file.read().decode()


def stream_that_fails(
    after: int, result: int, overlap: bool, function: str | None = None, lasting: bool = True
) -> Outcome:
    """A stream of which a call of the driver fails. function: which calls are counted; lasting:
    all after it fail, too."""
    driver, outcome = stand_in_driver(), Outcome()
    driver.recover()
    engines = StandInEngineSet()
    gc.collect()
    calls, start = driver.get("calls"), time.monotonic()
    driver.fail(result, function=function, after=after, lasting=lasting)
    with _standard_error(outcome):
        _watch(engines, overlap, outcome)
        del engines
        gc.collect()
    outcome.seconds, outcome.calls = time.monotonic() - start, driver.get("calls") - calls
    outcome.threads = _threads()
    driver.recover()
    return outcome


def _threads() -> list[str]:
    """Those that are left. Of a session that did not open they end with its garbage."""
    limit = time.monotonic() + 3
    while threading.active_count() > 1 and time.monotonic() < limit:
        time.sleep(0.01)
    return [each.name for each in threading.enumerate() if each is not threading.main_thread()]


def _watch(engines: StandInEngineSet, overlap: bool, outcome: Outcome) -> None:
    session = outcome.note(
        "open", lambda: Session(engines, SPILLING, sampling=SHORT, overlap=overlap)
    )
    if session is None:
        return
    answers: list[Future] = []
    later = session.submit(Question(ASK, LATER, sampling=SHORT))
    for number, frame in enumerate(frames(FRAMES)):
        outcome.note("push", lambda frame=frame: session.push(frame))
        if outcome.errors:  # nobody waits for a time that does not come
            outcome.unanswered += not _is_given(later)
            break
        if number in (7, 15):
            at = None if number == 7 else session.now
            answer = outcome.note(
                "submit", lambda at=at: session.submit(Question(ASK, at, sampling=SHORT))
            )
            answers += [answer] if answer else []
    outcome.note("finish", session.finish)
    for answer in [*answers, later]:
        outcome.unanswered += not _is_given(answer)
        if answer.done():
            outcome.note("answer", answer.result)
    outcome.note("summary", session.summary)
    outcome.note("close", session.close)


def _is_given(answer: Future) -> bool:
    """Whether there is an answer, or a failure, a little later at most."""
    wait([answer], timeout=3)
    return answer.done()


@contextmanager
def switched(**switches: int) -> Iterator[None]:
    """Switches of the stand-in, until the body ends."""
    driver = stand_in_driver()
    before = {name: driver.get(name) for name in switches}
    driver.set(**switches)
    try:
        yield
    finally:
        driver.set(**before)


def opened_with(**switches: int) -> str:
    """What is said where a GPU is opened on such a driver."""
    with switched(**switches):
        try:
            _open_driver(0)
        except DeviceError as error:
            return str(error)
    return ""


def stream_with_memory(free: int, pinned: int) -> Outcome:
    """A stream where other processes leave so many bytes of device memory, and so many bytes can be
    page-locked."""
    driver, outcome = stand_in_driver(), Outcome()
    driver.recover()
    engines = StandInEngineSet()
    gc.collect()
    held = driver.get("total_memory") - driver.get("device_bytes") - free
    with _standard_error(outcome), switched(other_memory=held, pinned_memory=pinned):
        _watch(engines, True, outcome)
        del engines
        gc.collect()
    outcome.threads = _threads()
    return outcome


def resized_where_dali_fails() -> tuple[list[str], list[int]]:
    """Warnings where DALI is to resize on the GPU, for which the stand-in is not enough; and the
    numbers of two frames that were resized all the same."""
    engines = StandInEngineSet()
    device = CudaDevice(engines.gpu, engines.kernels, resize_on="gpu")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        preprocessor = device.preprocessor((8, 8), 1)
    stream, out = device.stream("resize"), device.empty((2, 8, 8, 3), np.uint8)
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (7, 9)]
    stream.run(preprocessor, frames, out, stream).done()
    (seen,) = stream.run(lambda: device.read(stream, out)).done()
    device.close()
    return [str(each.message) for each in warned], seen[:, 0, 0, 0].tolist()


def told_without_captures(name: str) -> tuple[bool, str]:
    """Whether a system says what it says on the host where nothing can be captured; and what is
    printed."""
    outcome = Outcome()
    engines = StandInEngineSet()
    with _standard_error(outcome), switched(refuse_captures=1):
        is_equal = told(engines, name) == told(FakeEngineSet(), name)
    stand_in_driver().recover()
    return is_equal, outcome.printed


def room_for(sizes: dict[str, int], manifest: dict[str, Any], total: int, others: int) -> str:
    """What is said of plans of these sizes on a GPU of which other processes hold a part."""
    others -= stand_in_driver().get("device_bytes")  # that earlier tests hold
    with tempfile.TemporaryDirectory() as folder, switched(total_memory=total, other_memory=others):
        for name, size in sizes.items():
            with (Path(folder) / name).open("wb") as file:
                file.truncate(size)
        shutil.copy(cubins().name, Path(folder) / KERNELS_FILE)
        chosen, gpu = Manifest.model_validate(manifest), Gpu(CudaCoreDriver(0))
        try:
            check_fits(Path(folder), chosen, gpu, gpu_memory(Path(folder), chosen, gpu))
        except DeviceError as error:
            return str(error).replace(folder, "FOLDER")
    return ""


@contextmanager
def _lost_at_rest(overlap: bool, outcome: Outcome) -> Iterator[Session]:
    """A session without work, of which every call of the driver fails from now on."""
    driver, start = stand_in_driver(), time.monotonic()
    driver.recover()
    session = Session(StandInEngineSet(), SPILLING, sampling=SHORT, overlap=overlap)
    for frame in frames(FRAMES):
        session.push(frame)
    session.inspect().pipeline.drain()
    driver.fail(700, lasting=True)
    yield session
    outcome.note("close", session.close)
    outcome.seconds, outcome.threads = time.monotonic() - start, _threads()
    driver.recover()


def lost_while_a_question_is_answered(overlap: bool) -> Outcome:
    """While another one waits for its time; then one frame more is pushed."""
    outcome = Outcome()
    with _lost_at_rest(overlap, outcome) as session:
        later = session.submit(Question(ASK, LATER, sampling=SHORT))
        outcome.note("answer", lambda: session.ask(ASK))
        outcome.unanswered += not _is_given(later)
        outcome.note("later", lambda: later.result(0))
        outcome.note("push", lambda: session.push(frames(1, start=FRAMES)[0]))
        outcome.note("wants", lambda: session.wants(LATER))
        outcome.note("finish", session.finish)
    return outcome


def closed_after_the_gpu_is_lost(overlap: bool, known: str) -> Outcome:
    """known: by what the caller knows of it before: "push", "answer", "body" of a with statement,
    or "" for nothing."""
    outcome = Outcome()
    with _lost_at_rest(overlap, outcome) as session:
        _make_known(session, known, outcome)
        outcome.note("close", session.close)
    return outcome


def _make_known(session: Session, known: str, outcome: Outcome) -> None:
    if known == "push":
        outcome.note("push", lambda: _push_until_it_fails(session))
    if known == "answer":
        outcome.note("answer", lambda: session.ask(ASK))
    if known == "body":
        outcome.note("with", lambda: _leave_by(DeviceError("of a source"), session))


def _push_until_it_fails(session: Session) -> None:
    for frame in frames(10 * FRAMES, start=FRAMES):
        session.push(frame)


def _leave_by(error: Exception, left: Session | SharedVision) -> None:
    with left:
        raise error


def left_after_the_gpu_is_lost() -> Outcome:
    """A vision encoder that sessions share."""
    driver, outcome, start = stand_in_driver(), Outcome(), time.monotonic()
    driver.recover()
    for error in (DeviceError("of a source"), ValueError("of the body")):
        shared = SharedVision(StandInEngineSet())
        driver.fail(700, lasting=True)
        outcome.note("with", partial(_leave_by, error, shared))
        driver.recover()
    outcome.seconds, outcome.threads = time.monotonic() - start, _threads()
    return outcome


def shared_stream_that_fails(after: int, result: int) -> Outcome:
    """The same, as a C program sees it, of which one thread asks while another one pushes."""
    driver, outcome = stand_in_driver(), Outcome()
    driver.recover()
    shared = SharedSession(Session(StandInEngineSet(), SPILLING), SHORT)
    start = time.monotonic()
    driver.fail(result, after=after, lasting=True)
    pushed = threading.Event()

    def ask() -> None:
        pushed.wait(30)
        while not outcome.errors:
            outcome.note("ask", lambda: shared.ask(ASK, lambda piece: True))

    asker = threading.Thread(target=ask, name="asker")
    asker.start()
    for frame in frames(40 * FRAMES):
        picture = partial(getattr, frame, "image")
        outcome.note("push", partial(shared.push, int(frame.time * 1_000_000), picture))
        pushed.set()
        if outcome.errors:
            break
    outcome.note("finish", shared.finish)
    outcome.note("close", shared.close)
    asker.join(30)
    outcome.seconds = time.monotonic() - start
    outcome.threads = _threads()
    driver.recover()
    return outcome
