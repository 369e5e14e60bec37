"""How the tiny model is taught to speak by itself: what is to be said when, how it is laid out,
what is saved, how it is scored."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.sizes import examples
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.qwen2_5_vl.adapter import read_adapter
from vicort.export.tiny.batches import IGNORED
from vicort.export.tiny.evaluate import load_model
from vicort.export.tiny.evaluation_files import HELD_OUT, evaluation_stream
from vicort.export.tiny.live import evaluate_live, train_live
from vicort.export.tiny.live.evaluate_live import (
    ADAPTER,
    SETTINGS,
    VALIDATION,
    Film,
    LiveSpeaker,
    is_silent,
    merged,
    true_turns,
    watch,
)
from vicort.export.tiny.live.lora import adapter_state, save_adapter, wrap
from vicort.export.tiny.live.scene_layout import FIRST_WORD, SILENCE, SceneLayout
from vicort.export.tiny.live.scene_streams import SceneRecipe, compose
from vicort.export.tiny.live.scenes import Scene, SceneTurn, Target, make_scene, make_scenes
from vicort.export.tiny.live.score import Said, Score, poisson_interval, total, wilson
from vicort.export.tiny.live.spoken_turn import SpokenTurn, TurnScore, units_tried_later
from vicort.export.tiny.looks import HELD_OUT_FINISHES, Camera, Look
from vicort.export.tiny.model import CHECKPOINT, encode_units, new_model, save_checkpoint
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.reels import MIXED, Reel, labels
from vicort.export.tiny.tokenizer import VOCABULARY, make_tokenizer
from vicort.export.tiny.video import letterbox
from vicort.export.tiny.world import COLORS, SHAPES, StreamPlan, Thing, make_stream
from vicort.runtime.policies.speech import StreamingEos
from vicort.runtime.policies.system import load_system

torch.set_num_threads(1)
PLAIN = SceneRecipe(missed=0, spurious=0, questions=0, twice=0, late=0, unasked=0, bounded=0)
FAST = StreamPlan(stay=(0.6, 3.0), gap=(0.0, 1.5), touching=0.5, **MIXED)


def reels(seed: int, count: int = 4) -> list[Reel]:
    """Of labels alone."""
    made = []
    for k in range(count):
        stream = make_stream(seed * 100 + k, 8, lead=2.0, tail=2.0, plan=FAST)
        times = [Fraction(index, 2) for index in range(4 * int(stream.duration / 2))]
        units = np.zeros((len(times) // 2, 16, 8), np.float32)
        seconds = np.array([float(time) for time in times]).reshape(-1, 2)
        made.append(Reel(units, labels(stream, times), seconds, stream.things, stream.aspect))
    return made


def looks_of(scene: Scene) -> list[list[str]]:
    """The looks that each unit shows, in the order in which they come."""
    things = scene.episode.things
    return [
        [f"{things[k].color} {things[k].shape}" for frame in unit for k in frame if k >= 0]
        for unit in scene.episode.there.tolist()
    ]


def reported_plainly(scene: Scene) -> dict[int, str]:
    """Units before -> words, read off the looks alone: a look is reported once until it was unseen
    for more than two units."""
    asked = [(turn.unit, turn.question) for turn in scene.turns if turn.question]
    unseen: dict[str, int] = {}
    reported: set[str] = set()
    said = {}
    for unit, looks in enumerate(looks_of(scene)):
        reported -= {look for look in reported if unseen[look] > 2}
        due = [
            look
            for look in dict.fromkeys(looks)
            if look not in reported
            and any(at <= unit and is_meant(look, text) for at, text in asked)
        ]
        if due:
            said[unit + 1] = " and ".join(due)
        reported |= set(due)
        unseen = {look: 0 if look in looks else unseen.get(look, 0) + 1 for look in reported}
    return said


def is_meant(look: str, instruction: str) -> bool:
    words = set(instruction.split())
    named = words & {*SHAPES, *COLORS}
    return not named or bool(named & set(look.split()))


def said_in(scene: Scene) -> dict[int, str]:
    return {turn.unit: turn.answer for turn in scene.turns if not turn.question}


@given(st.integers(0, 10**6), st.integers(1, 60))
@settings(max_examples=examples(60))
def test_each_thing_that_was_asked_for_is_reported_once_and_all_else_passed_over(
    seed: int, length: int
) -> None:
    scene = make_scene(np.random.default_rng(seed), reels(seed % 7), PLAIN, length)
    (instruction,) = [turn for turn in scene.turns if turn.question]
    assert (instruction.unit, instruction.answer) == (0, "yes")
    spoken = said_in(scene)
    assert spoken == reported_plainly(scene)
    assert scene.silent.tolist() == [unit + 1 not in spoken for unit in range(len(scene.silent))]


@given(st.integers(0, 10**6))
@settings(max_examples=examples(40))
def test_an_instruction_that_comes_late_is_about_what_is_there_and_what_comes(seed: int) -> None:
    recipe = replace(PLAIN, late=1, twice=1, stay=0.5, blink=0.5)
    scene = make_scene(np.random.default_rng(seed), reels(seed % 7), recipe, 24)
    assert said_in(scene) == reported_plainly(scene)


@given(st.integers(0, 10**6))
@settings(max_examples=examples(40))
def test_what_is_missed_is_reported_a_unit_later_and_what_was_said_wrongly_teaches_nothing(
    seed: int,
) -> None:
    recipe = replace(PLAIN, missed=1, spurious=1, present=1, sections=0, blink=0)
    scene = make_scene(np.random.default_rng(seed), reels(seed % 7), recipe, 30)
    said = {turn.unit for turn in scene.turns if not turn.question}
    wrong = {turn.unit for turn in scene.turns if not turn.learnt}
    assert len(wrong) <= 1
    for unit in range(len(scene.silent)):
        assert not (scene.silent[unit] and unit + 1 in said)
    for unit in sorted(said - wrong):
        assert not scene.silent[unit - 2]  # it was there a unit before, where there is no loss


@given(st.integers(0, 10**6), st.integers(1, 90))
@settings(max_examples=examples(40))
def test_streams_are_made_of_units_that_show_what_they_say(seed: int, length: int) -> None:
    source = reels(seed % 5)
    episode = compose(
        np.random.default_rng(seed), source, length, replace(SceneRecipe(), blink=0.5)
    )
    shown = [unit for reel in source for unit in pictured(reel.there, reel.things)]
    here = pictured(episode.there, episode.things)
    assert len(here) == len(episode.units) == length
    assert here == [shown[row] for row in episode.units]
    assert list(dict.fromkeys(k for k in episode.there.ravel() if k >= 0)) == list(
        range(len(episode.things))
    )
    assert (np.diff(episode.times) >= 1).all()


def pictured(there: np.ndarray, things: tuple[Thing, ...]) -> list[list]:
    return [
        [None if k < 0 else (things[k].shape, things[k].color) for k in unit.ravel()]
        for unit in there
    ]


def test_streams_have_all_that_the_world_has() -> None:
    """Things that follow each other within a unit, two beside each other, long waits, long stays, a
    shape again in another colour, and one that is unseen for a moment."""
    rng, recipe = np.random.default_rng(0), SceneRecipe(blink=0.3)
    found = dict.fromkeys(("touching", "beside", "waits", "stays", "again", "unseen"), 0)
    for number in range(60):
        scene = make_scene(rng, reels(number % 7), recipe, 80)
        there = scene.episode.there
        first, second = there[:, 0, 0], there[:, 1, 0]
        found["touching"] += int(((first >= 0) & (second >= 0) & (first != second)).sum())
        found["beside"] += int((there[..., 1] >= 0).any(1).sum())
        nothing = longest_run((there == -1).all((1, 2)))
        found["waits"] += 5 <= nothing <= 60 + 10
        shows = [(there == k).any((1, 2)) for k in range(len(scene.episode.things))]
        found["stays"] += any(longest_run(units) >= 18 for units in shows)
        found["unseen"] += any(has_hole(units) for units in shows)
        shapes = [thing.shape for thing in scene.episode.things]
        found["again"] += len(set(shapes)) < len(shapes)
    assert min(found.values()) >= 3, found


def longest_run(marks: np.ndarray) -> int:
    return max(len(part) for part in "".join("x" if each else " " for each in marks).split(" "))


def has_hole(marks: np.ndarray) -> bool:
    return len("".join("x" if each else " " for each in marks).split()) > 1


def test_a_batch_has_streams_of_one_length_and_its_number_of_units() -> None:
    for seed in range(12):
        scenes = make_scenes(np.random.default_rng(seed), reels(seed), SceneRecipe(units=100))
        lengths = {len(scene.silent) for scene in scenes}
        assert len(lengths) == 1
        assert 50 < len(scenes) * lengths.pop() <= 100


@given(st.integers(0, 10**6))
@settings(max_examples=examples(30))
def test_layout(seed: int) -> None:
    """After the last token of each unit comes the decision; positions go on from time and text
    alike; nobody sees what comes."""
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, reels(seed % 5), SceneRecipe(spurious=0.0, missed=0.0), 20)
    cells, end, tokenizer = (
        SceneLayout().cells(rng, scene),
        VOCABULARY.index("<|im_end|>"),
        make_tokenizer(),
    )
    visual = np.flatnonzero(cells["feature"] >= 0).reshape(-1, 16)
    assert (cells["feature"][visual] // 16 == scene.episode.units[:, None]).all()
    spoken = {
        turn.unit: tokenizer.encode(turn.answer).ids for turn in scene.turns if not turn.question
    }
    for unit, row in enumerate(visual):
        words = spoken.get(unit + 1)
        assert cells["labels"][row[:-1]].tolist() == [IGNORED] * 15
        assert cells["labels"][row[-1]] == (words[0] if words else end)
        assert cells["kinds"][row[-1]] == (FIRST_WORD if words else SILENCE)
        if words:
            after = slice(row[-1] + 1, row[-1] + 2 + len(words))
            assert cells["tokens"][after].tolist() == [*words, end]
            assert cells["labels"][after].tolist() == [*words[1:], end, IGNORED]
    t = cells["positions"][0]
    assert (np.diff(t[visual[:, 0]]) >= np.diff(scene.episode.times)).all()
    for place in range(1, len(t)):
        text, after_text = cells["feature"][place] < 0, cells["feature"][place - 1] < 0
        if text:
            assert (
                cells["positions"][:, place] == max(1, cells["positions"][:, :place].max() + 1)
            ).all()
        elif after_text and place > 2:
            assert t[place] >= t[place - 1] + 1
    assert not np.triu(cells["mask"], 1).any()


def test_the_adapter_begins_as_nothing_and_its_files_hold_what_was_trained(tmp_path: Path) -> None:
    plain, model = new_model(0), new_model(0)
    trained = wrap(model, seed=1)
    inputs = {
        "input_ids": torch.arange(8, 20)[None],
        "position_ids": torch.arange(12).expand(3, 1, 12),
    }
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits)
        generator = torch.Generator().manual_seed(2)
        for parameter in trained:  # to what bf16 can hold
            parameter.copy_(torch.randn(parameter.shape, generator=generator).bfloat16() / 16)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    save_adapter(model, tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert held.keys() == adapter_state(model).keys()
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in held
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    with torch.no_grad():
        ours = merged(plain, read_adapter(tmp_path))(**inputs).logits
        torch.testing.assert_close(ours, model(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint beside which a short run trains on reels of random features."""

    def extend(self, model, device, pool) -> None:
        generator = torch.Generator().manual_seed(0)
        for reel in reels(1):
            rows = np.arange(self._rows, self._rows + len(reel.there))
            self.reels.append(replace(reel, units=rows))
            features = torch.randn((len(rows), 16, 128), generator=generator)
            self._features.append(features.bfloat16())
            self._rows += len(rows)

    monkeypatch.setattr(train_live.EncodedPool, "extend", extend)
    monkeypatch.setattr(
        train_live, "ASKED", replace(train_live.ASKED, streams=1, questions=2, reels=2)
    )
    short = SceneRecipe(units=8, length=(4, 4))
    monkeypatch.setattr(train_live, "STAGES", (train_live.LiveStage(1.0, short, (1e-3, 1e-3)),))
    save_checkpoint(new_model(0), tmp_path / "base")
    return tmp_path


