"""Frames as the public loaders of benchmarks choose them, from the rule to the command line."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import evaluation_data as made
from support.scripted_session import ScriptedSession, scripted
from support.sizes import examples

from vicort.benchmarks.evaluation import (
    etbench,
    eval_run,
    ovo_bench,
    rvs,
    streambench,
    streamingbench,
    videomme,
)
from vicort.benchmarks.evaluation.eval_arguments import parse_options
from vicort.benchmarks.evaluation.items import Item, Video
from vicort.benchmarks.evaluation.own_sampling import SpreadCount
from vicort.benchmarks.evaluation.watching import frame_times, watch

RATES = [Fraction(15), Fraction(25), Fraction(30), Fraction(30_000, 1001)]


def clip_of(rate: Fraction, seconds: Fraction | int) -> list[Fraction]:
    """Times of the frames of a file that is cut there."""
    count = -(-seconds * rate // 1)
    return [index / rate for index in range(int(count))]


def spread(total: int, count: int) -> list[Fraction]:
    """Where an even spread over the frames lies, the ends included."""
    return [Fraction(index * (total - 1), count - 1) for index in range(count)]


@settings(max_examples=examples(60))
@given(rate=st.sampled_from(RATES), seconds=st.integers(1, 1300))
@example(rate=Fraction(30), seconds=300)
@example(rate=Fraction(30), seconds=600)
@example(rate=Fraction(30), seconds=601)
def test_streamingbench_takes_frames_by_the_clips_length(rate, seconds):
    times = clip_of(rate, seconds)
    fps = Fraction(1) if seconds <= 300 else Fraction(1, 2) if seconds <= 600 else Fraction(1, 5)
    count = max(4, int(seconds * fps) // 2 * 2)
    later = [seconds + index / rate for index in range(9)]  # frames that are not of the clip
    chosen = streamingbench.SAMPLING.chosen([*times, *later], Fraction(0), Fraction(seconds))
    # to the nearest frame; fp32 may take either of two that are almost as near
    assert len(chosen) == count
    pairs = zip(chosen, spread(len(times), count), strict=True)
    assert all(abs(index - place) <= Fraction(51, 100) for index, place in pairs)
    assert (chosen[0], chosen[-1]) == (0, len(times) - 1)


@settings(max_examples=examples(60))
@given(total=st.integers(6, 4000))
def test_ovo_bench_takes_64_frames_of_any_clip(total):
    times = [Fraction(index, 30) for index in range(total)]
    chosen = ovo_bench.SAMPLING.chosen(times, Fraction(0), Fraction(total, 30))
    count = 2 * round(min(64, total - 2) / 2)
    assert len(chosen) == count
    pairs = zip(chosen, spread(total, count), strict=True)
    assert all(abs(index - place) <= Fraction(51, 100) for index, place in pairs)
    assert (chosen[0], chosen[-1]) == (0, total - 1)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_clips_of_few_frames_are_taken_as_they_are(frames):
    times = [Fraction(index) for index in range(frames)]
    for sampling in (streamingbench.SAMPLING, ovo_bench.SAMPLING):
        assert sampling.chosen(times, Fraction(0), Fraction(10)) == list(range(frames))


def test_a_video_that_ends_before_the_question_is_as_long_as_it_is():
    times = clip_of(Fraction(25), 40)
    assert len(streamingbench.SAMPLING.chosen(times, Fraction(0), Fraction(100))) == 40


@settings(max_examples=examples(60))
@given(total=st.integers(1, 4000), asked=st.integers(0, 5000))
def test_rvs_takes_half_of_an_arrays_frames_until_the_question(total, asked):
    """One frame a second, of which every other is taken, spread to the last one."""
    times = [Fraction(index) for index in range(total)]
    chosen = rvs.SAMPLING.chosen(times, Fraction(0), Fraction(asked))
    count = total // 2
    places = [index * (total - 1) / max(count - 1, 1) for index in range(count)]
    assert len(chosen) == min(count, asked // 2)
    # truncated; a place that is almost whole may be either
    near = zip(chosen, places, strict=False)
    assert all(-1 < index - place < 1e-6 for index, place in near)


@settings(max_examples=examples(20))
@given(rate=st.sampled_from(RATES), seconds=st.integers(1, 60), asked=st.integers(0, 80))
def test_rvs_takes_a_frame_each_other_second_of_a_file(rate, seconds, asked):
    times = clip_of(rate, seconds)
    step = 2 * round(rate)
    expected = [index for index in range(len(times)) if index % step == 0][: asked // 2]
    assert rvs.SAMPLING.chosen(times, Fraction(0), Fraction(asked)) == expected


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, made.frame_times(made.make_film(path))


def test_the_times_of_a_file_are_those_of_its_frames(film, tmp_path):
    path, times = film
    assert frame_times(Video("film", path, ())) == times
    made.rvs(tmp_path, "frames")
    images = Video("film", tmp_path / "frames" / "film", ())
    assert frame_times(images) == [Fraction(index, 2) for index in range(29)]


@settings(max_examples=examples(8))
@given(
    asked=st.integers(1, 16_000).map(lambda ms: Fraction(ms, 1000)),
    context=st.none() | st.integers(1, 10).map(Fraction),
)
@example(asked=Fraction(5), context=None)  # the time of a frame
@example(asked=Fraction(57, 4), context=None)  # of the last one
def test_a_question_sees_the_chosen_frames_of_the_clip_before_it_alone(film, asked, context):
    path, times = film
    opened: list[ScriptedSession] = []
    sampling = SpreadCount(6, "six")
    video = Video("film", path, (Item("q", "task", "same-text", "6", "?", (asked,)),))
    watch(
        video,
        scripted(lambda question, seen: str(len(seen)), opened),
        "restart",
        context,
        sampling=sampling,
    )
    start = 0 if context is None else max(Fraction(0), asked - context)
    clip = [time for time in times if start <= time < asked]
    assert opened[0].ending is None, "no frame but those comes at the end"
    if len(clip) > 7:
        assert len(opened[0].seen) == 6
        assert (opened[0].seen[0], opened[0].seen[-1]) == (clip[0], clip[-1])
    assert set(opened[0].seen) <= set(clip)


@pytest.mark.parametrize("context", [None, Fraction(2)])
def test_a_proactive_question_sees_the_clip_from_its_ask(tmp_path, context):
    (_, _, proactive, _), streams = made.streamingbench(tmp_path, films=1)
    (video,) = streamingbench.load([proactive], [tmp_path]).videos
    opened: list[ScriptedSession] = []
    script = scripted(lambda question, seen: "no", opened)
    watch(video, script, "restart", context, sampling=streamingbench.SAMPLING)
    asked = int(streams[0].things[1].start) - 3
    assert [(session.seen[0], int(session.seen[-1])) for session in opened] == [
        (asked, second) for second in range(asked, asked + 7)
    ]


def test_each_benchmark_has_the_settings_of_its_public_code(tmp_path):
    (real, *_), _ = made.streamingbench(tmp_path / "streamingbench", films=1)
    files = {
        streamingbench: real,
        ovo_bench: made.ovo_bench(tmp_path / "ovo")[0],
        rvs: made.rvs(tmp_path / "rvs")[0],
        streambench: made.streambench(tmp_path / "streambench")[0],
        etbench: made.etbench(tmp_path / "etbench")[0],
        videomme: made.videomme(tmp_path / "videomme")[0],
    }
    settings = {}
    for benchmark, file in files.items():
        dataset = benchmark.load([file], [file.parent])
        settings[dataset.name] = (dataset.max_tokens, dataset.own_sampling)
    assert settings == {
        "streamingbench": (128, streamingbench.SAMPLING),
        "ovo-bench": (128, ovo_bench.SAMPLING),
        "rvs": (256, rvs.SAMPLING),
        "streambench": (128, None),
        "etbench": (128, None),
        "videomme": (128, videomme.SAMPLING),
    }


def test_a_run_with_own_sampling_says_so(tiny_engines, tmp_path):
    folder = tmp_path / "streamingbench"
    (real, *_), _ = made.streamingbench(folder, films=1)
    arguments = ["streamingbench", real, "--videos", folder, "--sampling", "own"]
    system = ["--system", "full-history", "--protocol", "restart"]
    out = ["--engine-dir", tiny_engines, "--out", tmp_path / "out"]
    assert eval_run.main([str(each) for each in (*arguments, *system, *out)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    words = "own: 1 frame a second of clips up to 300 s"
    assert report["conditions"]["fps"].startswith(words)
    assert words in (tmp_path / "out" / "report.txt").read_text()
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    (replies,) = [json.loads(line)["replies"] for line in lines if '"replies"' in line]
    # 16 tokens a unit of two frames; clips of 3, 7 and 11 s have 4, 6 and 10 frames
    assert [reply["tokens_read"] for reply in replies] == [32, 48, 80]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sampling", "own"], "it needs --protocol restart"),
        (
            ["--sampling", "own", "--protocol", "restart", "--fps", "2"],
            "--sampling own and --fps 2 exclude each other",
        ),
        (["--sampling", "best"], "invalid choice: 'best'"),
    ],
)
def test_sampling_that_cannot_be_is_refused(capsys, arguments, said):
    assert eval_run.main(["ovo-bench", "x.json", *arguments]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_the_default_is_a_fixed_rate():
    assert not parse_options(["ovo-bench", "x.json"]).own_sampling


def test_a_benchmark_without_a_loader_that_chooses_is_named(tiny_engines, tmp_path, capsys):
    file, _ = made.streambench(tmp_path)
    arguments = ["streambench", file, "--videos", tmp_path, "--engine-dir", tiny_engines]
    own = ["--sampling", "own", "--protocol", "restart", "--out", tmp_path / "out"]
    assert eval_run.main([str(each) for each in (*arguments, *own)]) == 2
    assert "--sampling own: no public loader of streambench" in capsys.readouterr().err
