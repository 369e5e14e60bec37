"""libvicort.so from C and C++: programs that use it as others would, compiled with every warning an
error."""

import json
import shutil
import struct
import subprocess
import sys
import venv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support import stand_in_driver
from support.c_programs import ROOT, STRICT, check_sanitizers, compiler, library, run
from support.manifests import manifest
from support.reported_streams import SPILLING
from support.sizes import is_thorough, slow
from support.stand_in_driver.child import environment

from vicort.benchmarks.studies.capi import TIMES, from_python
from vicort.runtime.core import Frame
from vicort.runtime.devices.surface import Surface, to_rgb
from vicort.runtime.manifest import FILE_NAME
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

CLIP = ROOT / "tests" / "fixtures" / "shapes.mp4"
SMALL = """
name: small
drop: {policy: none}
ingest: {policy: recent-chunks, chunks: 2}
retrieval: {policy: similar-chunks, top: 2, recent: 1}
memory: {device_mb: 16, host_mb: 4, when_full: drop-oldest}
"""
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
QUESTION = "what color was the circle?"


@pytest.mark.parametrize(
    ("suffix", "standard"), [(".c", "-std=c11"), (".cpp", "-std=c++17"), (".cpp", "-std=c++20")]
)
def test_the_headers_compile_strictly_by_themselves(suffix, standard, tmp_path):
    headers = ("vicort.h",) if suffix == ".c" else ("vicort.h", "vicort.hpp")
    for header in headers:
        source = tmp_path / f"alone{suffix}"
        source.write_text(
            f"#include <{header}>\n#include <{header}>\nint main(void) {{ return "
            f"(int)vicort_params_default().size == 0; }}\n"
        )
        command = [
            *compiler(suffix),
            standard,
            *STRICT,
            "-Wconversion",
            f"-I{library() / 'include'}",
            "-c",
            str(source),
            "-o",
            "/dev/null",
        ]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_only_the_api_is_visible():
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library() / "lib" / "libvicort.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = {line.split()[-1] for line in names.stdout.splitlines()}
    header = (ROOT / "capi" / "vicort.h").read_text()
    assert seen
    assert all(name.startswith("vicort_") and f"{name}(" in header for name in seen)


def test_wrong_calls_give_codes(tiny_engines):
    assert "gave its code" in run("wrong_calls.c", tiny_engines)


def test_answers_are_limited_and_choices_have_probabilities(tiny_engines):
    assert run("limited.c", tiny_engines) == ""


def test_an_environment_without_vicort_is_told_from_the_right_one(tiny_engines, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)
    refused, other = run("homes.c", tiny_engines, tmp_path / "empty").splitlines()
    assert f"{tmp_path}/empty cannot run vicort (No module named '_cffi_backend')" in refused
    assert "`pip install WHEEL cffi`" in refused
    assert "a process has one environment" in other


def test_eight_threads_push_and_ask_and_are_closed_under(tiny_engines):
    together, closed = run("threads.c", tiny_engines, 100).splitlines()
    counts = dict(part.split() for part in together.split(", "))
    assert int(counts["pushed"]) >= 100
    assert int(counts["asked"]) >= 4
    assert int(closed.split(": ")[1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("wrong_calls.c", ()),
        ("threads.c", (60,)),
        ("leave.c", ()),
        ("forks.c", ()),
        ("limited.c", ()),
    ],
)
def test_the_sanitizers_find_nothing(name, arguments, tiny_engines):
    """Eight threads that push, ask and close, wrong calls, an exit with a session open, and
    children that are forked meanwhile."""
    check_sanitizers()
    run(name, tiny_engines, *arguments, timeout=400, sanitized=True)


def test_a_forked_child_is_told_so_and_can_exit(tiny_engines):
    assert run("forks.c", tiny_engines) == "8 children\n"


@pytest.mark.parametrize("pushes", [500, *slow(10_000)])
def test_memory_is_flat_over_thousands_of_pushes(pushes, tiny_engines, tmp_path):
    system = tmp_path / "small.yaml"
    system.write_text(SMALL)
    resident = [
        int(line) for line in run("memory.c", tiny_engines, system, pushes, 320, 180).splitlines()
    ]
    # what the second half would add if its pictures stayed
    kept_frames = pushes // 2 * 320 * 180 * 3
    assert len(resident) == 10
    assert max(resident[5:]) - resident[4] < kept_frames / 10


@pytest.mark.parametrize("when", ["open", "stream", "answer", "rest", "exit"])
def test_a_gpu_that_is_lost_has_its_code_in_every_call(when, tmp_path):
    """Over the real cuda.core and a stand-in for NVIDIA's driver."""
    pytest.importorskip("cuda.core")
    (tmp_path / FILE_NAME).write_text(json.dumps(manifest(backend="tensorrt")))
    (tmp_path / "spilling.yaml").write_text(SPILLING.to_yaml())
    host = Path(stand_in_driver.__file__).parent / "c_host"
    paths = {"PYTHONPATH": str(host)} | environment()
    run("lost_gpu.c", when, tmp_path, tmp_path / "spilling.yaml", environment=paths)


def test_the_wrapper_throws_codes_and_lets_nothing_through(tiny_engines):
    assert "the wrapper holds" in run("wrapper.cpp", tiny_engines)


def test_leaving_with_a_session_open_is_no_crash(tiny_engines):
    """It used to be one, most times: the engines' libraries went before the threads that ran
    them."""
    for _ in range(10 if is_thorough() else 1):
        assert run("leave.c", tiny_engines) == ""


def test_it_loads_as_a_plugin_and_leaves_signals_and_locale_alone(tiny_engines):
    assert "loaded and closed" in run("plugin.c", library() / "lib" / "libvicort.so", tiny_engines)