def test_training_is_the_same_each_time_and_goes_on_where_it_stopped(small_run: Path) -> None:
    base = small_run / "base"
    train_live.train(small_run, small_run / "whole", base, steps=3)
    train_live.train(small_run, small_run / "parts", base, steps=1)
    train_live.train(small_run, small_run / "parts", base, steps=3)
    one, other = (
        load_file(small_run / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(one[name].any() for name in one if "lora_B" in name)


def test_a_run_does_not_go_on_beside_another_checkpoint(small_run: Path) -> None:
    train_live.train(small_run, small_run / "run", small_run / "base", steps=1)
    save_checkpoint(new_model(1), small_run / "other")
    with pytest.raises(ValueError, match=r"other.*--base"):
        train_live.start_or_resume(small_run / "run", small_run / "other")


def test_stages_follow_each_other_over_any_number_of_steps() -> None:
    for steps in (100, 4000):
        recipes = [train_live.stage_at(step, steps)[0] for step in range(steps)]
        assert list(dict.fromkeys(recipes)) == [stage.recipe for stage in train_live.STAGES]
        rates = [train_live.stage_at(step, steps)[1] for step in range(30, steps)]
        assert rates == sorted(rates, reverse=True)
    assert sum(stage.share for stage in train_live.STAGES) == pytest.approx(1)


def star(start: float, end: float, color: str = "red") -> Thing:
    return Thing("star", color, start, end, 0.3, 0, 0, "nowhere", 0, 0)


A_STAR = Target("a star", shape="star")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([], (0, 0, 0, 0)),
        ([(3, "red star")], (1, 1, 1, 0)),
        ([(4, "red star")], (1, 0, 1, 0)),  # late
        ([(3, "red cross")], (1, 1, 0, 0)),  # its words are wrong
        ([(3, "red star"), (4, "red star")], (1, 1, 1, 1)),  # reported twice
        ([(2, "red star")], (0, 0, 0, 1)),  # it was not there yet
        ([(9, "red star")], (0, 0, 0, 1)),  # it was gone
        ([(13, "white star and blue star")], (2, 2, 2, 0)),
        ([(13, "blue star")], (1, 1, 1, 0)),
        ([(13, "blue star"), (14, "blue star")], (2, 1, 1, 0)),
        ([(13, "white star and blue star and red star")], (2, 2, 2, 1)),
    ],
)
def test_score(said: list[tuple[int, str]], found: tuple[int, ...]) -> None:
    things = (
        star(2.2, 7.0),
        replace(star(2.2, 7.0), shape="cross"),
        star(12.1, 15.0, "white"),
        star(12.6, 15.0, "blue"),
    )
    score = Score()
    score.add(things, A_STAR, [Said(Fraction(at), text) for at, text in said])
    assert score.appearances == 3
    assert (score.reported, score.in_time, score.worded, score.false_alarms) == found


