"""RTSP cameras on loopback, served by GStreamer."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("rtsp_server.py")
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin")
ELEMENTS = ("x264enc", "rtph264pay", "videotestsrc")
OF_FILES = ("rtph264pay", "qtdemux", "h264parse")
PROBE = """
import gi, sys
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst
Gst.init(None)
assert all(Gst.ElementFactory.find(name) for name in sys.argv[1:])
"""


def rtsp_server(port: int = 0, file: Path | None = None) -> tuple[subprocess.Popen, int]:
    """A server and its port. file: an MP4 file that its camera shows; None = a moving ball."""
    server = subprocess.Popen(
        [SYSTEM_PYTHON or "", str(SERVER), str(port), "admin", "geheim", str(file or "")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline())


@functools.cache
def _has(elements: tuple[str, ...]) -> bool:
    if not SYSTEM_PYTHON:
        return False
    probe = [SYSTEM_PYTHON, "-c", PROBE, *elements]
    return not subprocess.run(probe, capture_output=True, check=False).returncode


def skip_without_rtsp(*, files: bool = False) -> None:
    """files: whether the camera is to show a file."""
    if not _has(OF_FILES if files else ELEMENTS):
        bad = ",bad" * files
        pytest.skip(
            "no RTSP server: install python3-gi, gir1.2-gst-rtsp-server-1.0, "
            f"gstreamer1.0-plugins-{{base,good{bad},ugly}}"
        )