def test_a_process_that_is_python_already_keeps_its_interpreter(tiny_engines):
    code = f"""
import ctypes
lib = ctypes.CDLL({str(library() / "lib" / "libvicort.so")!r})
lib.vicort_last_error.restype = ctypes.c_char_p
params = ctypes.create_string_buffer(104)
assert lib.vicort_params_init(params, ctypes.c_size_t(104), 4) == 0, lib.vicort_last_error()
ctypes.c_char_p.from_buffer(params, 16).value = {str(tiny_engines).encode()!r}
session = ctypes.c_void_p()
assert lib.vicort_open(params, ctypes.byref(session)) == 0, lib.vicort_last_error()
import vicort.runtime.session
assert lib.vicort_close(session) == 0
assert lib.vicort_close(session) == 3
print("both")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "both\n", done.stderr


def pictures(kind: str) -> list[np.ndarray]:
    with av.open(str(CLIP)) as container:
        return [frame.reformat(format=kind).to_ndarray() for frame in container.decode(video=0)]


def as_frames(images: list, fps: int) -> list[Frame]:
    return [Frame(image, Fraction(i, fps), i) for i, image in enumerate(images)]


@pytest.mark.parametrize(
    ("kind", "padding", "origin"), [("rgb24", 7, 1_763_700_000_000_000), ("nv12", 5, -9)]
)
def test_c_and_python_see_the_same(kind, padding, origin, tiny_engines, tmp_path):
    """The same pictures, pushed from C with rows apart and a clock of its own, and from Python as
    arrays."""
    fps, images = 25, pictures(kind)[:120]
    raw = tmp_path / "raw"
    raw.write_bytes(b"".join(image.tobytes() for image in images))
    height, width = (
        images[0].shape[0] if kind == "rgb24" else images[0].shape[0] * 2 // 3,
        images[0].shape[1],
    )
    if kind == "nv12":
        rows = (height + 1) // 2
        images = [
            Surface(
                i[:height, :, None], i[height:].reshape(rows, -1, 2), to_rgb(0.299, 0.114, False)
            )
            for i in images
        ]
    with Session.open(tiny_engines) as session:
        for frame in as_frames(images, fps):
            session.push(frame)
        session.finish()
        answer, frames = session.ask(QUESTION), session.summary().frames
    times = [origin + round(time * 1_000_000) for time in (answer.at, answer.seen_until)]
    expected = [answer.text, *times, answer.tokens, answer.pages, frames]
    printed = run(
        "replay.c", tiny_engines, kind, raw, width, height, fps, padding, origin, QUESTION
    )
    assert printed.strip("\n").rsplit("|", 5) == [str(value) for value in expected]


def test_encoded_packets_from_c_are_what_the_file_is_to_python(tiny_engines, tmp_path):
    """Of an H.264 file with B pictures, on a clock of the caller's own."""
    origin = 1_763_700_000_000_000
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        name, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
        pieces = [
            (round(each.pts * each.time_base * 1_000_000), bytes(each))
            for each in container.demux(stream)
            if each.size
        ]
    assert pieces != sorted(pieces)
    path = tmp_path / "packets"
    start = struct.pack("=i", len(extradata)) + extradata
    path.write_bytes(
        start + b"".join(struct.pack("=qi", time_us, len(data)) + data for time_us, data in pieces)
    )
    with Session.open(tiny_engines) as session, open_source(str(CLIP)) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
        session.finish()
        answer, frames = session.ask(QUESTION), session.summary().frames
    times = [origin + round(time * 1_000_000) for time in (answer.at, answer.seen_until)]
    printed = run("packets.c", tiny_engines, name, path, origin, QUESTION)
    assert printed.strip("\n").rsplit("|", 5) == [
        str(value) for value in (answer.text, *times, answer.tokens, answer.pages, frames)
    ]


@needs_cmake
def test_the_example_answers_while_it_streams(tiny_engines, tmp_path):
    """Built with CMake's find_package, as the README says."""
    subprocess.run(
        [
            "cmake",
            "-S",
            ROOT / "capi" / "example",
            "-B",
            tmp_path,
            f"-DCMAKE_PREFIX_PATH={library()}",
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    done = subprocess.run(
        [tmp_path / "service", CLIP, "10", tiny_engines],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *now, colour, last = done.stdout.splitlines()
    assert len(now) >= 6
    assert all(line.startswith("what is there now?  ") for line in now)
    things = json.loads(CLIP.with_suffix(".json").read_text())["things"]
    shown = {f"{thing['color']} {thing['shape']}" for thing in things}
    seen = {name for line in now for name in line[20:].split("   (")[0].split(" and ")}
    # ten times as fast as the clip, so that a busy machine may miss one
    assert len(seen & shown) >= len(shown) - 2
    assert seen <= shown | {"nothing"}
    (color,) = [thing["color"] for thing in things if thing["shape"] == "circle"]
    assert colour.startswith(f"what color was the circle?  {color} ")
    assert last.startswith("46 frames in ")  # 2 a second of 23 s


@needs_cmake
def test_the_package_knows_its_version(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(p NONE)\nfind_package(vicort 99 "
        "QUIET)\nmessage(STATUS found=${vicort_FOUND})\n"
    )
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={library()}"]
    assert "found=0" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_benchmark_asks_both_sides_the_same(tiny_engines):
    from_c = json.loads(run("../../capi/bench/push.c", tiny_engines, 200, 32, 32, 24))
    assert list(from_c) == list(from_python(tiny_engines, 200, 32, 32, 24)) == list(TIMES)
    assert all(value > 0 for value in from_c.values())