def test_report_has_the_intervals_of_its_sums() -> None:
    one = Score(600, 50, 49, 48, 47, 24.5, 0)
    report = total([one, replace(one, false_alarms=2)]).report()
    assert report["minutes"] == 20
    assert report["in_time_share"] == 0.96
    assert report["delay_s"] == 0.5
    assert report["false_alarms_in_10_minutes"] == 1
    assert report["in_time_interval"] == [0.9016, 0.9843]
    assert report["false_alarms_interval"] == [0.1211, 3.6123]
    assert Score(seconds=60).report()["in_time_interval"] is None


@pytest.mark.parametrize(
    ("count", "low", "high"),  # of published tables
    [(0, 0.0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (100, 81.3640, 121.6274)],
)
def test_interval_of_a_count(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=1e-3)


def test_interval_of_a_share() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) is None


def test_the_threshold_is_that_of_the_lowest_cost() -> None:
    minutes = Score(600, 100, 100, 100, 100, 50.0, 0)
    scores = {
        0.2: replace(minutes, in_time=85),  # three times the goal
        0.5: replace(minutes, in_time=95, false_alarms=1),  # both goals
        0.9: replace(minutes, false_alarms=4),
    }
    assert evaluate_live.chosen(scores) == 0.5
    assert evaluate_live.chosen(dict.fromkeys((0.5, 0.8, 0.95), minutes)) == 0.8


