"""The house itself: every package is in the wheel, and the walls between the rooms stand."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("benchmarks", "configs", "export", "runtime")


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


@pytest.mark.parametrize(
    "path", sorted((ROOT / "export").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_export_takes_only_the_nouns_from_the_runtime(path):
    allowed = {"core", "errors", "locations", "manifest"}
    if path.name == "tensorrt.py":  # the plugin is one class for building and running
        allowed |= {"engines", "kernels"}
    if path.parent.name == "kernels":  # what is compiled there is described to those who launch it
        allowed |= {"kernels"}
    if path.name != "verify.py":  # which runs the engines beside the model
        rooms = {name.split(".")[2] for name in imports(path) if name.startswith("vicort.runtime.")}
        assert rooms <= allowed


def test_tensorrt_is_called_in_two_files():
    callers = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if any(name.split(".")[0] in ("tensorrt", "tensorrt_rtx") for name in imports(path))
    }
    assert callers <= {"export/tensorrt.py", "runtime/engines/tensorrt.py"}


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
    assert wanted <= held


def test_every_sub_package_is_listed():
    """Folders of data too: else setuptools warns whoever installs that they would be left out."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(setup["packages"]) - set(setup["package-data"])
    assert set(setup["package-data"]) <= set(setup["packages"])
    there = {
        ".".join(("vicort", *path.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == there


def test_the_nouns_come_without_the_video_libraries():
    code = (
        "import sys, vicort.runtime.core; sys.exit(any(name in sys.modules for name in ('av', "
        "'nvidia.dali', 'openvino', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
