"""vicort-bench --only real-size: who takes part, the order of runs, and the runs themselves with
small models."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.videos import write_video

from vicort.benchmarks import bench
from vicort.benchmarks.common.checkpoints import TINY
from vicort.benchmarks.common.children import ChildFailed
from vicort.benchmarks.common.transformers_stream import Variant
from vicort.benchmarks.real_size import contenders, real_size_part, rounds, vicort_clip
from vicort.benchmarks.real_size.clip_job import ANSWER_TOKENS, ClipJob, resized
from vicort.benchmarks.real_size.contenders import (
    Contender,
    free_memory_gb,
    genai_contender,
    stored_bytes,
    vicort_contenders,
)
from vicort.benchmarks.real_size.genai_clip import run_genai
from vicort.benchmarks.real_size.process_memory import MemoryPeak
from vicort.benchmarks.real_size.rounds import Rounds
from vicort.benchmarks.real_size.transformers_clip import run_in_chunks, run_whole
from vicort.benchmarks.real_size.transformers_screening import transformers_contenders
from vicort.runtime.core import Frame
from vicort.runtime.manifest import read_manifest

JOB = ClipJob(Path("clip.mp4"), 2, (112, 112), 16, 16, 2)
SIDE = 112  # pixels, of the embedded model's frames: nothing has to be resized
FRAMES = 18  # that are taken of the clip: a chunk and a unit


def work(job: ClipJob, folder: Path) -> dict[str, Any]:
    raise AssertionError("it runs in a child process alone")


def contender(name: str, folder: Path, **changes: Any) -> Contender:
    return Contender(name, work, folder, "engines", "make it", **changes)


def run_of(first_token: float) -> dict[str, Any]:
    return {
        "load_s": 3.0,
        "last_frame_to_first_token_s": first_token,
        "clip_to_first_token_s": 2 * first_token,
        "decode_ms": 40.0,
        "loaded_rss_mb": 900.0,
        "loaded_private_mb": 500.0,
        "peak_rss_mb": 1500.0,
        "peak_private_mb": 600.0,
        "frames": 26,
    }


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Instead of child processes: `calls` has (what runs, timeout), `outcomes` gives the time to
    the first token of each, or why it failed."""
    seen = SimpleNamespace(calls=[], outcomes={})

    def in_child(work: Any, job: ClipJob, folder: Path, *more: Any, seconds: float) -> Any:
        name = more[0].name + (" chunks" * (work is run_in_chunks)) if more else folder.name
        seen.calls.append((name, seconds))
        outcome = seen.outcomes.get(name, 1.0)
        if isinstance(outcome, str):
            raise ChildFailed(outcome)
        return run_of(outcome)

    monkeypatch.setattr(rounds, "in_child", in_child)
    monkeypatch.setattr(contenders, "free_memory_gb", lambda: 1e3)
    return seen


# ---- why one does not take part


def test_a_missing_folder_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "free_disk_gb", lambda folder: 5.0)
    reason = contender("a", tmp_path / "none").obstacle()
    assert reason == f"{tmp_path / 'none'} is missing (the 3B model's takes 3.8 GB): make it"
    monkeypatch.setattr(contenders, "free_disk_gb", lambda folder: 1.25)
    assert "takes 3.8 GB, and only 1.2 GB are free there)" in str(
        contender("a", tmp_path / "none").obstacle()
    )


def test_free_space_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    free = contenders.free_disk_gb(tmp_path / "none" / "deeper")
    assert free == pytest.approx(contenders.free_disk_gb(tmp_path), rel=0.05)


