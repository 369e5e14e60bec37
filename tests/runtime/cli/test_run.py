"""vicort-run's own work: what goes to the session, what comes out where, and how it ends. The
session is a fake that counts."""

import importlib.metadata
import io
import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from support import videos
from support.fake_session import FakeEngines, FakeSession

from vicort.runtime.cli import run
from vicort.runtime.core import Frame, Sampling
from vicort.runtime.devices import machine_cores
from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import DEFAULT_SYSTEM, known_systems

CLIP_SECONDS = 4


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSession.opened.clear()
    FakeEngines.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path(f"engines/{model}"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "my clip.mp4"
    videos.write_video(
        path, CLIP_SECONDS * 25, options={"movflags": "+faststart"}, noise=True, encoder={"bf": "0"}
    )
    return path


WHICH_MODEL = "the embedded tiny model answers (engines/tiny)"  # said once, without --engine-dir


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code, out, err = ran_with_notice(capsys, *arguments)
    return code, out, "".join(line for line in err.splitlines(True) if WHICH_MODEL not in line)


def ran_with_notice(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def events(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def of_source(out: str, source: str) -> list[dict]:
    return [event for event in events(out) if event["source"] == source]


def session() -> FakeSession:
    (only,) = FakeSession.opened
    return only


# ---- what goes in ----


def test_defaults(capsys: pytest.CaptureFixture[str], clip: Path) -> None:
    code, out, err = ran(capsys, clip)
    assert (code, err) == (0, "")
    assert session().engine_dir == Path("engines/tiny")
    assert session().system == DEFAULT_SYSTEM == "distinct"
    options = dict(session().options)
    assert out.count("\n") == 1
    del options["on_event"]
    assert options == {
        "threads": usable_cores(),
        "fps": None,
        "overlap": True,
        "on_lag": "wait",
        "freshness": "complete",
        "sampling": Sampling(),
        "trace": None,
        "memory": MemoryRequest(),
        "system_prompt": None,
    }
    assert session().times == [
        0,
        Fraction(13, 25),
        1,
        Fraction(38, 25),
        2,
        Fraction(63, 25),
        3,
        Fraction(88, 25),
    ]
    assert session().calls == ["finish", "summary", "close"]
    assert out.startswith("distinct: 8 frames")


def test_options_reach_the_session(
    capsys: pytest.CaptureFixture[str], clip: Path, tmp_path: Path
) -> None:
    sampling = [
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "7",
        "--seed",
        "3",
        "--max-tokens",
        "9",
        "--repetition-penalty",
        "1.1",
        "--stop",
        "\n",
        "--stop",
        "END",
        "--system-prompt",
        "You watch a gate.",
    ]
    flags = [
        "--system",
        "full-history",
        "--engine-dir",
        tmp_path,
        "--fps",
        "30000/1001",
        "--sequential",
        "--live",
        "--ask",
        "why?",
    ]
    assert ran(capsys, clip, *flags, *sampling)[0] == 0
    assert (session().engine_dir, session().system) == (tmp_path, "full-history")
    options = session().options
    assert (options["fps"], options["overlap"], options["on_lag"]) == (
        Fraction(30_000, 1001),
        False,
        "drop-oldest",
    )
    assert options["sampling"] == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        repetition_penalty=1.1,
        seed=3,
        max_tokens=9,
        stop=("\n", "END"),
    )
    assert options["system_prompt"] == "You watch a gate."


def test_threads_are_those_that_were_asked_for(capsys, clip, monkeypatch):
    monkeypatch.setattr(machine_cores, "usable_cores", lambda: 5)
    assert ran(capsys, clip, "--threads", "3")[0] == 0
    assert session().options["threads"] == 3
    for wrong in ("0", "6"):
        code, out, err = ran(capsys, clip, "--threads", wrong)
        assert (code, out) == (2, "")
        assert err == (
            f"vicort-run: --threads: {wrong} threads: this process may use 5, give 1 to 5, or "
            "leave it out for all\n"
        )


@pytest.mark.parametrize(
    ("flags", "request_"),
    [
        ([], MemoryRequest()),
        (["--memory", "4GB"], MemoryRequest(device_mb=4000)),
        (["--memory", "1.5 gib"], MemoryRequest(device_mb=1610.612736)),
        (["--memory", "493MB", "--host-memory", "0MB"], MemoryRequest(493, 0)),
        (["--host-memory", "2TB"], MemoryRequest(host_mb=2_000_000)),
    ],
)
def test_budgets_reach_the_session(capsys, clip, flags, request_) -> None:
    assert ran(capsys, clip, *flags)[0] == 0
    assert session().options["memory"] == request_


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_bfloat16_on_a_cpu_that_has_none_is_warned_of(
    capsys, clip, tmp_path, monkeypatch, precision
) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"backend": "openvino", "precision": precision})
    )
    monkeypatch.setattr(run, "computes_in_float32", lambda backend, found: found == "bf16")
    code, _, err = ran(capsys, clip, "--engine-dir", tmp_path)
    assert (code, "this CPU has no bfloat16 instructions" in err) == (0, precision == "bf16")


