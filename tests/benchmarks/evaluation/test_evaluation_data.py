"""What vicort-eval makes of each benchmark's files, and what it says where they are wrong."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import evaluation_data as made
from support.sizes import examples

from vicort.benchmarks.evaluation import ovo_bench, rvs, streamingbench
from vicort.benchmarks.evaluation.fields import find_any, find_video
from vicort.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamingbench")
    files, streams = made.streamingbench(folder)
    return folder, files, streams


@pytest.fixture(scope="module")
def ovo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ovo")
    return folder, *made.ovo_bench(folder)


def test_streamingbench_json_is_read_as_it_stands(streaming):
    folder, (real, *_), streams = streaming
    dataset = streamingbench.load([real], [folder])
    assert [video.path for video in dataset.videos] == [
        folder / "videos" / f"sample_{n}_real.mp4" for n in (1, 2)
    ]
    item = dataset.videos[0].items[1]
    options, place = made.options_of(streams[0], 1)
    assert (item.task, item.rule, item.truth, item.times) == (
        "Counting",
        "first-letter",
        "ABCD"[place],
        (made.after(streams[0], 1),),
    )
    assert item.text.startswith("You are an advanced video question-answering AI assistant.")
    lettered = "\n".join(
        f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)
    )
    question = f"Question: What color was the {streams[0].things[1].shape}?"
    assert item.text.endswith(f"\n\n{question}\n\nOptions:\n{lettered}\n\nThe best option is:")
    assert "A. A." not in dataset.videos[1].items[0].text, "options that have letters keep them"


def test_streamingbench_csv_asks_what_its_json_asks(streaming):
    folder, (real, _, _, rows), _ = streaming
    from_json, from_csv = (
        streamingbench.load([file], [folder, folder / "videos"]) for file in (real, rows)
    )
    asked = [
        [(item.text, item.times, item.truth, item.task) for item in video.items]
        for video in from_json.videos
    ]
    assert asked == [
        [(item.text, item.times, item.truth, item.task) for item in video.items]
        for video in from_csv.videos
    ]
    assert [video.path for video in from_csv.videos] == [video.path for video in from_json.videos]


def test_sequential_questions_carry_the_right_answers_before_them(streaming):
    folder, (_, sqa, _, _), streams = streaming
    first, second, third = streamingbench.load([sqa], [folder]).videos[0].items
    assert "contextual information" not in first.text
    assert {first.task, second.task, third.task} == {"Sequential Question Answering"}
    options, place = made.options_of(streams[0], 0)
    lettered = ", ".join(
        f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)
    )
    at, shape = made.clock(made.after(streams[0], 0)), streams[0].things[0].shape
    earlier = (
        f"At timestamp {at}, the following question and answer occurred: Question: What color "
        f"was the {shape}?; "
        f"Options: {lettered}; Answer: {'ABCD'[place]}; "
    )
    assert second.text.count(earlier) == third.text.count(earlier) == 1
    assert third.text.count("At timestamp") == 2


def test_sequential_questions_of_a_csv_are_series_too(streaming, tmp_path):
    folder, (_, sqa, _, rows), _ = streaming
    text = rows.read_text()
    for task in ("Object Perception", "Counting", "Attribute Perception"):
        text = text.replace(task, "Sequential Question Answering")
    (tmp_path / "sqa.csv").write_text(text)
    asked = [
        [item.text for item in video.items]
        for video in streamingbench.load([tmp_path / "sqa.csv"], [folder]).videos
    ]
    assert asked == [
        [item.text for item in video.items] for video in streamingbench.load([sqa], [folder]).videos
    ]


def test_proactive_questions_are_polled_from_a_second_after_the_ask_to_four_after_the_moment(
    streaming,
):
    folder, (_, _, proactive, _), streams = streaming
    item = streamingbench.load([proactive], [folder]).videos[0].items[0]
    start = int(streams[0].things[1].start)
    assert (item.truth, item.times) == (str(start), tuple(range(start - 2, start + 5)))
    assert 'Is it the right time to output "now"? You can only answer yes or no.' in item.text


def test_ovo_bench_asks_all_twelve_tasks_at_their_exact_times(ovo):
    folder, file, stream = ovo
    (video,) = ovo_bench.load([file], [folder / "src_videos"]).videos
    assert video.path == folder / "src_videos" / "shapes" / "film.mp4"
    by_task = {item.task: item for item in reversed(video.items)}
    assert set(by_task) == {task for group in ovo_bench.GROUPS for task in group.tasks}
    assert len(video.items) == 9 + 3 * 2
    assert by_task["EPM"].times == (made.after(stream, 0) + Fraction(37, 100),), (
        "neither rounded nor nearly"
    )
    _, right = made.options_of(stream, 0)
    assert by_task["EPM"].truth == "ABCD"[right]
    assert [(item.rule, item.truth) for item in video.items if item.task in ovo_bench.FORWARD] == [
        ("digits", "1"),
        ("digits", "2"),
        ("yes-or-no", "Yes"),
        ("yes-or-no", "No"),
        ("yes-or-no", "No"),
        ("yes-or-no", "Yes"),
    ]
    assert "How many times did they show a shape?" in by_task["REC"].text


def test_ovo_bench_can_be_limited_to_the_tasks_that_wait(ovo):
    folder, file, _ = ovo
    whole = ovo_bench.load([file], [folder / "src_videos"])
    dataset = ovo_bench.load([file], [folder / "src_videos"], ovo_bench.FORWARD)
    assert [item for item in whole.items.values() if item.task in ("REC", "SSR", "CRR")] == [
        *dataset.items.values()
    ]
    assert [group.title for group in dataset.groups] == ["Forward Active Responding"]
    assert dataset.overall is None  # which is over three groups
    assert dataset.settings["tasks"] == ["CRR", "REC", "SSR"]
    assert "tasks" not in whole.settings
    one = ovo_bench.load([file], [folder], ["SSR"])
    assert {item.task for item in one.items.values()} == {"SSR"}
    assert one.groups[0].tasks == {"SSR": "SSR"}


OVO_PROMPTS = {  # as constant.py of the benchmark has them, a line a string
    "EPM": [
        "",
        "Question: what color was the {0}?",
        "Options:",
        "{1}",
        "",
        "Respond only with the letter corresponding to your chosen option (e.g., A, B, C). ",
        "Do not include any additional text or explanation in your response.",
        "",
    ],
    "REC": [
        "",
        "You're watching a video in which people may perform a certain type of action repetively. ",
        "The person performing this kind of action are referred to as 'they' in the following "
        "statement.",
        "You're task is to count how many times have different people in the video perform this "
        "kind of action in total.",
        "One complete motion counts as one. ",
        "Now, answer the following question: How many times did they show a shape?",
        "Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.",
        "Do not include any additional text or explanation in your response.",
        "",
    ],
    "SSR": [
        "",
        "You're watching a tutorial video which contain a sequential of steps. ",
        "The following is one step from the whole procedures: ",
        "show a shape",
        "Your task is to determine if the man or woman in the video is currently performing this "
        "step.",
        "Answer only with “Yes” or “No”.",
        "Do not include any additional text or explanation in your response.",
        "",
    ],
    "CRR": [
        "",
        "You're responsible of answering questions based on the video content. ",
        "The following question are relevant to the latest frames, i.e. the end of the video.",
        "what came last?",
        "Decide whether existing visual content, especially latest frames, i.e. frames that near "
        "the end of the video, provide enough information for answering the question.",
        "Answer only with “Yes” or “No”.",
        "Do not include any additional text or explanation in your response.",
        "",
    ],
}


def test_ovo_bench_prompts_are_the_benchmarks_to_the_byte(ovo):
    folder, file, stream = ovo
    (video,) = ovo_bench.load([file], [folder]).videos
    options, _ = made.options_of(stream, 0)
    pairs = zip("ABCD", options, strict=True)
    lettered = "; ".join(f"{letter}. {option}" for letter, option in pairs) + ";"
    asked = {item.task: item.text for item in reversed(video.items)}
    for task, lines in OVO_PROMPTS.items():
        text = "\n".join(lines).replace("{0}", stream.things[0].shape).replace("{1}", lettered)
        assert asked[task].encode() == text.encode()


def test_ovo_bench_counts_by_id_and_names_doubles_and_what_has_none(ovo, tmp_path):
    folder, file, _ = ovo
    data = json.loads(file.read_text())
    double = {**data[1], "question": "asked twice?"}
    without = {key: value for key, value in data[9].items() if key != "id"}
    spoilt = made.write_json(
        tmp_path / "ovo.json", [*data[:5], double, *data[6:], without, data[0]]
    )
    dataset = ovo_bench.load([spoilt], [folder])
    once = {f"ovo/{n}" for n in range(9) if n != 5}
    forward = {f"ovo/{name}.{n}" for name in (9, 10, 11, "entry-12") for n in (0, 1)}
    assert set(dataset.items) == once | forward
    assert not any("asked twice?" in item.text for item in dataset.items.values())
    assert dataset.remarks == (
        "ovo.json: entries whose id came before, not asked again (2): "
        "1 (entry 5, first as entry 1), 0 (entry 13, first as entry 0)",
        "ovo.json: entries without an id (1): 12",
    )
    assert ovo_bench.load([file], [folder]).remarks == ()


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=st.lists(st.text("AB. x'", max_size=6), min_size=4, max_size=7))
def test_of_more_than_four_options_the_first_four_are_shown(streaming, tmp_path, options):
    """The benchmark's loop gives the list to a format with four places."""
    folder, (real, *_), _ = streaming
    data = json.loads(real.read_text())
    data[1]["questions"][1]["options"] = options
    file = made.write_json(tmp_path / "omni.json", data)
    dataset = streamingbench.load([file], [folder])
    item = dataset.videos[1].items[1]
    shown = options
    if not options[0].startswith("A."):
        shown = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False)]
    assert item.text.endswith("\n\nOptions:\n{}\n{}\n{}\n{}\n\nThe best option is:".format(*shown))
    named = f"(1): omni/4 ({len(options)} options)"
    assert [remark.endswith(named) for remark in dataset.remarks] == [True] * (len(options) > 4)