def test_streams_of_the_score_have_what_the_world_has_and_training_never_saw() -> None:
    streams = {
        setting.name: [evaluation_stream(setting, HELD_OUT + k)[0] for k in range(6)]
        for setting in SETTINGS
    }
    assert len(streams) == len(SETTINGS)
    waits = [gap for stream in streams["held-out, waits"] for gap in gaps_of(stream.things)]
    assert max(waits) > 20
    assert min(gap for gap in waits if gap > 0) > 4.9
    assert any(thing.end - thing.start > 10 for s in streams["known, waits"] for thing in s.things)
    assert all(not stream.things for stream in streams["held-out, a minute of nothing"])
    assert streams["known, a minute of nothing"][0].duration > 60
    touching = [gap for stream in streams["known, touching"] for gap in gaps_of(stream.things)]
    assert max(touching) == 0
    assert min(touching) < 0  # beside each other
    for setting in SETTINGS:
        drawn = [setting.look(np.random.default_rng(k), 20.0) for k in range(20)]
        held_out = {look.finish in HELD_OUT_FINISHES for look in drawn}
        assert held_out == {setting.name.startswith("held-out")}
    assert all(setting.name.startswith("known") for setting in evaluate_live.CHOSEN_ON)
    assert VALIDATION + 10_000 < HELD_OUT


