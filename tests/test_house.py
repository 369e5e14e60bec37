"""The house itself: every package is in the wheel, and the walls between the rooms stand."""

import ast
import functools
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("benchmarks", "configs", "export", "runtime")


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    "path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_runtime_imports_neither_torch_nor_the_export_room(path):
    forbidden = ("torch", "transformers", "triton", "onnx.", "vicort.export", "vicort.benchmarks")
    assert not [name for name in imports(path) if name == "onnx" or name.startswith(forbidden)]


FLOORS = {
    # The contract: all that export/ may import.
    **dict.fromkeys(("core", "errors", "kernels", "locations", "manifest", "redact"), 0),
    "safe_text": 0,
    "argument_kinds": 0,
    "file_kinds": 0,
    "set_folders": 0,
    "entry_points": 0,
    "child_command": 0,
    "timely_end": 0,
    "packages": 0,
    "work_folders": 0,
    # how many visual tokens a frame becomes, and their order: of the builder and the runtime
    "frame_grid": 0,
    "vision_windows": 0,
    "command_line": 0,
    "log_options": 0,
    "shell_completion": 0,
    "standard_streams": 0,
    "telemetry": 0,
    "written_files": 0,
    "devices": 1,
    "policies": 1,
    "engines": 2,
    "sources": 2,
    "language": 3,
    "memory": 3,
    "rendering": 3,
    "stages": 4,
    # The heads of the two journeys, in the order in which they call each other.
    **dict.fromkeys(("answering", "answer_run", "assembly", "session", "stream_statistics"), 5),
    **dict.fromkeys(("asked_question", "question_queue", "conversations", "change_asker"), 5),
    "ask_gates": 5,
    **dict.fromkeys(("frame_intake", "question_launcher", "ordinary_snapshots"), 5),
    **dict.fromkeys(("answer_threads", "answer_pieces", "answer_report"), 5),
    **dict.fromkeys(("choice_run", "choice_answer"), 5),
    "known_failures": 5,
    "stream_health": 5,
    "owning_process": 5,
    "session_arguments": 5,
    **dict.fromkeys(("event_emitter", "callback_threads"), 5),  # what runs the caller's functions
    "shared_session": 6,
    "alerts": 6,
    "cli": 7,
}
CONTRACT = {name for name, floor in FLOORS.items() if floor == 0}
HEADS = {name for name, floor in FLOORS.items() if floor == 5}
# The plugin is one class for building and running; verify.py runs the engines beside the model;
# backend_choice.py measures how long engines take; build_space.py asks for the machine's memory and
# instructions; calibration_clip.py reads a clip as a stream is read; prompt_check.py makes the
# prompt that a session would make.
EXPORT_EXCEPTIONS = {
    "backend_choice.py": {"devices", "engines"},
    "build_space.py": {"devices", "engines"},
    "calibration_clip.py": {"devices", "language", "memory", "sources", "stages"},
    "prompt_check.py": {"language"},
    "tensorrt_plans.py": {"engines"},
    "verify.py": {"devices", "engines"},
}


def rooms(path: Path) -> set[str]:
    """The parts of `vicort.runtime` that a file imports."""
    return {name.split(".")[2] for name in imports(path) if name.startswith("vicort.runtime.")}