def test_stats_tell_the_budget_and_the_options_that_ask_for_it(capsys, clip) -> None:
    code, out, _ = ran(capsys, clip, "--stats")
    assert code == 0
    assert out.startswith("memory: --memory 1MB --host-memory 0MB, room for 60 s if nothing is")
    assert "memory" not in ran(capsys, clip)[1]


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ([], "wait"),
        (["--live"], "drop-oldest"),
        (["--file"], "wait"),
        (["--live", "--on-lag", "wait"], "wait"),
        (["--file", "--on-lag", "drop-oldest"], "drop-oldest"),
    ],
)
def test_lag_policy_is_stated_never_guessed(
    capsys: pytest.CaptureFixture[str], clip: Path, flags: list[str], policy: str
) -> None:
    assert ran(capsys, clip, *flags)[0] == 0
    assert session().options["on_lag"] == policy


def test_every_frame(capsys: pytest.CaptureFixture[str], clip: Path) -> None:
    assert ran(capsys, clip, "--fps", "source")[0] == 0
    assert session().times == [Fraction(i, 25) for i in range(CLIP_SECONDS * 25)]


def test_every_image_of_a_folder_is_seen_at_any_rate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for i in range(7):
        videos.write_image(tmp_path / f"{i}.png", videos.image(i))
    for flags, fps in (([], 2), (["--fps", "7"], 7), (["--fps", "source"], 2)):
        FakeSession.opened.clear()
        assert ran(capsys, tmp_path, *flags)[0] == 0
        assert session().times == [Fraction(i, fps) for i in range(7)]


def test_sources_are_watched_together_on_one_engine_set(
    capsys: pytest.CaptureFixture[str], clip: Path
) -> None:
    pattern = "testsrc:seconds=1"
    code, out, _ = ran(capsys, clip, pattern, pattern, "--format", "jsonl", "--ask", "what?")
    assert code == 0
    assert sorted(len(session.times) for session in FakeSession.opened) == [2, 2, 8]
    assert FakeEngines.opened == [Path("engines/tiny")]
    by_source = {
        source: of_source(out, source) for source in (str(clip), f"{pattern}#1", f"{pattern}#2")
    }
    assert [[event["event"] for event in found] for found in by_source.values()] == [
        ["answer", "summary"]
    ] * 3
    assert [found[0]["text"] for found in by_source.values()] == [
        "8 frames",
        "2 frames",
        "2 frames",
    ]


