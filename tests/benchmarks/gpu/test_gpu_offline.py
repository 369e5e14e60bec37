"""pack.sh and offline.sh: what is packed is unpacked, and a report is left, whatever dies. Slow:
the whole of it, on a copy of the image's packages."""

import ast
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.stand_in_driver.library import driver_folder

from vicort.benchmarks.gpu.check import STEPS

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "benchmarks" / "gpu"
PACKAGES = SCRIPTS / "offline-packages.txt"
ROOMS = ("runtime", "export", "configs", "benchmarks", "engines")


def listed() -> list[tuple[str, Requirement]]:
    lines = [line.split() for line in PACKAGES.read_text().splitlines()]
    return [(line[0], Requirement(line[1])) for line in lines if line and line[0] != "#"]


# ---- the list


def test_what_is_packed_is_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    allowed = {each.name: each.specifier for each in map(Requirement, wanted)}
    for bundle, packed in listed():
        if bundle != "image":
            (version,) = packed.specifier
            assert version.operator == "=="
            assert allowed.get(packed.name, packed.specifier).contains(version.version), packed
    releases = {packed.specifier for bundle, packed in listed() if bundle == "rtx"}
    assert releases == {allowed["tensorrt-rtx"]}


MODULES = {  # by the name of their package, where it is another
    "cuda": "cuda-core",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
# Imported where it is used alone, and the check does without.
OPTIONAL = {"matplotlib", "nncf", "nvidia", "openvino", "openvino_genai", "shtab", "torch_tensorrt"}
OPTIONAL |= {"certifi", "httpx", "paho"}  # of the delivery of alerts
# A backend of its own, or a benchmark of another machine.
OTHER = {"engines/openvino.py"}


def test_every_module_that_is_imported_is_in_the_image_or_in_the_base_bundle() -> None:
    there = {packed.name for bundle, packed in listed() if bundle in ("image", "base")}
    missing = {}
    for room in ROOMS[:-1]:
        for path in (ROOT / room).rglob("*.py"):
            for module in imported(path) - sys.stdlib_module_names - {"vicort"} - OPTIONAL:
                name = MODULES.get(module, module.replace("_", "-"))
                if name not in there and not str(path).endswith(tuple(OTHER)):
                    missing[module] = path
    assert missing == {}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


# ---- the scripts


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What offline.sh needs of a clone, as links; a folder of its own."""
    return cloned(tmp_path / "clone")


def cloned(folder: Path) -> Path:
    folder.mkdir()
    for name in (*ROOMS, "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def python_without_a_check(folder: Path) -> Path:
    """Of which every step passes at once."""
    return program(
        folder / "python3",
        f'case "$2" in vicort.*) exit 0;; esac\nexec "{sys.executable}" "$@"',
    )


def python_with_steps_of_a_test(folder: Path, way: str) -> Path:
    tests = ROOT / "tests"
    return program(
        folder / "python3",
        f'export PYTHONPATH="$PYTHONPATH:{tests}"\n'
        'if [ "$1 $2" = "-m vicort.benchmarks.gpu.check" ]; then shift 2; '
        f'exec "{sys.executable}" {tests}/support/offline_check.py {way} "$@"; fi\n'
        f'exec "{sys.executable}" "$@"',
    )


class Offline:
    """A run of offline.sh, and what it left."""

    def __init__(self, clone: Path, seconds: int, *steps: str, **variables: str) -> None:
        self.clone, self.out = clone, clone / "out"
        self._child = subprocess.Popen(
            ["bash", clone / "benchmarks" / "gpu" / "offline.sh", str(seconds), *steps],
            env=os.environ | {"OUT": str(self.out), **variables},
            stdout=subprocess.DEVNULL,
            cwd=clone.parent,
        )

    def await_step(self, name: str) -> None:
        """Until it is under way."""
        for _ in range(1200):
            report = self.out / "report.json"
            begun = json.loads(report.read_text()).get("under_way") if report.is_file() else None
            if begun and begun["step"] == name:
                return
            time.sleep(0.05)
        raise TimeoutError(name)

    def send(self, number: int) -> None:
        self._child.send_signal(number)

    def code(self) -> int:
        return self._child.wait(timeout=500)

    @property
    def steps(self) -> dict:
        return json.loads((self.out / "report.json").read_text())["steps"]

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: step["outcome"] for name, step in self.steps.items()}

    def text(self, name: str = "report.txt") -> str:
        return (self.out / name).read_text()


def started(clone: Path, way: str, seconds: int, *steps: str) -> Offline:
    clone = cloned(clone)
    return Offline(clone, seconds, *steps, PYTHON=str(python_with_steps_of_a_test(clone, way)))


@pytest.mark.slow
def test_a_report_is_left_whatever_dies_and_a_later_call_adds_to_it(tmp_path: Path) -> None:
    """All at once, since most of each is waiting."""
    well = started(tmp_path / "well", "well", 60, "fine", "skips", "dies")
    ended = started(tmp_path / "ended", "well", 60, "fine", "hangs")
    dead = started(tmp_path / "dead", "dead", 60, "fine")
    wrong = started(tmp_path / "wrong", "well", 60, "no-such-step")
    ended.await_step("hangs")
    ended.send(signal.SIGTERM)
    assert well.code() == 1
    assert well.outcomes == {"fine": "passed", "skips": "skipped", "dies": "failed"}
    assert "exit code -11" in well.text()
    assert ended.code() == 143
    assert ended.outcomes == {"fine": "passed", "hangs": "failed"}
    assert "it was interrupted after" in ended.text()
    assert dead.code() == 139
    assert wrong.code() == 2
    assert "no-such-step: unknown step" in wrong.text("log.txt")
    for each in (dead, wrong):
        assert each.steps == {}
        assert f"exit code {each.code()}: see log.txt" in each.text()
    for each in (well, ended, dead, wrong):
        check_what_is_left(each)

    shutil.rmtree(ended.out)  # as where it is moved away
    later = Offline(ended.clone, 60, "skips", PYTHON=str(ended.clone / "python3"))
    assert later.code() == 4
    assert later.outcomes == {"fine": "passed", "skips": "skipped", "hangs": "failed"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert later.steps["fine"]["measured"]["versions"]["vicort"] == project["version"]


def check_what_is_left(run: Offline) -> None:
    assert f"exit {run.code()} after" in run.text("log.txt")
    assert "CUDA toolkit: " in run.text("probe.txt")
    assert not processes_in(run.clone)


@pytest.mark.slow
def test_a_report_is_left_where_the_time_is_over_or_nothing_is_heard(tmp_path: Path) -> None:
    slow = started(tmp_path / "slow", "well", 40, "fine", "hangs")
    stuck = started(tmp_path / "stuck", "stuck", 30, "fine")
    short = started(tmp_path / "short", "well", 10, "fine")
    deaf = started(tmp_path / "deaf", "stuck", 60, "fine")
    time.sleep(8)
    deaf.send(signal.SIGINT)
    # a step that hangs is ended while there is time to say so
    assert slow.code() == 1
    assert slow.outcomes == {"fine": "passed", "hangs": "failed"}
    assert re.search(r"it took longer than \d+(\.\d+)? s and was ended", slow.text())
    # a check that does not even hear an interruption is killed
    assert stuck.code() == 137
    assert deaf.code() == 130
    assert short.code() == 124
    assert "10 s are too few" in short.text("log.txt")
    for each in (slow, stuck, short, deaf):
        check_what_is_left(each)


def processes_in(folder: Path) -> list[str]:
    """Command lines that name a folder: what a run left behind."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):  # it has ended
            continue
        if str(folder) in line and int(process.name) != os.getpid():
            found.append(line)
    return found


@pytest.mark.parametrize("arguments", [[], ["60"], ["soon", "plan"], ["-5", "plan"]])
def test_a_wrong_call_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        ["bash", SCRIPTS / "offline.sh", *arguments], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "usage: offline.sh SECONDS STEP..." in done.stderr


def test_where_no_report_can_be_written_that_is_said_in_one_line(clone: Path) -> None:
    (clone / "taken").touch()
    out = clone / "taken" / "out"
    done = subprocess.run(
        ["bash", clone / "benchmarks" / "gpu" / "offline.sh", "60", "fine"],
        env=os.environ | {"OUT": str(out), "PYTHON": "no-such-python"},
        check=False,
        capture_output=True,
        text=True,
    )
    line = f"offline.sh: {out}: no report can be written there: name another folder in OUT\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


# ---- packing


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone with pack.sh, and a pip that makes up packages instead of downloading them."""
    folder = tmp_path / "repository"
    (folder / "benchmarks" / "gpu").mkdir(parents=True)
    for name in ("pack.sh", PACKAGES.name):
        shutil.copyfile(SCRIPTS / name, folder / "benchmarks" / "gpu" / name)
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(["git", "-C", folder, "add", "."], check=True)
    program(
        tmp_path / "python3",
        'while [ "$1" != --target ]; do shift; done; site=$2; shift 2\n'
        'mkdir -p "$site/nvidia/dali/include"; printf "%s\\n" "$@" > "$site/asked"\n'
        'for version in 311 312 313; do touch "$site/nvidia/dali/backend_impl.$version-x.so"\n'
        'touch "$site/nvidia/dali/backend_impl.cpython-$version-x.so"; done\n'
        'head -c 2200000 /dev/urandom > "$site/library.so"',
    )
    return folder


def pack(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", repository / "benchmarks" / "gpu" / "pack.sh", *arguments],
        env=os.environ | {"PYTHON": str(repository.parent / "python3")},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_what_is_packed_is_unpacked_once_all_parts_are_there(repository: Path, clone: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = pack(repository, "--python", version, "--part", "1", "base", "rtx")
    assert done.returncode == 0, done.stderr
    parts = repository / "build" / "offline" / "parts"
    names = [f"base.{part:02}" for part in range(3)] + ["base.sha256"]
    assert sorted(path.name for path in parts.glob("base.*")) == names
    assert max(path.stat().st_size for path in parts.iterdir()) <= 1 << 20
    target, python = clone / "build" / "offline", str(python_without_a_check(clone))
    (target / "parts").mkdir(parents=True)
    for name in ("base.00", "base.02", "base.sha256"):
        shutil.copyfile(parts / name, target / "parts" / name)
    first = Offline(clone, 60, "fine", PYTHON=python)
    assert first.code() == 0
    assert "not unpacked: base: not all of its parts are there" in first.text("log.txt")
    assert not (target / "site" / "asked").exists()
    shutil.copyfile(parts / "base.01", target / "parts" / "base.01")
    for path in parts.glob("rtx.*"):
        shutil.copyfile(path, target / "parts" / path.name)
    second = Offline(clone, 60, "fine", PYTHON=python)
    assert second.code() == 0
    assert "unpacked: base\nunpacked: rtx" in second.text("log.txt")
    site = target / "site"
    asked = {str(packed) for bundle, packed in listed() if bundle == "rtx"}
    assert set((site / "asked").read_text().split()) == asked
    metadata = (site / "tensorrt_rtx-1.7.1.116.dist-info" / "METADATA").read_text()
    assert metadata == "Metadata-Version: 2.1\nName: tensorrt-rtx\nVersion: 1.7.1.116\n"
    assert "import" in (site / "tensorrt_rtx" / "__init__.py").read_text()
    (ours,) = distributions(name="vicort", path=[str(site)])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ours.version == project["version"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    asked_for = {Requirement(each.partition(";")[0]) for each in ours.requires or ()}
    assert asked_for == {Requirement(each.partition(";")[0]) for each in wanted}


def test_an_interpreter_for_which_nothing_was_packed_is_named(
    repository: Path, clone: Path
) -> None:
    assert pack(repository, "--python", "3.99", "base").returncode == 0
    parts = repository / "build" / "offline" / "parts"
    shutil.copytree(parts, clone / "build" / "offline" / "parts")
    python = str(python_without_a_check(clone))
    refused = Offline(clone, 60, "fine", PYTHON=python)
    assert refused.code() == 2
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = f"packed for Python 3.99, and {python} is {here}: name another one in PYTHON, or pack"
    assert said in refused.text("log.txt")
    assert "exit code 2: see log.txt" in refused.text()


def test_of_dali_only_what_the_interpreter_there_loads_is_packed(repository: Path) -> None:
    assert pack(repository, "--python", "3.13", "dali").returncode == 0
    parts = repository / "build" / "offline" / "parts"
    listing = subprocess.run(
        ["tar", "-tJf", parts / "dali.00"], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"backend_impl\S*", listing) == ["backend_impl.cpython-313-x.so"]
    assert "include" not in listing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bas"], "bas: no such bundle: choose from base dali nvdec rtx"),
        (["--python", "three"], "--python three: give --python a version, as 3.12"),
        (["--part", "0"], "--part 0: give"),
        (["--parts", "9"], "--parts 9: give"),
    ],
)
def test_wrong_words_to_pack_are_one_line(repository: Path, arguments, said: str) -> None:
    done = pack(repository, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


# ---- the rehearsal

SHARED_FOLDERS = ("cuda", "nvidia")  # of several distributions


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An interpreter that has what the image has, in the versions of this environment."""
    folder = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    packed = {packed.name for bundle, packed in listed() if bundle != "image"}
    for each in closure({each.name for bundle, each in listed() if bundle == "image"}):
        for entry in entries(each) if normalized(each.name) not in packed else ():
            (site / entry).parent.mkdir(exist_ok=True)
            if not (site / entry).exists():
                (site / entry).symlink_to(Path(each.locate_file(entry)))
    return folder / "bin" / "python"


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: set[str]) -> list[Distribution]:
    """Distributions of these names, and all that they require, as far as they are installed."""
    found, wanted = {}, [normalized(name) for name in names]
    while wanted:
        name = wanted.pop()
        try:
            found[name] = found.get(name) or distribution(name)
        except PackageNotFoundError:
            continue
        for each in map(Requirement, found[name].requires or ()):
            needed = each.marker is None or each.marker.evaluate({"extra": ""})
            if needed and normalized(each.name) not in found:
                wanted.append(normalized(each.name))
    return list(found.values())


