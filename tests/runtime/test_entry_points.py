"""The first moments of every command: Ctrl-C, and packages that are not installed."""

import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.processes import python
from support.sizes import slow

from vicort.runtime.packages import install_command, missing_package

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = {
    "vicort-run": ["testsrc:", "--ask", "what is there now?"],
    "vicort-build": ["tiny"],
    "vicort-info": ["tiny"],
    "vicort-engines": ["list"],
    "vicort-bench": ["--quick"],
    "vicort-eval": ["shapestream"],
}
START = """
import sys
sys.argv[0] = {command!r}
import {module} as entry_points
from {module} import {name}
take = entry_points._take_interrupts
def take_and_tell(line):
    entry_points._take_interrupts, before = take, take(line)
    print("started", flush=True)
    return before
entry_points._take_interrupts = take_and_tell
if __name__ == "__main__":
    sys.exit({name}())
"""
# a command that does not end by itself, however fast the machine is
LASTING = """
import importlib, signal
class Lasting:
    def __init__(self, name):
        importlib.import_module = found
        self._module = found(name)
    def main(self, arguments):
        self._module.main(arguments)
        print("done", flush=True)
        signal.pause()
found, importlib.import_module = importlib.import_module, Lasting
"""
# a package that is not there, wherever it is looked for
WITHOUT = """
import importlib.abc, sys
from importlib import metadata
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
found = metadata.distribution
def distribution(name):
    if name.replace("-", "_") in {absent!r}:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
"""


