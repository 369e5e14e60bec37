"""Where CUDA's headers and driver are found, and that a linker takes what is found."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.utils.cpp_extension

from vicort.benchmarks.gpu import cuda_toolkit
from vicort.benchmarks.gpu.inductor import inductor_sets
from vicort.benchmarks.gpu.lab import Skip


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No toolkit and no driver anywhere; the folder of a test."""
    for name in ("CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(cuda_toolkit, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(cuda_toolkit, "_drivers", lambda real=cuda_toolkit._drivers: own(real))

    def own(real):
        return (path for path in real() if path.is_relative_to(tmp_path))

    return tmp_path


def headers_in(root: Path) -> Path:
    (root / "include").mkdir(parents=True)
    (root / "include" / "cuda.h").write_text("#define CUDA_VERSION 13000\n")
    return root


def program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_a_toolkit_is_found_by_its_header_and_not_by_its_compiler_alone(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda_toolkit.home() is None
    # a compiler alone, in a folder whose parent is no toolkit
    program(bare / "real" / "bin" / "nvcc")
    (bare / "bin").mkdir()
    (bare / "bin" / "nvcc").symlink_to(bare / "real" / "bin" / "nvcc")
    assert bare / "real" in cuda_toolkit.roots()
    assert bare not in cuda_toolkit.roots()
    headers_in(bare / "real")
    assert cuda_toolkit.home() == bare / "real"


def test_the_environment_comes_first_and_packages_last(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = headers_in(bare / "site" / "nvidia" / "cu13")
    monkeypatch.setattr(sys, "path", [str(bare / "site")])
    assert cuda_toolkit.home() == packages
    monkeypatch.setenv("CUDA_HOME", str(bare / "empty"))  # where no header is
    assert cuda_toolkit.home() == packages
    monkeypatch.setenv("CUDA_PATH", str(headers_in(bare / "named")))
    assert cuda_toolkit.home() == bare / "named"


def test_a_step_that_compiles_is_skipped_with_the_places_that_were_looked_at(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_HOME", str(bare / "empty"))
    for home in (None, str(bare / "empty")):
        monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", home)
        with pytest.raises(Skip, match=r"include/cuda\.h, which is in none of .*/empty, .*/usual"):
            inductor_sets.need_cuda()
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", str(headers_in(bare / "named")))
    inductor_sets.need_cuda()


def test_the_linker_finds_the_driver_from_any_folder(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver is a mount with libcuda.so.1 alone; -lcuda wants libcuda.so."""
    mount, elsewhere = bare / "mount", bare / "elsewhere"
    for folder in (mount, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("PATH", os.defpath)
    (bare / "driver.c").write_text("int cuInit(unsigned flags) { return 100 + flags; }\n")
    library = mount / "libcuda.so.1"
    compiled(["-shared", "-fPIC", "-o", library, bare / "driver.c"])
    (bare / "asks.c").write_text("int cuInit(unsigned); int main(void) { return cuInit(1); }\n")
    command = ["-o", elsewhere / "asks", bare / "asks.c", "-lcuda", f"-Wl,-rpath,{mount}"]
    assert compiled(command, check=False).returncode != 0
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{mount}")
    monkeypatch.chdir(bare)
    cuda_toolkit.prepare(Path("cache"))  # a relative path
    monkeypatch.delenv("LD_LIBRARY_PATH")
    compiled(command, cwd=elsewhere)
    ran = subprocess.run(
        [elsewhere / "asks"], env={"LD_LIBRARY_PATH": os.environ["LIBRARY_PATH"]}, check=False
    )
    assert ran.returncode == 101
    before = os.environ["LIBRARY_PATH"]
    monkeypatch.setenv("LD_LIBRARY_PATH", str(mount))
    cuda_toolkit.prepare(Path("cache"))
    assert os.environ["LIBRARY_PATH"] == before  # and no second entry


def compiled(arguments, check=True, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(["gcc", *map(str, arguments)], check=check, cwd=cwd, capture_output=True)


def test_a_mounted_driver_that_the_loader_knows_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "\tlibcuda.so.1 (libc6) => /32/libcuda.so.1\n\tlibcuda.so.1 (libc6,x86-64) => {}\n"
    library = tmp_path / "libcuda.so.1"
    library.touch()
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(
        cuda_toolkit.subprocess,
        "run",
        lambda *args, **options: SimpleNamespace(stdout=said.format(library)),
    )
    assert cuda_toolkit.driver() == library


def test_it_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_toolkit.main() == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "CUDA toolkit",
        "driver",
    ]