@pytest.mark.parametrize("form", ["seconds", "frames", "rekv", "rekv-npy"])
def test_rvs_asks_at_the_end_of_the_span(tmp_path, form):
    file, stream = made.rvs(tmp_path, form)
    (video,) = rvs.load([file], [tmp_path / "frames"]).videos
    ending = {"frames": "", "rekv-npy": ".npy"}.get(form, ".mp4")
    assert video.path == tmp_path / "frames" / f"film{ending}"
    at = [made.after(stream, thing) for thing in range(3)]
    if form == "frames":  # half a frame a second: frame 2 t comes at 4 t
        at = [4 * each for each in at]
    assert [item.times for item in video.items] == [(each,) for each in at]
    assert [item.task for item in video.items] == ["first", "color", "color"]
    assert video.items[0].text == f"what color was the {stream.things[0].shape}?", (
        "no prompt around it"
    )
    if form == "frames":
        (faster,) = rvs.load([file], [tmp_path / "frames"], Fraction(2)).videos
        assert [item.times for item in faster.items] == [
            (made.after(stream, thing),) for thing in range(3)
        ]


def test_a_video_is_found_by_the_longest_ending_of_its_name(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    assert find_video([tmp_path], "/mnt/data/clips/a.mp4") == tmp_path / "clips" / "a.mp4"
    assert find_video([tmp_path / "none", tmp_path], "./elsewhere/b.mp4") == tmp_path / "b.mp4"
    assert find_video([tmp_path], "c.mp4") is None
    assert find_video([tmp_path / "clips"], "../b.mp4") is None, "nothing outside the folders"
    assert find_any([tmp_path], ["c", "a"]) == tmp_path / "a.mp4"


WRONG = [
    (
        streamingbench,
        "real.json",
        lambda data: data[0]["questions"][1].pop("answer"),
        "entry 0, questions, entry 1: key 'answer' is missing",
    ),
    (
        streamingbench,
        "real.json",
        lambda data: data[0]["questions"][1].update(answer="E"),
        "'answer' is 'E': give one letter of ABCD",
    ),
    (
        streamingbench,
        "real.json",
        lambda data: data[1]["questions"][0].update(time_stamp="1 o'clock"),
        "time_stamp' is \"1 o'clock\"",
    ),
    (
        streamingbench,
        "real.json",
        lambda data: data[1]["questions"][0].update(options=["red"]),
        "give 4 options or more",
    ),
    (
        streamingbench,
        "real.json",
        lambda data: data[1].update(questions={}),
        "entry 1: 'questions' is {}: give a list",
    ),
    (streamingbench, "real.json", lambda data: data.append(7), "entry 2 is 7: give an object"),
    (
        streamingbench,
        "proactive.json",
        lambda data: data[0]["questions"][0].update(time_stamp="1:00:00"),
        "that is not before time_stamp",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[3].update(task="OCD"),
        "entry 3: 'task' is 'OCD': give one of OCR, ",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[0].update(gt=4),
        "give the index of one of its 4 options",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[0].update(realtime="3"),
        "entry 0: 'realtime' is '3': give a number of seconds",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[0].update(realtime=float("nan")),
        "give a number of seconds",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[9]["test_info"][1].pop("count"),
        "entry 9, test_info, entry 1: key 'count' is missing",
    ),
    (
        ovo_bench,
        "ovo.json",
        lambda data: data[10]["test_info"][0].update(type=2),
        "give 0 for No or 1 for Yes",
    ),
]


@pytest.mark.parametrize(("benchmark", "name", "spoil", "said"), WRONG)
def test_wrong_data_is_named_in_one_line(streaming, ovo, tmp_path, benchmark, name, spoil, said):
    folder = ovo[0] if benchmark is ovo_bench else streaming[0]
    data = json.loads((folder / name).read_text())
    spoil(data)
    file = made.write_json(tmp_path / name, data)
    with pytest.raises(ConfigError) as refusal:
        benchmark.load([file], [folder])
    line = str(refusal.value)
    assert said in line
    assert str(file) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.json", None, "cannot be read"),
        ("not.json", "[", "is not JSON"),
        ("object.json", "{}", "give a list of objects"),
        ("bad.csv", "question_id,answer\nx,A\n", "row 2: 'question_id' is 'x': give one such as"),
        (
            "short.csv",
            "question_id\nReal-Time Visual Understanding_sample_1_1\n",
            "row 2: key 'time_stamp' is missing",
        ),
    ],
)
def test_files_that_are_no_benchmark_are_refused(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        streamingbench.load([tmp_path / name], [tmp_path])


def test_a_frame_that_is_not_in_the_folder_is_refused(tmp_path):
    file, _ = made.rvs(tmp_path, "frames")
    data = json.loads(file.read_text())
    data[1]["end_time"] = "shot_9999_img_0.jpg"
    made.write_json(file, data)
    with pytest.raises(ConfigError, match=r"entry 1: 'end_time' is 'shot_9999_img_0.jpg'"):
        rvs.load([file], [tmp_path / "frames"])
