"""Names that users and files choose reach a terminal without what it would obey."""

import io
import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fake_session import FakeEngines, FakeSession
from support.sizes import examples

from vicort.benchmarks import bench
from vicort.benchmarks.evaluation import eval_run
from vicort.export import build, random_checkpoint
from vicort.export.checkpoint import TINY, resolve
from vicort.runtime.cli import engine_list, info, run
from vicort.runtime.safe_text import without_controls

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
CONTROLS = [chr(code) for code in (*range(1, 32), *range(0x7F, 0xA0), 0x2028, 0x202E, 0xDCE9)]
NAMES = st.text(st.sampled_from([*"aé表 ", *CONTROLS]), min_size=1, max_size=12).map(
    lambda text: f"n{text}"
)
QUESTION = "what\x1b[2J\x9b is there?"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(main, *words: object, terminal: bool = False) -> str:
    """What a command writes to stdout and stderr."""
    file = Terminal() if terminal else io.StringIO()
    with redirect_stdout(file), redirect_stderr(file):
        main([str(word) for word in words])
    return file.getvalue()


def assert_harmless(text: str, *shown: str) -> None:
    text.encode()  # as a strict stdout does
    assert text.replace("\n", "").isprintable(), ascii(text)
    assert all(each in text for each in shown)


@pytest.fixture(autouse=True)
def no_engines(monkeypatch):
    FakeSession.opened.clear()
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr(run, "EngineSet", FakeEngines)


@pytest.fixture(scope="module")
def hostile_folder(tiny_engines):
    """Makes a folder of a name that holds an engine set, a clip, and files that are refused."""
    with tempfile.TemporaryDirectory() as root:

        def make(name: str) -> Path:
            folder = Path(root) / name
            if not folder.exists():
                shutil.copytree(tiny_engines, folder / name, copy_function=os.link)
                shutil.copy(CLIP, folder / f"{name}.mp4")
                (folder / "bad.yaml").write_text("{")
                (folder / "bad.jsonl").write_text("{")
            return folder

        yield make


@settings(max_examples=examples(30))
@given(NAMES)
@example("n\x1b[31m")
@example("two\nlines")
@example(os.fsdecode(b"latin-\xe9"))
def test_no_name_of_a_file_or_folder_reaches_the_terminal_as_it_is(hostile_folder, name):
    folder = hostile_folder(name)
    engines, clip = folder / name, folder / f"{name}.mp4"
    with_engines = ("--engine-dir", engines)
    # one that is refused writes one line
    for main, *words in [
        (info.main, folder),
        (info.main, folder / "none"),
        (run.main, folder / "none.mp4", *with_engines),
        (run.main, folder / "bad.yaml", *with_engines),
        (run.main, clip, *with_engines, "--system", folder / "bad.yaml"),
        (run.main, clip, *with_engines, "--questions", folder / "bad.jsonl"),
        (run.main, clip, *with_engines, "--trace", folder / "none" / "t.json"),
        (run.main, clip, *with_engines, "--serve-socket", clip),
        (run.main, f"{name}://host/x", *with_engines),
        (run.main, f"https://user:{name}@localhost:1/x", *with_engines, "--format", name),
        (build.main, name),
        (build.main, folder / "none"),
        (build.main, engines),
        (build.main, TINY, "--out", folder),
        (build.main, TINY, "--adapter", folder),
        (random_checkpoint.main, folder),
        (bench.main, "--only", name),
        (eval_run.main, "--engine-dir", folder),
        (engine_list.main, "list", "--folder", clip),
    ]:
        text = said(main, *words)
        assert_harmless(text)
        assert text.count("\n") == 1, (words, text)
    for main, *words in [
        (info.main, engines),
        (engine_list.main, "list", "--folder", folder),
        (run.main, clip, *with_engines, "--dry-run"),
    ]:
        assert_harmless(said(main, *words))


@pytest.mark.parametrize("name", ["n\x1b[31m\x9b2J", os.fsdecode(b"latin-\xe9")])
@pytest.mark.parametrize("form", ["text", "jsonl", "srt", "vtt"])
def test_labels_and_questions_do_neither(hostile_folder, name, form):
    clip = hostile_folder(name) / f"{name}.mp4"
    several = ("text", "jsonl")
    for clips in [(clip,), *([(clip, CLIP)] if form in several else [])]:
        words = (*clips, "--engine-dir", clip.parent / name, "--ask", QUESTION, "--format", form)
        text = said(run.main, *words)
        assert_harmless(text, "is there?", *(["[31m"] if len(clips) > 1 and "31" in name else []))
        if form == "jsonl":
            events = [json.loads(line) for line in text.splitlines()]
            assert {event["question"] for event in events if "question" in event} == {QUESTION}
            labels = {event["source"] for event in events if "source" in event}
            assert labels == ({str(each) for each in clips} if len(clips) > 1 else set())


def test_on_a_terminal_the_question_and_the_bar_do_neither(hostile_folder):
    name = "n\x9b31m"
    clip = hostile_folder(name) / f"{name}.mp4"
    text = said(
        run.main, clip, "--engine-dir", clip.parent / name, "--ask", QUESTION, terminal=True
    )
    assert "what\\u001b[2J\\u009b is there?" in text
    assert "n\\x9b31m.mp4" in text
    assert "\x9b" not in text
    assert "\x1b[2J" not in text


def test_the_log_does_neither(hostile_folder):
    name = "n\x1b[31m\nINFO forged"
    clip = hostile_folder(name) / f"{name}.mp4"
    text = said(run.main, clip, "--engine-dir", clip.parent / name, "--verbose")
    assert_harmless(text, "\\x1b[31m\\nINFO forged.mp4: stream 0")
    assert not any(line.startswith("INFO forged") for line in text.splitlines())


def test_a_password_with_white_space_is_not_shown():
    text = said(run.main, "rtsp://user:geh\neim@localhost:1/x", "--format", "geh")
    assert "geh\\n" not in text
    assert "eim" not in text


def test_a_checkpoints_folder_and_what_its_files_say_are_shown_in_one_line(tmp_path):
    folder = tmp_path / "n\x1b[31m\nline"
    shutil.copytree(resolve(TINY), folder)
    assert_harmless(said(info.main, folder), "\\x1b[31m\\nline\n  model")
    (folder / "model.safetensors").unlink()
    text = said(info.main, folder)
    assert_harmless(text, "n\\x1b[31m\\nline")
    assert text.count("\n") == 1


@given(st.text())
def test_without_controls_keeps_words_and_lines(text):
    shown = without_controls(text)
    shown.encode()
    assert shown.count("\n") == text.count("\n")
    if text.replace("\n", "").isprintable():
        assert shown == text
