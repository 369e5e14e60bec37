"""vicort-run --render: the video with questions and answers, and what is refused before the run."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support import videos
from support.fake_session import FakeEngines, FakeSession

from vicort.runtime.cli import run
from vicort.runtime.rendering import lettering, video_file

SECONDS = 4


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)
    monkeypatch.setattr(run, "find_engine_dir", lambda model: Path(f"engines/{model}"))


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "in.mp4"
    videos.write_talking_video(path, SECONDS)
    return path


def ran(capsys, *arguments):
    code = run.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "the embedded tiny model answers" not in line]
    return code, out, lines


def decoded(path):
    with av.open(str(path)) as container:
        return {
            frame.pts * frame.time_base: frame.to_ndarray(format="rgb24").astype(int)
            for frame in container.decode(video=0)
        }


def shown(path, plain):
    """The times at which one video differs from another in its lowest third, and elsewhere."""
    low, high = [], []
    other = decoded(plain)
    for at, picture in decoded(path).items():
        if at in other:
            apart = np.abs(picture - other[at]).max(axis=2) > 40
            low += [at] if apart[76:].any() else []
            high += [at] if apart[:76].any() else []
    return low, high


def test_questions_and_answers_are_on_the_video(capsys, clip, tmp_path):
    plain, path = tmp_path / "plain.mp4", tmp_path / "out.mp4"
    assert ran(capsys, clip, "--render", plain)[0] == 0
    code, out, err = ran(capsys, clip, "--ask", "@3 what is there?", "--render", path)
    assert code == 0
    assert "what is there?" in out
    frames = len(decoded(path))
    assert err == [f"vicort-run: wrote {path} ({frames} frames, {frames / 25:.1f} s)"]
    low, high = shown(path, plain)
    assert (low[0], low[-1], high) == (3, Fraction(99, 25), [])
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4", "plain.mp4"]


def test_the_video_is_of_the_stream_that_the_run_saw(capsys, tmp_path):
    two, path = tmp_path / "two.mkv", tmp_path / "out.mp4"
    with av.open(str(two), "w") as container:
        sizes = [(160, 120), (96, 64)]
        tracks = [container.add_stream("libx264", rate=10) for _ in sizes]
        for track, (track.width, track.height) in zip(tracks, sizes, strict=True):
            track.pix_fmt = "yuv420p"
        for index in range(10):
            for track in tracks:
                picture = videos.image(index, track.width, track.height)
                container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for track in tracks:
            container.mux(track.encode())
    for stream, size in ((0, (160, 120)), (1, (96, 64))):
        assert ran(capsys, two, "--stream", stream, "--render", path)[0] == 0
        with av.open(str(path)) as container:
            assert (container.streams.video[0].width, container.streams.video[0].height) == size


def test_a_question_at_the_end_is_held(capsys, clip, tmp_path):
    path = tmp_path / "out.mp4"
    assert ran(capsys, clip, "--ask", "what was there?", "--render", path)[0] == 0
    assert len(decoded(path)) > SECONDS * 25 + 3 * 25


def test_asking_again_and_again_is_shown_too(capsys, clip, tmp_path):
    plain, path = tmp_path / "plain.mp4", tmp_path / "out.mp4"
    ran(capsys, clip, "--render", plain)
    assert ran(capsys, clip, "--every", "1", "is it there?", "--render", path)[0] == 0
    assert shown(path, plain)[0][0] == 1


def test_no_line_for_people_beside_jsonl(capsys, clip, tmp_path):
    code, out, err = ran(
        capsys, clip, "--ask", "what?", "--format", "jsonl", "--render", tmp_path / "out.mp4"
    )
    assert (code, err) == (0, [])
    assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "summary"


def test_letters_that_no_font_has_are_a_warning(capsys, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())
    path = tmp_path / "out.mp4"
    code, _, err = ran(capsys, clip, "--ask", "那里有什么?", "--render", path)
    assert code == 0
    assert "lacks 5 letters" in err[0]
    assert "--render-font" in err[0]
    assert path.exists()


def test_a_source_that_breaks_off_is_still_written(capsys, tmp_path):
    source, path = tmp_path / "cut.mkv", tmp_path / "out.mp4"
    videos.write_video(tmp_path / "in.mkv", 100, noise=True)
    videos.cut(tmp_path / "in.mkv", source, 0.5)
    assert ran(capsys, source, "--ask", "what?", "--render", path)[0] == 3
    assert decoded(path)


def test_a_question_that_fails_leaves_no_video(capsys, clip, tmp_path):
    path = tmp_path / "out.mp4"
    assert ran(capsys, clip, "--ask", "why " * 30, "--render", path)[0] == 2
    assert not path.exists()


REFUSED = {
    "webm": (["CLIP", "--render", "HERE/a.webm"], "ends in .mp4, .m4v, .mov or .mkv"),
    "no suffix": (["CLIP", "--render", "HERE/a"], "ends in .mp4, .m4v, .mov or .mkv"),
    "no folder": (["CLIP", "--render", "HERE/none/a.mp4"], "name a file in a folder that exists"),
    "a folder": (["CLIP", "--render", "HERE/folder.mp4"], "it is a folder"),
    "itself": (["CLIP", "--render", "CLIP"], "is the source: name another file"),
    "itself by another name": (["CLIP", "--render", "HERE/hard.mp4"], "is the source"),
    "stdin": (["-", "--render", "HERE/a.mp4"], "stdin is gone once it was read: record it"),
    "rtsp": (["rtsp://u:secret@h/1", "--render", "HERE/a.mp4"], "is gone once it was read"),
    "camera": (["/dev/video9", "--render", "HERE/a.mp4"], "is gone once it was read"),
    "fifo": (["HERE/fifo", "--render", "HERE/a.mp4"], "is gone once it was read"),
    "live": (["http://h/a.mp4", "--live", "--render", "HERE/a.mp4"], "is gone once it was read"),
    "two sources": (
        ["CLIP", "testsrc:", "--render", "HERE/a.mp4"],
        "takes the video of one source",
    ),
    "no font": (
        ["CLIP", "--render", "HERE/a.mp4", "--render-font", "HERE/none.ttf"],
        "is no font that can be read",
    ),
    "font alone": (["CLIP", "--render-font", "HERE/none.ttf"], "give that option too"),
}


@pytest.mark.parametrize(("arguments", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused_before_the_run(
    capsys, clip, tmp_path, arguments, complaint
):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "hard.mp4").hardlink_to(clip)
    os.mkfifo(tmp_path / "fifo")
    before = sorted(os.listdir(tmp_path))
    given = [each.replace("CLIP", str(clip)).replace("HERE", str(tmp_path)) for each in arguments]
    code, out, err = ran(capsys, *given)
    assert (code, out, len(err)) == (2, "", 1)
    assert complaint in err[0]
    assert "secret" not in err[0]
    assert FakeSession.opened == []
    assert sorted(os.listdir(tmp_path)) == before


def test_a_missing_encoder_is_refused_before_the_run(capsys, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video_file.av, "codecs_available", {"h264"})
    code, _, err = ran(capsys, clip, "--render", tmp_path / "a.mp4")
    assert (code, FakeSession.opened) == (2, [])
    assert "needs the encoder libx264" in err[0]


def test_a_url_that_turns_out_to_be_live_is_refused_before_engines_are_loaded(
    capsys, tmp_path, monkeypatch
):
    FakeEngines.opened.clear()
    real = run.open_source

    def opened(spec, **options):
        source = real("testsrc:seconds=1")
        source.live = True
        return source

    monkeypatch.setattr(run, "open_source", opened)
    code, _, err = ran(capsys, "http://h/stream", "--render", tmp_path / "a.mp4")
    assert (code, FakeEngines.opened) == (2, [])
    assert "is gone once it was read" in err[0]


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.fake_session import FakeEngines, FakeSession
from vicort.runtime import entry_points
from vicort.runtime.cli import run
run.Session, run.EngineSet = FakeSession, FakeEngines
run.find_engine_dir = lambda model: Path("engines")
sys.argv[1:] = {arguments!r}
sys.exit(entry_points.run())
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_is_written_leaves_nothing(tmp_path, how, code):
    path = tmp_path / "out.mp4"
    program = INTERRUPTED.format(
        tests=str(Path(__file__).parents[2]),
        arguments=["testsrc:seconds=600,size=640x360", "--fps", "0.01", "--render", str(path)],
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 60
    while not any((tmp_path / name).stat().st_size for name in os.listdir(tmp_path)):
        assert child.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    child.send_signal(how)
    assert child.wait(timeout=20) == code
    assert os.listdir(tmp_path) == []