def test_sources_run_at_the_same_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first frame of each is held until all have one."""
    push, all_have_one = FakeSession.push, threading.Barrier(3)

    def held(session: FakeSession, frame: Frame) -> None:
        if not session.times:
            all_have_one.wait(timeout=60)
        push(session, frame)

    monkeypatch.setattr(FakeSession, "push", held)
    sources = [f"testsrc:seconds=1,size=32x32,fps={fps}" for fps in (8, 9, 10)]
    assert ran(capsys, *sources, "--realtime", "--fps", "source")[0] == 0
    assert not all_have_one.broken


def test_text_says_whose_an_answer_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ran(capsys, "testsrc:seconds=1", "testsrc:seconds=2", "--ask", "what?")
    assert "[testsrc:seconds=1] what?\n  2 frames" in out
    assert "[testsrc:seconds=2] what?\n  4 frames" in out


# ---- what comes out ----


def test_questions_are_asked_at_their_times(
    capsys: pytest.CaptureFixture[str], clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"at": 2.0, "question": "from a file", "id": "f"}\n{"question": "in the end"}\n'
    )
    asked = [
        "--ask",
        "@1.6 early",
        "--ask",
        "@9999 far past the end",
        "--questions",
        tmp_path / "q.jsonl",
    ]
    code, out, err = ran(capsys, clip, *asked, "--format", "jsonl")
    assert (code, err) == (0, "")
    answers = [event for event in events(out) if event["event"] == "answer"]
    assert [(a["id"], a["at"], a["seen_until"], a["question"], a["text"]) for a in answers] == [
        ("q1", 1.6, 1.52, "early", "4 frames"),
        ("f", 2.0, 2.0, "from a file", "5 frames"),
        ("q2", 9999.0, 3.52, "far past the end", "8 frames"),
        ("q4", 3.52, 3.52, "in the end", "8 frames"),
    ]
    assert events(out)[-1]["event"] == "summary"
    assert events(out)[-1]["frames"] == 8


def test_chunks_come_with_stats_only(capsys: pytest.CaptureFixture[str], clip: Path) -> None:
    assert [event["event"] for event in events(ran(capsys, clip, "--format", "jsonl")[1])] == [
        "summary"
    ]
    assert [
        event["event"] for event in events(ran(capsys, clip, "--format", "jsonl", "--stats")[1])
    ] == ["memory"] + ["chunk"] * 8 + ["summary"]


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("srt", "1\n00:00:02,000 --> "),
        ("vtt", "WEBVTT\n\nq1\n00:00:02.000 --> "),
        ("text", "what?\n  5"),
    ],
)
def test_other_formats(
    capsys: pytest.CaptureFixture[str], clip: Path, form: str, start: str
) -> None:
    code, out, _ = ran(capsys, clip, "--ask", "@2 what?", "--format", form)
    assert code == 0
    assert out.startswith(start)


def test_trace(capsys: pytest.CaptureFixture[str], clip: Path, tmp_path: Path) -> None:
    assert ran(capsys, clip, "--trace", tmp_path / "trace.json")[0] == 0
    names = [
        event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ]
    assert names.count("chunk") == 8


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_progress_bar_and_answers_are_streamed(
    monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert run.main([str(clip), "--ask", "@1 what?"]) == 0
    assert "loading engines" in err.getvalue()
    assert "4/4" in err.getvalue()
    assert "my clip.mp4" in err.getvalue()
    assert "/100" in err.getvalue()
    assert out.getvalue().startswith("what?\n  3 frames   [asked at 1.000 s")


def test_realtime_plays_by_the_timestamps(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert (
        ran(capsys, "testsrc:seconds=1,size=32x32,fps=10", "--realtime", "--fps", "source")[0] == 0
    )
    assert time.monotonic() - began >= 0.9
    began = time.monotonic()
    assert ran(capsys, "testsrc:seconds=60,size=32x32,fps=4", "--fps", "source")[0] == 0
    assert time.monotonic() - began < 60


# ---- how it ends ----


def test_truncated_source_answers_warns_and_exits_3(
    capsys: pytest.CaptureFixture[str], clip: Path, tmp_path: Path
) -> None:
    half, whole = videos.cut(clip, tmp_path / "half.mp4", 0.6), "testsrc:seconds=1"
    code, out, err = ran(capsys, half, whole, "--ask", "what?", "--format", "jsonl")
    assert code == 3
    for source in (str(half), whole):  # the one beside it is watched all the same
        written = [event for event in of_source(out, source) if event["event"] != "warning"]
        assert [event["event"] for event in written] == ["answer", "summary"]
    warning, answer, summary = of_source(out, str(half))
    assert answer["text"] == f"{summary['frames']} frames"
    assert 3 <= summary["frames"] <= 6
    (line,) = err.splitlines()
    assert line.startswith(f"vicort-run: warning: {half} breaks off after")
    assert line == f"vicort-run: warning: {warning['message']}"


def test_repairs_are_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    videos.write_image(tmp_path / "1.png", videos.image(1))
    (tmp_path / "2.png").write_bytes(b"no image")
    code, _, err = ran(capsys, tmp_path)
    assert code == 0
    assert err.startswith(f"vicort-run: warning: {tmp_path / '2.png'} is left out")


BAD = {
    "no source": ([], "the following arguments are required: SOURCE: see `vicort-run --help`"),
    "unknown flag": (
        ["CLIP", "--colour"],
        "unrecognized arguments: --colour: see `vicort-run --help`",
    ),
    "abbreviated flag": (["CLIP", "--form", "srt"], "unrecognized arguments: --form srt"),
    "unknown format": (
        ["CLIP", "--format", "xml"],
        "invalid choice: 'xml' (choose from 'text', 'jsonl', 'srt', 'vtt')",
    ),
    "unknown system": (
        ["CLIP", "--system", "none"],
        f"unknown system 'none': choose one of {', '.join(known_systems())}",
    ),
    "memory without a unit": (
        ["CLIP", "--memory", "4"],
        "--memory 4 is not a size: give a number and one of MB, GB, TB, MiB, GiB, TiB, such as 4GB",
    ),
    "memory in words": (["CLIP", "--memory", "lots"], "--memory lots is not a size"),
    "no memory": (["CLIP", "--memory", "0MB"], "--memory 0MB: give 1MB to 16TB, such as 4GB"),
    "more than any machine has": (
        ["CLIP", "--host-memory", "999999TB"],
        "--host-memory 999999TB: give 0MB to 16TB",
    ),
    "fps of nothing": (["CLIP", "--fps", "0"], "--fps 0 is not a rate: give a number above 0"),
    "fps in words": (
        ["CLIP", "--fps", "fast"],
        "--fps fast is not a rate: give a number above 0, such as 2, 29.97 or 30000/1001",
    ),
    "fps over nothing": (["CLIP", "--fps", "1/0"], "--fps 1/0 is not a rate"),
    "live file": (["CLIP", "--live", "--file"], "--file: not allowed with argument --live"),
    "live and realtime": (["CLIP", "--live", "--realtime"], "--realtime is for files"),
    "stats without a place": (
        ["CLIP", "--stats", "--format", "srt"],
        "--format srt cannot show --stats: use text or jsonl",
    ),
    "trace in no folder": (
        ["CLIP", "--trace", "/no/such/folder/t.json"],
        "--trace /no/such/folder/t.json cannot be written",
    ),
    "huge stream": (["CLIP", "--stream", "9" * 400], "is not an index"),
    "huge reconnect": (["CLIP", "--reconnect", "9" * 400], "give 0 to 1000000000 attempts"),
    "huge number": (["CLIP", "--stream", "9" * 5000], "see `vicort-run --help`"),
    "negative stream": (["CLIP", "--stream", "-1"], "--stream -1 is not an index"),
    "stream that is none": (["CLIP", "--stream", "5"], "its video streams are 0 (160x120)"),
    "negative temperature": (["CLIP", "--temperature", "-1"], "temperature -1.0 is negative"),
    "max tokens in words": (
        ["CLIP", "--max-tokens", "many"],
        "argument --max-tokens: invalid int value: 'many'",
    ),
    "empty question": (["CLIP", "--ask", " "], "contains no question"),
    "negative time": (["CLIP", "--ask", "@-2 what?"], "-2 s is before the start of the stream"),
    "time in words": (["CLIP", "--ask", "@soon what?"], "'soon' is not a number of seconds"),
    "long question": (["CLIP", "--ask", "w" * 41], "ask a shorter one"),
    "no questions file": (
        ["CLIP", "--questions", "/none.jsonl"],
        "questions file /none.jsonl cannot be read",
    ),
    "missing file": (["/none.mp4"], "no such file /none.mp4"),
    "second file missing": (["CLIP", "/none.mp4", "--format", "text"], "no such file /none.mp4"),
    "subtitles of two": (
        ["CLIP", "CLIP", "--format", "srt"],
        "--format srt supports one source, and 2 are given: use text or jsonl",
    ),
    "every without a number": (
        ["CLIP", "--every", "often", "what?"],
        "--every often 'what?': give a number of seconds above 0",
    ),
    "every with no time": (
        ["CLIP", "--every", "0", "what?"],
        "--every 0 'what?': give a number of seconds above 0",
    ),
    "nothing to wait for": (["CLIP", "--until", " "], "--until ' ' contains no question"),
    "stdin twice": (
        ["-", "--questions", "-"],
        "stdin cannot bring both the video and the questions",
    ),
    "no time to open": (
        ["CLIP", "--open-timeout", "0"],
        "--open-timeout 0: give a number of seconds above 0",
    ),
    "timeout of nothing": (
        ["CLIP", "--read-timeout", "nan"],
        "--read-timeout nan: give a number of seconds above 0",
    ),
    "fewer than no attempts": (
        ["CLIP", "--reconnect", "-1"],
        "--reconnect -1: give 0 to 1000000000 attempts",
    ),
    "no pixels": (["CLIP", "--max-pixels", "0"], "--max-pixels 0: give a number from 1 to"),
    "too many pixels": (
        ["CLIP", "--max-pixels", "19199"],
        "has frames of 160x120, more than 19199 pixels: allow them with `--max-pixels`",
    ),
    "too many frames": (
        ["CLIP", "--max-fps", "24"],
        "declares 25 frames per second, more than 24: allow them with `--max-fps`",
    ),
    "password in a flag": (
        ["CLIP", "--fps", "rtsp://admin:geheim@host/"],
        "--fps rtsp://host/ is not a rate",
    ),
    "socket over a file": (
        ["CLIP", "--serve-socket", __file__],
        f"--serve-socket {__file__} is a file, not a socket",
    ),
    "socket in no folder": (
        ["CLIP", "--serve-socket", "/no/such/s"],
        "--serve-socket /no/such/s cannot be created",
    ),
    "socket with a long name": (
        ["CLIP", "--serve-socket", "/tmp/" + "s" * 120],
        "is longer than 107 bytes",
    ),
    "unknown scheme": (["gopher://x/y"], "unknown scheme gopher://"),
}


@pytest.mark.parametrize(("arguments", "complaint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], clip: Path, arguments: list[str], complaint: str
) -> None:
    code, out, err = ran(
        capsys,
        *[clip if item == "CLIP" else item for item in arguments],
        *(["--format", "vtt"] if "--format" not in arguments else []),
    )
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.startswith("vicort-run: ")
    assert err.count("\n") == 1
    # only a question's length needs an engine: everything else is found before one is loaded
    assert len(FakeSession.opened) == ("shorter" in complaint)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vicort {importlib.metadata.version('vicort')}\n"


def test_help_lists_the_whole_contract(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--help"])
    text = capsys.readouterr().out
    contract = (
        "--engine-dir --system --fps --ask --questions --format --realtime --live --file "
        "--on-lag --trace --stats"
    )
    assert all(flag in text for flag in contract.split())
    assert all(
        form in text
        for form in ("rtsp://", "http(s)://", "/dev/videoN", "glob of images", "stdin", "testsrc:")
    )


@pytest.mark.parametrize(
    ("backend", "asked", "decode"),
    [
        ("openvino", "auto", "cpu"),
        ("tensorrt", "auto", "auto"),
        ("tensorrt", "cpu", "cpu"),
        (None, "auto", "cpu"),
    ],
)
def test_frames_are_decoded_on_a_gpu_only_for_engines_there(
    backend, asked, decode, tmp_path, monkeypatch, capsys, clip
) -> None:
    if backend:
        (tmp_path / "manifest.json").write_text(json.dumps({"backend": backend}))
    given, open_source = [], run.open_source

    def opened(spec: str, *, decode: str, **options: object) -> object:
        given.append(decode)
        return open_source(spec, **options)

    monkeypatch.setattr(run, "open_source", opened)
    assert ran(capsys, clip, "--engine-dir", tmp_path, "--decode", asked)[0] == 0
    assert given == [decode]


def test_decoding_on_a_gpu_for_engines_on_the_cpu_is_refused(tmp_path, capsys, clip) -> None:
    (tmp_path / "manifest.json").write_text('{"backend": "openvino"}')
    code, _, err = ran(capsys, clip, "--engine-dir", tmp_path, "--decode", "gpu")
    assert code == 2
    assert "--decode gpu needs engines for an NVIDIA GPU" in err


# ---- engines that are not there ----


def test_missing_engines_are_built_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    commands: list[list[str]] = []

    def build(command: list[str], **options: object) -> subprocess.CompletedProcess:
        commands.append(command)
        monkeypatch.setattr(run, "find_engine_dir", lambda model: Path("built"))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run, "find_engine_dir", lambda model: None)
    monkeypatch.setattr(run, "run_child", build)
    code, out, err = ran(capsys, clip)
    assert (code, session().engine_dir) == (0, Path("built"))
    assert commands == [[sys.executable, "-m", "vicort.export.build", "tiny"]]
    assert "building the engines" in err
    assert "building" not in out


@pytest.mark.parametrize(("form", "told"), [("text", 1), ("srt", 1), ("jsonl", 0)])
def test_people_are_told_once_that_the_embedded_model_answers(
    capsys: pytest.CaptureFixture[str], clip: Path, form: str, told: int
) -> None:
    code, _, err = ran_with_notice(capsys, clip, "--format", form)
    assert (code, err.count(WHICH_MODEL)) == (0, told)
    assert "--engine-dir" in err or not told
    _, _, err = ran_with_notice(capsys, clip, "--format", form, "--engine-dir", "engines/tiny")
    assert "embedded" not in err


def test_a_socket_that_cannot_be_made_is_refused_before_engines_are_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    monkeypatch.setattr(run, "find_engine_dir", lambda model: None)
    monkeypatch.setattr(run, "run_child", lambda *_, **__: pytest.fail("engines are built"))
    code, _, err = ran(capsys, clip, "--serve-socket", "/no/such/s")
    assert (code, err.count("\n")) == (2, 1)
    assert "--serve-socket /no/such/s cannot be created" in err


def test_engines_that_cannot_be_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    monkeypatch.setattr(run, "find_engine_dir", lambda model: None)
    monkeypatch.setattr(
        run, "run_child", lambda command, **options: subprocess.CompletedProcess(command, 5)
    )
    code, _, err = ran(capsys, clip)
    assert code == 2
    assert "could not be built (exit code 5): try `vicort-build tiny`" in err


def test_without_the_export_tools_nothing_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    distribution = importlib.metadata.distribution

    def missing(name: str) -> importlib.metadata.Distribution:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(run, "find_engine_dir", lambda model: None)
    monkeypatch.setattr(run.metadata, "distribution", missing)
    code, _, err = ran(capsys, clip)
    assert code == 2
    assert err.startswith(
        "vicort-run: no engines of the tiny model are built, and building needs the export "
        "tools: `pip install"
    )


def test_a_manager_that_is_gone_is_warned_of_once(
    capsys: pytest.CaptureFixture[str], clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    code, _, err = ran(capsys, clip)
    assert (code, err.count("NOTIFY_SOCKET cannot be written (No such file")) == (0, 1)


def test_a_yes_and_a_stop_never_look_alike(capsys: pytest.CaptureFixture[str], clip: Path) -> None:
    code, _, err = ran(capsys, clip, "--until", "is it there?", "--success-on-sigterm")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave one of them out" in err


@pytest.mark.parametrize(
    ("typed", "near"), [("--aks", "--ask"), ("--sytem", "--system"), ("--every-s", "--every")]
)
def test_an_option_that_is_misspelled_names_the_near_one(
    capsys: pytest.CaptureFixture[str], typed: str, near: str
) -> None:
    code, out, err = ran(capsys, "clip.mp4", typed, "x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"did you mean {near}?" in err
    assert "did you mean" not in ran(capsys, "clip.mp4", "--quux", "x")[2]


def test_without_a_source_an_example_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "such as `vicort-run clip.mp4 --ask" in err