def entries(distribution: Distribution) -> set[Path]:
    """What it has in the folder of packages; of a folder that it shares, its own part."""
    files = [path for path in distribution.files or () if path.parts[0] != ".."]
    return {
        Path(*path.parts[: 2 if path.parts[0] in SHARED_FOLDERS else 1])
        for path in files
        if path.parts[0] != "__pycache__"
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rehearsal_from_a_fresh_clone_to_the_report(tmp_path: Path, image: Path) -> None:
    """The first part takes a registry. Versions are those of this environment, PyTorch's build is
    the CPU's where that is installed, and the driver is the stand-in, which runs no kernels."""
    clone, machine = tmp_path / "clone", tmp_path / "machine"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run(
        ["bash", clone / "benchmarks" / "gpu" / "pack.sh", "--python", python, "base"],
        env=os.environ | {"PYTHON": sys.executable},
        check=True,
    )
    parts = list((clone / "build" / "offline" / "parts").glob("base.[0-9]*"))
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=clone, check=True, capture_output=True, text=True
    ).stdout
    size = sum((clone / name).lstat().st_size for name in tracked.split("\0") if name)
    assert size + max(part.stat().st_size for part in parts) <= 60 << 20
    shutil.copytree(clone, machine, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    bare = subprocess.run([image, "-c", "import pydantic"], check=False, capture_output=True)
    assert b"No module named 'pydantic'" in bare.stderr

    steps = ("environment", "ceilings", "kernels", "graphs", "nvdec")
    run = Offline(
        machine,
        400,
        *steps,
        PYTHON=str(image),
        PIP_NO_INDEX="1",
        LD_LIBRARY_PATH=str(driver_folder()),
    )
    run.code()
    assert list(run.steps) == [name for name in STEPS if name in steps], run.text("log.txt")
    assert run.outcomes["environment"] == run.outcomes["ceilings"] == "passed"
    assert run.steps["environment"]["gpu"] == "stand-in GPU"
    versions = run.steps["environment"]["measured"]["versions"]
    packed = {
        each.name: next(iter(each.specifier)).version for _, each in listed() if each.specifier
    }
    for name in ("av", "cuda-core"):
        assert versions[name] == packed[name]
    assert "nvidia-dali-cuda130" not in versions
    # its launches are accepted; what they write is nothing
    assert run.steps["kernels"]["reason"].startswith("bounded_attention for ")
    assert "PyNvVideoCodec" in run.steps["nvdec"]["reason"]
    assert "AOTInductor" in run.steps["graphs"]["reason"]
    assert f"av {packed['av']}" in run.text("probe.txt")