def started(command: str, before: str = "", arguments: list[str] | None = None):
    module, name = SCRIPTS[command].split(":")
    code = before + START.format(command=command, module=module, name=name)
    return subprocess.Popen(
        [sys.executable, "-c", code, *(COMMANDS[command] if arguments is None else arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seconds", [0.02, 0.2, *slow(0.1)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_moments_is_silent_or_one_line(command, seconds, number, tmp_path):
    child = started(command, LASTING)
    child.stdout.readline()
    time.sleep(seconds)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 128 + number
    assert "Traceback" not in err
    assert err.count("\n") <= 1 + err.count("building the engines")
    assert out == "" or out.endswith("done\n")


BEGIN = """
import importlib, os, signal, sys
import vicort.runtime.entry_points as entry_points
def wait(arguments):
    print("working", flush=True)
    {wait}
class Module:
    main = staticmethod(wait)
importlib.import_module = lambda name: Module
sys.exit(entry_points.{name}())
"""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_every_command_ends_by_a_signal_with_its_code_and_without_a_word(command, number, code):
    begin = BEGIN.format(name=SCRIPTS[command].split(":")[1], wait="signal.pause()")
    child = python("-c", begin, text=True)
    assert child.stdout.readline() == "working\n"
    child.send_signal(number)
    assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == code


def test_a_second_signal_is_silent_too():
    twice = """
    try:
        print("ready", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        import time
        time.sleep(0.2)  # the first signal was read by the thread that watches
        print("first", flush=True)
        signal.pause()
"""
    child = python("-c", BEGIN.format(name="run", wait=twice), text=True)
    assert [child.stdout.readline() for _ in range(2)] == ["working\n", "ready\n"]
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "first\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 130


def test_a_signal_does_not_wait_for_the_ends_of_libraries():
    slow = "import atexit, time; atexit.register(time.sleep, 60); signal.pause()"
    child = python("-c", BEGIN.format(name="run", wait=slow), text=True)
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 143


# a call that does not return, as of a library that reads from a silent address: a lock, twice
CALL = """
    import ctypes, os
    entry_points.BEFORE_LEAVING.append(lambda: os.mkdir({made!r}))
    lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_does_not_wait_for_a_call_that_does_not_return(number, code, tmp_path):
    call = CALL.format(made=str(tmp_path / "m"))
    child = python("-c", BEGIN.format(name="run", wait=call), text=True)
    child.stdout.readline()
    time.sleep(0.3)
    began = time.monotonic()
    child.send_signal(number)
    assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == code
    assert (tmp_path / "m").is_dir()
    assert time.monotonic() - began < 10  # 1.5 s where nothing else runs


# an interruption in a finalizer, where Python prints an exception and drops it
DROPPED = """
    class Finalized:
        def __del__(self):
            print("ready", flush=True)
            signal.pause()
    try:
        Finalized()
        signal.pause()
    except KeyboardInterrupt as interruption:
        print(type(interruption).__name__, flush=True)
        raise
"""


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "KeyboardInterrupt"), (signal.SIGTERM, 143, "Terminated")],
)
def test_a_signal_that_comes_during_a_finalizer_is_not_dropped(number, code, name):
    child = python("-c", BEGIN.format(name="run", wait=DROPPED), text=True)
    assert [child.stdout.readline() for _ in range(2)] == ["working\n", "ready\n"]
    child.send_signal(number)
    assert child.communicate(timeout=30) == (f"{name}\n", "")
    assert child.returncode == code


def test_a_build_that_a_signal_ends_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    child = started("vicort-build", arguments=["tiny", "--out", str(tmp_path / "sets" / "set")])
    while child.poll() is None and not list(tmp_path.glob("sets/.building-*/set/*")):
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.splitlines()[-1]) == (
        143,
        "vicort-build: interrupted, nothing was written",
    )
    assert "Traceback" not in err
    assert not (tmp_path / "sets").exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_every_command_begins_there():
    assert SCRIPTS.keys() == COMMANDS.keys()
    assert {target.partition(":")[0] for target in SCRIPTS.values()} == {
        "vicort.runtime.entry_points"
    }


def test_the_first_code_imports_nothing_that_takes_long():
    code = (
        "import sys; before = set(sys.modules); import vicort.runtime.entry_points; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    ours = {"vicort.runtime", "vicort.runtime.entry_points", "vicort"}
    assert set(done.stdout.split()) - ours <= {"signal", "__future__", "enum", "types", "operator"}


def test_a_run_imports_what_takes_long_only_where_it_is_needed(tiny_engines):
    slow_modules = {"PIL", "ml_dtypes", "onnx", "torch", "transformers"}
    code = (
        "import sys; from vicort.runtime.cli.run import main; code = main(sys.argv[1:]); "
        f"print('ended with', code, {slow_modules} & set(sys.modules))"
    )
    arguments = ["testsrc:seconds=1", "--ask", "what is there?", "--engine-dir", str(tiny_engines)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "ended with 0 set()"


@pytest.mark.parametrize(
    ("command", "absent", "arguments"),
    [
        ("vicort-build", ["torch"], ["tiny"]),
        ("vicort-build", ["onnx"], ["tiny"]),
        ("vicort-build", ["onnx_ir", "onnxscript"], ["tiny"]),
        ("vicort-build", ["safetensors"], ["tiny"]),
        ("vicort-build", ["transformers", "huggingface_hub"], ["someone/some-model"]),
        ("vicort-bench", ["matplotlib"], ["--quick"]),
        ("vicort-bench", ["torch"], ["--quick"]),
        ("vicort-bench", ["matplotlib", "PIL"], ["--only", "real-size"]),
        ("vicort-eval", ["torch"], ["shapestream"]),
        ("vicort-run", ["yaml"], ["testsrc:"]),
        ("vicort-info", ["pydantic"], ["tiny"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_package_that_is_not_installed_is_one_line_at_once(
    command, absent, arguments, tmp_path, request
):
    where = {"vicort-build": "--out", "vicort-bench": "--cache", "vicort-eval": "--out"}
    if command in where:
        arguments = [*arguments, where[command], str(tmp_path / "place")]
    if command == "vicort-eval":
        engines = request.getfixturevalue("tiny_engines")
        arguments = [*arguments, "--engine-dir", str(engines)]
    if command == "vicort-bench" and 'extra == "bench"' not in str(metadata.requires("vicort")):
        pytest.skip("vicort was installed before it had this extra: run `make install`")
    child = started(command, WITHOUT.format(absent=absent), arguments)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith(f"{command}: ")
    (command_line,) = re.findall(r"`(pip install .*)`", err)
    assert "vicort[" not in command_line
    assert out == "started\n"


def test_a_model_that_is_none_is_refused_before_pytorch_is_loaded():
    code = (
        "import sys; from vicort.runtime.entry_points import build; "
        "code = build(['/no/such/model']); print(code != 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    assert "no model folder '/no/such/model'" in done.stderr


@pytest.mark.parametrize("extra", ["export", "bench", "capi"])
def test_the_command_installs_what_the_extra_has(extra):
    """By the packages' names: vicort itself may lie on no index."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", each)[0] for each in wanted["optional-dependencies"][extra]}
    if f"extra == '{extra}'" not in str(metadata.requires("vicort")).replace('"', "'"):
        pytest.skip("vicort was installed before it had this extra: run `make install`")
    command = install_command(extra)
    assert {re.split(r"[<>=]", word.strip("'"))[0] for word in command.split()[2:]} == names


def test_a_module_of_vicort_itself_or_of_nobody_is_no_missing_package():
    for name in ("vicort.runtime.nothing", "no_such_module_at_all"):
        assert missing_package(ModuleNotFoundError("", name=name)) is None
    assert missing_package(ModuleNotFoundError("")) is None