def gaps_of(things: tuple[Thing, ...]) -> list[float]:
    """Seconds of nothing before each thing but the first; less than 0 beside another."""
    return [new.start - max(thing.end for thing in things[:k]) for k, new in enumerate(things) if k]


def test_the_embedded_adapter_is_small_and_says_what_it_is() -> None:
    assert {path.name for path in ADAPTER.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) < 1e6
    assert json.loads((ADAPTER / "adapter_config.json").read_text())["peft_type"] == "LORA"


def speech_in_use() -> StreamingEos:
    speech = load_system("videollm-online").speaks.by_itself
    assert speech is not None
    return speech


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation_4_fps.json"])
def test_the_system_has_the_threshold_that_was_chosen_for_the_adapter(name: str) -> None:
    measured = json.loads((Path(evaluate_live.__file__).parent / name).read_text())
    speech = speech_in_use()
    assert measured["threshold"] == {"silence": speech.threshold, "rule": speech.rule}


def adapted() -> tuple[Qwen2_5_VLForConditionalGeneration, Tokenizer]:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    return merged(load_model(), read_adapter(ADAPTER)), tokenizer


def film_of(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> Film:
    stream = make_stream(seed, 5, lead=1.3, tail=2.0)
    times = [Fraction(index, 2) for index in range(4 * int(stream.duration / 2))]
    painter = Painter(stream, 112, 112, Look(camera=Camera(strength=4.0)))
    frames = np.stack([letterbox(painter.frame(float(time))) for time in times])
    with torch.inference_mode():
        features = encode_units(model, torch.from_numpy(frames.reshape(-1, 2, 112, 112, 3)))
    return Film(stream.things, stream.duration, features, times, labels(stream, times))


def test_the_embedded_adapter_reports_what_it_was_asked_for() -> None:
    (model, tokenizer), score, turns = adapted(), Score(), TurnScore()
    speech = speech_in_use()
    for seed in range(HELD_OUT + 500, HELD_OUT + 503):
        film = film_of(model, seed)
        for thing in film.things:
            target = Target(f"a {thing.shape}", shape=thing.shape)
            speakers = [
                LiveSpeaker(model, tokenizer, speech.threshold, speech.rule) for _ in range(2)
            ]
            score.add(film.things, target, watch(speakers[0], target, film))
            score.seconds += film.seconds
            turns.add(true_turns(speakers[1], target, film), unit_seconds=1.0)
    # The figures of held-out files are in export/tiny/README.md.
    assert score.appearances == 15
    assert score.in_time >= 13, score
    assert score.worded >= score.reported - 1
    assert score.false_alarms <= 2, score
    report = turns.report()
    assert report["turns"] == score.appearances
    assert 0.8 < report["fluency"] <= 1, report
    assert report["lm_ppl"] < 1.5, report


@given(
    st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=6),
    st.floats(0.05, 1),
    st.sampled_from(["published", "threshold"]),
)
@settings(max_examples=examples(100))
def test_it_is_silent_as_the_runtime_is(logits: list[float], threshold: float, rule: str) -> None:
    chances = np.exp(logits) / np.exp(logits).sum()
    silence, word = chances[train_live.END], np.delete(chances, train_live.END).max()
    assume(min(abs(silence - threshold), abs(silence - word)) > 1e-5)
    expected = StreamingEos(threshold=threshold, rule=rule).is_silent(silence, word)
    assert is_silent(torch.tensor(logits), threshold, rule) == expected


