"""Several sources in one process: one engine set, and none of them harms another."""

import itertools
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_engines import FakeEngineSet, toy_model
from support.fake_session import FakeEngines, FakeSession
from support.servers import Camera, running
from support.streams import frames
from support.systems import system

from vicort.runtime.cli import run
from vicort.runtime.core import Answer, ChunkEvent, Question, Sampling
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.session import Session
from vicort.runtime.stages.chunker import Chunker


class Stub(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path("engines"))


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict], str]:
    code = run.main([*arguments, "--format", "jsonl"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def watched(engines: FakeEngineSet, seed: int, found: dict[int, list]) -> None:
    """A whole stream of its own, with questions in it; leaves what happened but for times."""
    events: list = []
    sampling = Sampling(max_tokens=5)
    with Session(engines, system(), on_event=events.append, sampling=sampling) as session:
        for at in (5, 11, None):
            session.submit(Question("what color was the circle?", at, sampling=sampling))
        for frame in frames(40, seed=seed):
            if session.wants(frame.time):
                session.push(frame)
        session.finish()
    given = sorted(
        (event.at, event.text, event.read) for event in events if isinstance(event, Answer)
    )
    found[seed] = [
        given,
        [(event.index, event.kept, event.end) for event in events if isinstance(event, ChunkEvent)],
    ]


def test_sessions_that_share_an_engine_set_see_and_answer_as_they_would_alone():
    alone: dict[int, list] = {}
    for seed in range(4):
        watched(FakeEngineSet(), seed, alone)
    together: dict[int, list] = {}
    engines = FakeEngineSet()
    threads = [
        threading.Thread(target=watched, args=(engines, seed, together)) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert alone[0] != alone[1]


def test_each_session_has_pages_of_its_own():
    engines = FakeEngineSet()
    with Session(engines, system()) as busy, Session(engines, system()) as idle:
        for frame in frames(40):
            busy.push(frame)
        busy.finish()
        assert busy.summary().pages["device"] > idle.summary().pages["device"]


def test_a_source_that_never_answers_is_left_behind_when_all_are_to_stop(monkeypatch):
    monkeypatch.setattr(run, "STOP_SECONDS", 0.2)
    context = SimpleNamespace(stopping=threading.Event(), output=None)
    never, source = threading.Event(), SimpleNamespace(stop=lambda: None)
    last = Stub(run=lambda: context.stopping.set() or 3, source=source, label="last")
    stalled = Stub(run=lambda: never.wait() and 0, source=source, label="stalled")
    try:
        assert run.watch_together([last, stalled], context) == 3
    finally:
        never.set()


@pytest.mark.usefixtures("fake")
def test_a_stalled_camera_harms_no_other(capsys, monkeypatch):
    def says(session: FakeSession, question: Question) -> str:
        return "yes" if session.times and session.times[-1] > 3 else "no"

    monkeypatch.setattr(FakeSession, "text_of", says)
    ended = threading.Event()
    with running(Camera(fps=25)) as good, running(Camera(fps=25)) as bad:
        bad.act = lambda wire, count: count < 10 or ended.wait(120)
        timing = ("--live", "--fps", "source", "--read-timeout", "2", "--until", "is it late?")
        code, events, _ = ran(capsys, good.url, bad.url, *timing)
        assert not ended.is_set()
        ended.set()
    sessions = sorted(FakeSession.opened, key=lambda session: len(session.times))
    assert code == 0
    assert len(sessions[0].times) < 40 < len(sessions[1].times)
    # no gap as long as the other camera's read timeout
    assert max(b - a for a, b in itertools.pairwise(sessions[1].times)) < 1.9
    states = {event["source"]: [] for event in events}
    for event in events:
        if event["event"] == "source":
            states[event["source"]].append(event["state"])
    assert sorted(states.values(), key=len)[0] == ["connected"]
    assert sorted(states.values(), key=len)[1][:3] == ["connected", "lost", "reconnecting"]
    assert "geheim" not in json.dumps(events)


def by_source(events: list[dict], key: str, kind: str) -> dict[str, list]:
    found: dict[str, list] = {}
    for event in events:
        if event["event"] == kind:
            found.setdefault(event["source"], []).append(event[key])
    return found


@pytest.mark.usefixtures("fake")
def test_a_camera_that_is_down_at_the_start_holds_up_no_other_and_is_watched_when_it_comes(
    capsys, monkeypatch
):
    def says(session: FakeSession, question: Question) -> str:
        return "yes" if session.times and session.times[-1] > 3 else "no"

    monkeypatch.setattr(FakeSession, "text_of", says)
    down = Camera(fps=25)
    down.kill()
    back: list[Camera] = []
    coming = threading.Timer(1.5, lambda: back.append(Camera(fps=25, port=down.port)))
    coming.start()
    try:
        with running(Camera(fps=25)) as good:
            code, events, err = ran(
                capsys, good.url, down.url, "--live", "--fps", "source", "--until", "is it late?"
            )
    finally:
        coming.join()
        for each in back:
            each.kill()
    assert code == 0
    states = sorted(by_source(events, "state", "source").values(), key=len)
    assert states[0] == ["connected"]
    assert states[1][0] == "reconnecting"
    assert states[1][-1] == "connected"
    assert len(by_source(events, "system", "summary")) == 2
    assert all(session.times for session in FakeSession.opened)
    assert (
        max(b - a for session in FakeSession.opened for a, b in itertools.pairwise(session.times))
        < 0.5
    )
    assert err.count("(retrying)") == 1
    assert "geheim" not in json.dumps(events) + err


@pytest.mark.usefixtures("fake")
def test_one_alone_that_is_down_at_the_start_ends_the_run(capsys):
    down = Camera()
    down.kill()
    code, events, err = ran(capsys, down.url, "--live")
    assert (code, events) == (2, [])
    assert "cannot be opened as a video (Connection refused)" in err


@pytest.mark.usefixtures("fake")
def test_when_one_says_yes_the_other_cameras_end_at_once_and_sum_up(capsys, monkeypatch):
    """They used to go on reading frames that were no longer wanted, until they were left behind
    without a summary."""
    monkeypatch.setattr(
        FakeSession,
        "text_of",
        lambda session, question: "yes" if session is FakeSession.opened[0] else "no",
    )
    with running(Camera(fps=25)) as one, running(Camera(fps=25)) as other:
        code, events, _ = ran(capsys, one.url, other.url, "--live", "--until", "is it there?")
    assert code == 0
    assert len(by_source(events, "system", "summary")) == 2


@pytest.mark.usefixtures("fake")
def test_one_that_fails_is_warned_of_and_the_others_go_on(capsys, monkeypatch):
    push = FakeSession.push

    def full(session: FakeSession, frame) -> None:
        if frame.image.shape[0] == 48:
            raise MemoryBudgetError("there is no room: set memory.device_mb")
        push(session, frame)

    monkeypatch.setattr(FakeSession, "push", full)
    code, events, err = ran(
        capsys, "testsrc:seconds=2,size=64x48", "testsrc:seconds=2,size=64x64", "--ask", "what?"
    )
    assert code == 2
    assert sorted((event["source"], event["event"]) for event in events) == [
        ("testsrc:seconds=2,size=64x48", "warning"),
        ("testsrc:seconds=2,size=64x64", "answer"),
        ("testsrc:seconds=2,size=64x64", "summary"),
    ]
    assert (
        err == "vicort-run: warning: testsrc:seconds=2,size=64x48: there is no room: "
        "set memory.device_mb\n"
    )


@pytest.mark.usefixtures("fake")
def test_a_frame_that_the_model_does_not_take_names_its_source_once(capsys, monkeypatch):
    push, grid_of = FakeSession.push, toy_model(grid=None, max_pixels=256).grid

    def checked(session: FakeSession, frame) -> None:
        Chunker(2, grid_of).add(frame)
        push(session, frame)

    monkeypatch.setattr(FakeSession, "push", checked)
    good, long = "testsrc:seconds=1,size=64x48", "testsrc:seconds=1,size=2000x8"
    refused = f"{long}: at 0.000 s, a frame of 2000x8: one side is more than 200 times the other"
    code, _, err = ran(capsys, long)
    assert (code, err.count(long), err.count("\n")) == (2, 1, 1)
    assert err.startswith(f"vicort-run: {refused}")
    code, events, err = ran(capsys, good, long)
    assert (code, err.count(long), err.count("\n")) == (2, 1, 1)
    assert err.startswith(f"vicort-run: warning: {refused}")
    assert [each["source"] for each in events if each["event"] == "summary"] == [good]


@pytest.mark.usefixtures("fake")
def test_a_trace_tells_sources_apart(capsys, tmp_path):
    assert (
        ran(capsys, "testsrc:seconds=1", "testsrc:seconds=2", "--trace", str(tmp_path / "t.json"))[
            0
        ]
        == 0
    )
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tracks == {"testsrc:seconds=1: vision", "testsrc:seconds=2: vision"}
