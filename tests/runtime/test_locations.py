"""Where engine sets lie, for users with and without a home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vicort.runtime import locations
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import FILE_NAME

CLIP = str(Path(__file__).parents[1] / "fixtures" / "shapes.mp4")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The folder of an installed wheel, and a user with a home folder."""
    monkeypatch.setattr(locations, "HERE", tmp_path / "site-packages" / "vicort")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "site-packages" / "vicort"


@pytest.fixture
def nobody(wheel, monkeypatch):
    """A user whom the system does not know, without HOME."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


def a_set(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text("{}")
    return folder


def test_the_cache_folder_is_that_of_the_xdg_specification(wheel, tmp_path, monkeypatch):
    assert locations.engines_root() == tmp_path / "home" / ".cache" / "vicort" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert locations.engines_root() == tmp_path / "xdg" / "vicort" / "engines"


@pytest.mark.parametrize("value", ["", "relative", "./cache", "~/cache"])
def test_a_relative_cache_folder_is_ignored(value, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert locations.engines_root() == tmp_path / "home" / ".cache" / "vicort" / "engines"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home_folder_is_told_what_to_set(home, nobody, tmp_path, monkeypatch):
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(ConfigError, match="set HOME or XDG_CACHE_HOME") as caught:
        locations.engines_root()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locations.engines_root() == tmp_path / "vicort" / "engines"


def test_the_set_that_a_wheel_brought_is_found_without_a_home_folder(wheel, nobody):
    with pytest.raises(ConfigError):
        locations.find_engine_dir("tiny")
    brought = a_set(wheel / "engines" / "tiny-fp32-openvino")
    assert locations.find_engine_dir("tiny") == brought
    assert locations.wheel_engines() == brought.parent


def test_a_set_that_the_user_built_goes_before_the_wheels(wheel, tmp_path):
    a_set(wheel / "engines" / "tiny-fp32-openvino")
    own = a_set(locations.default_engine_dir("tiny", locations.SetKind("fp32", "onnxruntime")))
    assert locations.find_engine_dir("tiny") == own


def test_a_checkout_has_no_wheels_set():
    assert locations.wheel_engines() is None


@pytest.mark.parametrize("place", ["LD_LIBRARY_PATH", "loader cache"])
def test_the_driver_is_found_without_loading_it(place, tmp_path, monkeypatch):
    library = tmp_path / "libcuda.so.1"
    monkeypatch.setattr(locations, "LIBRARY_FOLDERS", ())
    monkeypatch.setattr(locations, "LOADER_CACHE", tmp_path / "ld.so.cache")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert not locations.has_nvidia_driver()
    if place == "LD_LIBRARY_PATH":
        monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    else:
        text = b"header\0libcuda.so.1\0" + os.fsencode(library) + b"\0/usr/lib/libcudart.so.13\0"
        (tmp_path / "ld.so.cache").write_bytes(text)
    assert not locations.has_nvidia_driver(), "a name that is listed, of a file that is gone"
    library.write_bytes(b"no library")
    assert locations.has_nvidia_driver()


def test_a_run_starts_no_compiler_and_no_linker(tiny_engines, tmp_path):
    """Looking for CUDA's driver by ctypes would start gcc at every start."""
    log = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    for name in ("gcc", "cc", "clang", "c++", "g++", "ld", "ldconfig", "objdump", "nvcc", "ptxas"):
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\nexit 1\n')
        stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    run = "import sys; from vicort.runtime.cli.{0} import main; sys.exit(main(sys.argv[1:]))"
    for module, arguments in (
        ("run", [CLIP, "--engine-dir", str(tiny_engines), "--ask", "what is there now?"]),
        ("run", [CLIP, "--dry-run"]),
        ("info", [str(tiny_engines)]),
        ("engine_list", ["list", "--folder", str(tiny_engines.parent)]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", run.format(module), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
