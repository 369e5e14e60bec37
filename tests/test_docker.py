"""The container recipe: what it copies is there and makes a wheel, and what it installs exists."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "docker" / "Dockerfile.cuda").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied() -> list[tuple[list[str], str]]:
    """Of each COPY: what is copied, and where to."""
    lines = re.findall(r"^COPY (.*)$", RECIPE, re.MULTILINE)
    return [(words[:-1], words[-1]) for words in map(str.split, lines)]


def test_its_extras_exist_and_one_of_them_is_tensorrt():
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", RECIPE, re.MULTILINE)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert "tensorrt" in extras.split(",")


def test_its_commands_are_those_of_the_package():
    named = set(re.findall(r"\bvicort-[a-z]+", RECIPE))
    assert {"vicort-run", "vicort-build"} <= named <= PROJECT["scripts"].keys()


def test_its_ubuntu_has_a_python_that_vicort_takes():
    assert "ubuntu24.04" in RECIPE  # whose Python is 3.12
    assert "Programming Language :: Python :: 3.12" in PROJECT["classifiers"]


def test_it_does_not_run_as_root():
    assert re.findall(r"^USER (\d+)$", RECIPE, re.MULTILINE) == ["10001"]


@pytest.mark.slow
def test_what_it_copies_makes_the_same_wheel_as_the_whole_tree(tmp_path):
    def wheel(source: Path, out: Path) -> set[str]:
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
        (made,) = out.glob("*.whl")
        return set(zipfile.ZipFile(made).namelist())

    context, whole = tmp_path / "context", tmp_path / "whole"
    for names, target in copied():
        for name in names:
            place = context / target
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place)
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, files.stdout.split("\0")):
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, whole / name)
    assert wheel(context, tmp_path / "a") == wheel(whole, tmp_path / "b")