def test_too_little_memory_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "llm.bin").write_bytes(bytes(1_000_000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(5_000_000))  # no weights
    large = contender("a", tmp_path, weight_bytes=2000)
    assert large.gigabytes() == pytest.approx(2 + contenders.BESIDE_GB)
    monkeypatch.setattr(contenders, "free_memory_gb", lambda: 6.4)
    assert large.obstacle() == "it needs about 6.5 GB of memory, and 6.4 GB are free"
    monkeypatch.setattr(contenders, "free_memory_gb", lambda: 6.6)
    assert large.obstacle() is None


def test_free_memory_is_what_programs_can_take_under_the_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:  2000000 kB\n")
    monkeypatch.setattr(contenders, "host_memory", lambda: 9e9)
    assert free_memory_gb(tmp_path / "meminfo") == 2.048
    monkeypatch.setattr(contenders, "host_memory", lambda: 1.5e9)
    assert free_memory_gb(tmp_path / "meminfo") == 1.5


def test_a_rival_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    assert genai_contender(tmp_path).obstacle() == (
        "openvino_genai is not installed: pip install openvino-genai"
    )


def test_a_checkpoint_says_how_large_its_weights_are(tmp_path):
    assert stored_bytes(TINY) == 2
    assert stored_bytes(tmp_path) == 2
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    assert stored_bytes(tmp_path) == 4


# ---- the order of runs


def test_contenders_take_turns_and_everything_is_written(tmp_path, children):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    children.outcomes["b"] = "its process died"
    written: list[int] = []
    turns = Rounds(JOB, 600, lambda: written.append(len(children.calls)))
    turns.measure([contender(folder.name, folder) for folder in folders], 3)
    # b failed once and is left out; the second round is in reverse
    assert [name for name, _ in children.calls] == ["a", "b", "c", "c", "a", "a", "c"]
    assert {seconds for _, seconds in children.calls} == {600}
    assert written == [1, 2, 3, 4, 5, 6, 7]
    report = json.loads(json.dumps(turns.report()))
    assert report["skipped"] == {"b": "its process died"}
    assert report["contenders"].keys() == report["runs"].keys() == {"a", "c"}
    assert report["runs"]["a"] == [run_of(1.0)] * 3
    first = report["contenders"]["a"]["last_frame_to_first_token_s"]
    assert (first["median"], first["n"]) == (1.0, 3)


def test_one_that_cannot_run_starts_no_process(tmp_path, children, capsys):
    turns = Rounds(JOB, 600)
    turns.measure([contender("a", tmp_path / "none")], 2)
    assert children.calls == []
    assert "is missing" in turns.report()["skipped"]["a"]
    assert capsys.readouterr().err.count("skipped: ") == 1


@pytest.mark.parametrize(
    ("outcomes", "fastest"),
    [
        ({"fp32 2t": 5.0, "bf16 2t": 4.0, "bf16 2t compiled": 6.0}, "bf16 2t"),
        ({"fp32 2t": 5.0, "bf16 2t": 9.0, "fp32 2t compiled": 3.0}, "fp32 2t compiled"),
        ({"fp32 2t": "killed", "bf16 2t": 9.0, "bf16 2t compiled": "it took longer"}, "bf16 2t"),
    ],
)
def test_the_fastest_way_of_running_transformers_goes_on(outcomes, fastest, children):
    children.outcomes |= outcomes
    turns = Rounds(JOB, 600)
    whole, in_chunks = transformers_contenders(TINY, turns)
    assert {
        name.removeprefix("transformers ").removesuffix(", whole clip"): found
        for name, found in turns.screened.items()
    } == outcomes
    assert whole.more[0].name == fastest
    assert (whole.work, in_chunks.work) == (run_whole, run_in_chunks)
    assert in_chunks.more[0].name == fastest.removesuffix(" compiled")
    assert turns.skipped == {}  # what was screened out is no contender


def test_a_slow_variant_is_ended_soon(children):
    transformers_contenders(TINY, Rounds(JOB, 600))
    # the fastest so far took no time: the next one has the least that each variant has
    assert children.calls == [("fp32 2t", 600), ("bf16 2t", 60), ("fp32 2t compiled", 600)]


def test_no_variant_no_contender(children):
    children.outcomes |= dict.fromkeys(("fp32 2t", "bf16 2t"), "killed")
    assert transformers_contenders(TINY, Rounds(JOB, 600)) == []


# ---- the result


def test_the_table_says_what_was_measured_and_what_was_not():
    turns = Rounds(JOB, 600)
    turns.runs = {"ours": [run_of(2.0) | {"frames_a_second": 0.5}], "theirs": [run_of(8.0)] * 3}
    turns.screened = {"theirs bf16": "it took longer than 60 s and was ended", "theirs": 8.0}
    turns.skipped = {"GenAI": "not installed"}
    options = real_size_part.RealSizeOptions()
    result = {"job": real_size_part.describe(JOB, options)} | turns.report()
    found = real_size_part.table(json.loads(json.dumps(result)))
    assert found.rows == (
        ("ours", "2.0", "[2.0, 2.0]", "4.0", "0.50", "40", "3.0", "0.6", "1.5", "1"),
        ("theirs", "8.0", "[8.0, 8.0]", "16.0", "whole clip", "40", "3.0", "0.6", "1.5", "3"),
    )
    assert found.notes == (
        "screened: theirs bf16: it took longer than 60 s and was ended",
        "screened: theirs: 8.0 s",
        "skipped: GenAI: not installed",
    )
    assert len({len(row) for row in (found.header, *found.rows)}) == 1


def test_it_is_never_part_of_the_default_run(capsys):
    assert bench.REAL_SIZE not in bench.ALL
    assert bench.main(["--rounds", "2"]) == 2
    assert "--rounds is an option of `--only real-size`" in capsys.readouterr().err
    assert bench.main(["--only", "real-size", "--only", "machine"]) == 2
    assert "its result is a file of its own" in capsys.readouterr().err


def test_without_an_engine_set_nothing_says_what_the_job_is(tmp_path, capsys):
    arguments = ["--only", "real-size", "--cache", str(tmp_path), "--out", str(tmp_path / "a.json")]
    assert bench.main([*arguments, "--engines", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert f"--engines {tmp_path / 'none'}: there is no such folder" in error
    assert error.count("\n") == 1


def test_the_command_writes_a_result_and_names_what_it_left_out(
    tmp_path, clip, tiny_engines, children, capsys
):
    arguments = ["--only", "real-size", "--quick", "--clip", str(clip), "--cache", str(tmp_path)]
    arguments += ["--engines", str(tiny_engines), str(tmp_path / "none")]
    arguments += ["--checkpoint", str(TINY), "--genai-model", str(tmp_path / "none")]
    assert bench.main(arguments) == 0
    result = json.loads((tmp_path / "real-size-quick.json").read_text())
    assert result["conditions"]["cpu"]
    assert (result["job"]["clip"], result["job"]["rounds"]) == (clip.name, 1)
    ours, theirs, in_chunks = result["contenders"]
    assert ours == f"vicort, onnxruntime ({tiny_engines.name})"
    assert theirs.endswith("whole clip")
    assert in_chunks.endswith("in chunks")
    assert [found[0]["frames"] for found in result["runs"].values()] == [26] * 3
    assert result["skipped"].keys() == {"vicort, engines (none)", "OpenVINO GenAI"}
    out = capsys.readouterr().out
    assert out.count("skipped: ") == 2
    assert "written: " in out


# ---- the runs


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, 230, size=(SIDE, SIDE))  # 19 frames at 2 a second
    return path


@pytest.fixture
def job(clip: Path, tiny_engines: Path) -> ClipJob:
    return ClipJob.of(clip, read_manifest(tiny_engines).model, threads=1)


def test_the_job_is_what_the_engine_set_says(job: ClipJob) -> None:
    assert (job.size, job.chunk_frames, job.unit_tokens, job.fps) == ((SIDE, SIDE), 16, 16, 2)
    frames = job.frames()
    assert [frame.time for frame in frames[:3]] == [0, Fraction(13, 25), Fraction(1)]
    assert len(frames) == FRAMES  # the 19th has no partner
    assert [len(part) for part in job.parts()] == [16, 2]


def test_the_last_frame_is_never_in_memory_before_the_question(job: ClipJob, monkeypatch) -> None:
    monkeypatch.setattr(ClipJob, "frames", lambda self: list(range(32)))
    assert [len(part) for part in job.parts()] == [16, 16]


def test_frames_are_resized_to_the_size_of_the_model():
    frame = Frame(np.full((180, 320, 3), 7, np.uint8), Fraction(1), 3)
    (found,) = resized([frame], (168, 308))
    assert (found.image.shape, found.image.min(), found.image.max()) == ((168, 308, 3), 7, 7)
    assert (found.time, found.index) == (1, 3)


def check_times(found: dict[str, Any], streams: bool) -> None:
    """The parts of a run add up, and only those who stream have a rate."""
    streaming = 16 / found["frames_a_second"] if streams else 0
    assert ("frames_a_second" in found) == streams
    assert found["clip_to_first_token_s"] == pytest.approx(
        streaming + found["last_frame_to_first_token_s"]
    )
    assert min(found["load_s"], found["last_frame_to_first_token_s"], found["decode_ms"]) > 0
    assert found["peak_rss_mb"] >= found["loaded_rss_mb"] > found["loaded_private_mb"] > 0


def test_both_sides_do_the_same_job(job: ClipJob, tiny_engines: Path, monkeypatch) -> None:
    monkeypatch.setattr(vicort_clip, "DEVICE_MB", 100)
    ours = vicort_clip.run_vicort(job, tiny_engines)
    theirs = run_in_chunks(job, TINY, Variant("fp32", 1))
    whole = run_whole(job, TINY, Variant("fp32", 1))
    for found, streams in ((ours, True), (theirs, True), (whole, False)):
        check_times(found, streams)
        assert (found["frames"], found["tokens"]) == (FRAMES, FRAMES // 2 * 16)
    assert 0 < ours["kept"] < ours["tokens"]
    assert theirs["kept"] == ours["kept"]
    assert whole["kept"] == whole["tokens"]


def test_genai_gets_all_frames_with_the_question(job: ClipJob, tmp_path, monkeypatch) -> None:
    asked: dict[str, Any] = {}

    class Pipeline:
        def __init__(self, folder: str, device: str, **options: Any) -> None:
            asked.update(folder=folder, device=device, options=options)

        def generate(self, prompt: str, **given: Any) -> Any:
            asked.update(prompt=prompt, **given)
            for token in range(ANSWER_TOKENS):
                assert given["streamer"].write([token]) == "go on"
            return SimpleNamespace(perf_metrics=SimpleNamespace(get_num_input_tokens=lambda: 153))

    fake: Any = ModuleType("openvino_genai")
    fake.VLMPipeline, fake.StreamerBase = Pipeline, object
    fake.GenerationConfig = SimpleNamespace
    fake.StreamingStatus = SimpleNamespace(RUNNING="go on")
    monkeypatch.setitem(sys.modules, "openvino_genai", fake)
    found = run_genai(job, tmp_path)
    (video,) = asked["videos"]
    assert tuple(video.shape) == (FRAMES, SIDE, SIDE, 3)
    assert (asked["device"], asked["options"]) == ("CPU", {"INFERENCE_NUM_THREADS": 1})
    config = asked["generation_config"]
    assert (config.max_new_tokens, config.do_sample) == (ANSWER_TOKENS, False)
    assert (found["frames"], found["tokens"], found["input_tokens"]) == (FRAMES, 144, 153)
    assert "frames_a_second" not in found


def test_the_peak_is_seen_although_it_is_over_at_the_end(monkeypatch):
    now = {"rss_mb": 100.0, "private_mb": 50.0}
    monkeypatch.setattr(
        "vicort.benchmarks.real_size.process_memory.process_memory", lambda: dict(now)
    )
    monkeypatch.setattr("vicort.benchmarks.real_size.process_memory.SAMPLED_EVERY", 0.01)
    with MemoryPeak() as memory:
        now["rss_mb"] = 200.0
        memory.note_loaded()
        now["rss_mb"] = 900.0
        memory._ended.wait(0.1)
        now["rss_mb"] = 300.0
    assert memory.report() == {
        "loaded_rss_mb": 200.0,
        "loaded_private_mb": 50.0,
        "peak_rss_mb": 900.0,
        "peak_private_mb": 50.0,
    }


def test_engine_sets_are_named_by_backend_and_folder(tiny_engines):
    assert [each.name for each in vicort_contenders([tiny_engines])] == [
        f"vicort, onnxruntime ({tiny_engines.name})"
    ]
