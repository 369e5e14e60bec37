"""Nothing phones home: no request, no child, and no file but what was asked for, in every entry
point, whatever the environment says."""

import ast
import json
import sys
from pathlib import Path

import pytest
from support.c_programs import program
from support.network_watch import Watched, watched

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "fixtures" / "shapes.mp4"
BIN = Path(sys.executable).parent
BACKENDS = ("onnxruntime", "openvino")
# what libraries take for leave to send, in one process or another
CONSENT = {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0"}
SESSION = """
import sys
import numpy as np
from vicort.runtime import Frame, Session
with Session.open(sys.argv[1]) as session:
    for second in range(4):
        session.push(Frame.of(np.zeros((112, 112, 3), np.uint8), second))
    session.finish()
    print(session.ask("what is there now?").text)
"""
# modules that send something when they are imported, or hold one that does
SENDING = ("onnxruntime", "openvino", "openvino_genai", "openvino_tokenizers", "nncf")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a home whose user agreed to OpenVINO's telemetry."""
    consent = tmp_path / "home" / "intel" / "openvino_telemetry"
    consent.parent.mkdir(parents=True)
    consent.write_text("1")
    return tmp_path


def check(run: Watched, *expected: str) -> str:
    """What the program printed, if it was silent to the world."""
    assert run.done.returncode == 0, run.done.stderr
    assert run.requests == []
    assert run.left == sorted(expected)
    return run.done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_sends_nothing_and_leaves_nothing(backend, build_tiny, place):
    command = [BIN / "vicort-run", CLIP, "--ask", "what is there now?"]
    run = watched(place, *command, "--engine-dir", build_tiny(backend), **CONSENT)
    assert "nothing" in check(run)


def test_a_run_writes_what_it_was_asked_for_and_no_more(tiny_engines, place):
    command = [BIN / "vicort-run", CLIP, "--ask", "what is there now?", "--trace", "trace.json"]
    # a letter for which the fonts of the system are looked through
    video = ["--ask", "¿qué?", "--render", "a.mp4"]
    run = watched(place, *command, *video, "--engine-dir", tiny_engines)
    check(run, "here/a.mp4", "here/trace.json")
    assert json.loads((place / "here" / "trace.json").read_text())
    assert (place / "here" / "a.mp4").stat().st_size > 10_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_in_python_sends_nothing(backend, build_tiny, place):
    run = watched(place, sys.executable, "-c", SESSION, build_tiny(backend), **CONSENT)
    assert check(run) == "nothing\n"
    assert run.calls == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_c_program_gets_no_child_and_sends_nothing(backend, build_tiny, place):
    run = watched(place, program("quiet.c"), build_tiny(backend), **CONSENT)
    assert check(run) == "0 children\n"
    assert run.calls == []


@pytest.mark.parametrize(
    "command",
    [("vicort-info", "ENGINES"), ("vicort-engines", "list"), ("vicort-run", "--help")],
    ids=lambda command: command[0],
)
def test_tools_that_only_show_send_nothing(command, build_tiny, place):
    engines = build_tiny("openvino")
    name, *rest = [str(engines) if part == "ENGINES" else part for part in command]
    check(watched(place, BIN / name, *rest, **CONSENT))


@pytest.mark.slow
def test_a_build_sends_nothing_and_writes_only_the_set(place):
    """Without --backend it tries all of this machine's."""
    run = watched(place, BIN / "vicort-build", "tiny", "--out", "set", timeout=600, **CONSENT)
    written = {path for path in run.left if not path.startswith("here/set/")}
    assert run.done.returncode == 0, run.done.stderr
    assert (run.requests, written) == ([], {"here/set"})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_benchmark_sends_nothing_and_writes_only_its_results(place):
    """transformers with a local folder, and pictures."""
    command = [
        BIN / "vicort-bench",
        "--quick",
        "--only",
        "transformers-tiny",
        "--out",
        "bench.json",
    ]
    run = watched(place, *command, "--cache", "cache", timeout=800, **CONSENT)
    written = {path for path in run.left if not path.startswith(("here/bench.", "here/cache"))}
    assert run.done.returncode == 0, run.done.stderr
    assert (run.requests, written) == ([], set())


def imports_outside(tree: ast.AST, silenced: bool = False) -> list[str]:
    """Imports of SENDING that are not made within `without_telemetry()`."""
    found = []
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        found += [n for n in names if n.split(".")[0] in SENDING and not silenced]
        within = isinstance(node, ast.With) and any(
            ast.unparse(item.context_expr) == "without_telemetry()" for item in node.items
        )
        found += imports_outside(node, silenced or within)
    return found


@pytest.mark.parametrize("room", ["runtime", "export", "benchmarks", "capi"])
def test_what_sends_when_it_is_imported_is_imported_silenced(room):
    """In code that no test here runs, too."""
    found = {
        str(path.relative_to(ROOT)): imports_outside(ast.parse(path.read_text()))
        for path in (ROOT / room).rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {}