@functools.cache
def modules(folder: str) -> dict[str, Path]:
    """Every module under a folder by its full name; a package stands for its __init__.py."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(("vicort", *parts)).removesuffix(".__init__")] = path
    return found


def test_every_part_of_the_runtime_has_a_floor():
    parts = {name.split(".")[2] for name in modules("runtime") if name != "vicort.runtime"}
    assert parts == set(FLOORS)


@pytest.mark.parametrize("name", sorted(modules("runtime").keys() - {"vicort.runtime"}))
def test_a_room_imports_only_rooms_on_lower_floors(name):
    """Late imports and imports for types only count too. The public names in runtime/__init__.py
    are looked up when they are first used, so that file is left out."""
    own = name.split(".")[2]
    allowed = {own} | {room for room, floor in FLOORS.items() if floor < FLOORS[own]}
    if FLOORS[own] == 0:
        allowed |= CONTRACT
    if own in HEADS:
        allowed |= HEADS
    assert rooms(modules("runtime")[name]) <= allowed


@pytest.mark.parametrize(
    "path", sorted((ROOT / "export").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_export_imports_only_the_contract(path):
    assert rooms(path) <= CONTRACT | EXPORT_EXCEPTIONS.get(path.name, set())


BENCHMARK_FLOORS = {
    "common": 0,
    "evaluation": 1,
    "cpu": 1,
    "real_size": 1,
    "systems": 2,
    "gpu": 2,
    "studies": 3,
}
BENCHMARK_HEADS = {"bench", "demo", "redraw"}


def test_every_part_of_the_benchmarks_has_a_floor():
    parts = {name.split(".")[2] for name in modules("benchmarks") if name != "vicort.benchmarks"}
    assert parts == BENCHMARK_FLOORS.keys() | BENCHMARK_HEADS


@pytest.mark.parametrize("name", sorted(modules("benchmarks").keys() - {"vicort.benchmarks"}))
def test_a_room_of_the_benchmarks_imports_only_rooms_on_lower_floors(name):
    own = name.split(".")[2]
    if own in BENCHMARK_HEADS:
        allowed = BENCHMARK_FLOORS.keys()
    else:
        lower = {room for room, floor in BENCHMARK_FLOORS.items() if floor < BENCHMARK_FLOORS[own]}
        allowed = {own} | lower
    used = imports(modules("benchmarks")[name])
    assert {
        other.split(".")[2] for other in used if other.startswith("vicort.benchmarks.")
    } <= allowed


def test_no_two_modules_and_no_two_classes_have_the_same_name():
    """ "Go to file" and "go to class" lead to one place."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    files = Counter(path.name for path in paths if path.name != "__init__.py")
    classes = Counter(
        node.name
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in (files + classes).items() if count > 1] == []


@pytest.mark.parametrize("folder", ROOMS)
def test_no_imports_form_a_loop_between_rooms(folder):
    """Only modules of one room may import each other in a loop, and then only late or for types."""
    known = modules(folder)
    imported = {
        name: {other for other in imports(path) if other in known and other != name}
        for name, path in known.items()
        if name != "vicort.runtime"
    }

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(imported.get(start, ()))
        while ahead:
            name = ahead.pop()
            if name not in seen:
                seen.add(name)
                ahead.extend(imported.get(name, ()))
        return seen

    reach = {name: reachable(name) for name in imported}
    loops = {
        (one, other)
        for one, others in reach.items()
        for other in others
        if one < other and one in reach.get(other, ())
    }
    across = [pair for pair in loops if pair[0].rsplit(".", 1)[0] != pair[1].rsplit(".", 1)[0]]
    assert not across


def test_tensorrt_is_called_in_two_files():
    callers = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if any(name.split(".")[0] in ("tensorrt", "tensorrt_rtx") for name in imports(path))
    }
    assert callers <= {"export/tensorrt_plans.py", "runtime/engines/tensorrt.py"}


def test_the_wheel_holds_every_module_and_every_data_file(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("vicort-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"vicort/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }
    wanted |= {f"vicort/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    wanted |= {
        f"vicort/{path.relative_to(ROOT)}"
        for path in (ROOT / "export" / "tiny" / "checkpoint").iterdir()
    }
    wanted |= {
        f"vicort/{path.relative_to(ROOT)}"
        for path in (ROOT / "export" / "tiny" / "live" / "adapter").iterdir()
    }
    wanted |= {f"vicort/{room}/py.typed" for room in ROOMS}
    assert wanted <= held


def test_every_sub_package_is_listed():
    """Folders of data too: else setuptools warns whoever installs that they would be left out."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {name for name, files in setup["package-data"].items() if files != ["py.typed"]}
    listed = set(setup["packages"]) - data
    assert set(setup["package-data"]) <= set(setup["packages"])
    there = {
        ".".join(("vicort", *path.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == there


def test_the_command_that_runs_imports_what_every_run_needs():
    late = ("asyncio", "onnxruntime", "openvino", "nvidia.dali", "torch", "tqdm", "transformers")
    code = f"import sys, vicort.runtime.cli.run; print([n for n in {late} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_nouns_come_without_the_video_libraries():
    code = (
        "import sys, vicort.runtime.core; sys.exit(any(name in sys.modules for name in ('av', "
        "'nvidia.dali', 'openvino', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