def plain_turn(
    silent: list[bool], later: list[bool], correct: list[bool]
) -> tuple[int, float, float]:
    """Difference in units, fluency and LM-correctness, one decision and one token at a time."""
    words = 0
    while words < len(correct) and correct[words]:
        words += 1
    total = len(silent) + len(correct)
    for unit, quiet in enumerate(silent):
        if not quiet:
            early = len(silent) - 1 - unit
            right = len(silent) - early + (0 if early else words)
            return early, right / total, words / len(correct)
    for units, quiet in enumerate(later, start=1):
        if not quiet:
            return -units, (len(silent) - 1) / total, words / len(correct)
    right = len(silent) - 1 if later else len(silent) + words
    return -len(later), right / total, words / len(correct)


BOOLEANS = st.lists(st.booleans(), max_size=6)


@given(BOOLEANS.filter(len), BOOLEANS, BOOLEANS.filter(len), st.integers(0, 99))
@settings(max_examples=examples(200))
def test_metrics_of_a_turn(
    silent: list[bool], later: list[bool], correct: list[bool], seed: int
) -> None:
    chances = np.random.default_rng(seed).uniform(0.01, 1, len(correct))
    turn = SpokenTurn(np.array(silent), np.array(later, bool), np.array(correct), np.log(chances))
    found = turn.difference, turn.fluency, turn.correctness
    assert found == pytest.approx(plain_turn(silent, later, correct))
    assert turn.perplexity == pytest.approx(np.prod(chances) ** (-1 / len(chances)))


def test_metrics_are_means_over_turns_of_each_stream_and_then_over_streams() -> None:
    def turn(*silent: bool, correct: bool = True, later: int = 1) -> SpokenTurn:
        tried = np.ones(later, bool)
        return SpokenTurn(np.array(silent), tried, np.array([correct]), np.zeros(1))

    score = TurnScore()
    score.add([turn(True, False), turn(False, True, True, correct=False)], unit_seconds=0.5)
    score.add([], unit_seconds=0.5)
    other = TurnScore()
    other.add([turn(True, True, True), turn(True, later=0)], unit_seconds=0.5)
    score += other
    assert score.report() == {
        "streams": 2,
        "turns": 4,
        "too_early": 1,
        "too_late": 1,
        "silent_and_counted_as_right": 1,
        "time_diff_s": 0.375,  # of (0 + 1) / 2 and (0.5 + 0) / 2
        "fluency": round((((3 / 3) + (1 / 4)) / 2 + (2 / 4 + 2 / 2) / 2) / 2, 4),
        "lm_correctness": 0.75,
        "lm_ppl": 1.0,
    }
    assert TurnScore().report()["fluency"] is None
    assert [units_tried_later(4, 9), units_tried_later(4, 2), units_tried_later(1, 3)] == [3, 2, 0]


@pytest.mark.parametrize("rule", ["published", "threshold"])
@torch.inference_mode()
def test_a_turn_is_what_the_model_would_do_after_the_true_stream(rule: str) -> None:
    """Each decision and each token by a speaker of its own, which heard what was right before."""
    model, tokenizer = adapted()
    film, target, threshold = film_of(model, HELD_OUT + 501), Target("something"), 0.999
    reports, units = film.reports(target), film.units()
    ends = [0, *(unit + 1 for unit, _ in reports)]
    turns = true_turns(LiveSpeaker(model, tokenizer, threshold, rule), target, film)

    def heard(turn: int) -> LiveSpeaker:
        """After the true stream before a turn."""
        speaker = LiveSpeaker(model, tokenizer, threshold, rule)
        speaker.instruct(f"say when {target.words} appears")
        for number in range(turn):
            for each in units[ends[number] : ends[number + 1]]:
                speaker._after_unit(*each)
            for token in [*tokenizer.encode(reports[number][1]).ids, train_live.END]:
                speaker._place([token])
        return speaker

    assert len(turns) == len(reports) > 2
    for number, turn in enumerate(turns):
        speaker, length = heard(number), len(turn.silent)
        assert length == ends[number + 1] - ends[number]
        after = [speaker._after_unit(*each) for each in units[ends[number] : ends[number + 1]]]
        assert [speaker._is_silent(logits) for logits in after] == turn.silent.tolist()
        expected, logits = [], after[-1].clone()
        logits[train_live.END] = -torch.inf
        for token in [*tokenizer.encode(reports[number][1]).ids, train_live.END]:
            expected.append(float(logits.log_softmax(-1)[token]))
            logits = speaker._place([token])
        np.testing.assert_allclose(turn.log_probability, expected, atol=1e-4)


def test_units_that_are_tried_leave_no_trace() -> None:
    model, tokenizer = adapted()
    film, target = film_of(model, HELD_OUT + 501), Target("a star", shape="star")
    units, found = film.units(), []
    for later in ([], units[2:5]):
        speaker = LiveSpeaker(model, tokenizer, 1e-9, "threshold")  # it is always silent
        speaker.instruct(f"say when {target.words} appears")
        turns = [speaker.turn(units[:2], "red star", later), speaker.turn(units[2:4], "cross", [])]
        found.append([turn.log_probability for turn in turns])
        assert turns[0].later.tolist() == [True] * len(later)
    np.testing.assert_array_equal(np.concatenate(found[0]), np.concatenate(found[1]))


def test_turns_are_in_the_order_of_the_stream() -> None:
    for seed in range(40):
        scene = make_scene(
            np.random.default_rng(seed),
            reels(seed % 5),
            SceneRecipe(questions=1.0, twice=1.0, late=1.0),
            20,
        )
        keys = [(turn.unit, bool(turn.question)) for turn in scene.turns]
        assert keys == sorted(keys)
        assert all(
            isinstance(turn, SceneTurn) and 0 <= turn.unit <= len(scene.silent)
            for turn in scene.turns
        )
