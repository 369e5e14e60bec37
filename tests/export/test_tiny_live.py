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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.sizes import examples

from vicort.export.qwen2_5_vl.adapter import read_adapter
from vicort.export.tiny.batches import IGNORED
from vicort.export.tiny.evaluate import HELD_OUT, load_model
from vicort.export.tiny.live import evaluate_live, train_live
from vicort.export.tiny.live.evaluate_live import (
    ADAPTER,
    LiveSpeaker,
    Said,
    Score,
    Target,
    merged,
    watch,
)
from vicort.export.tiny.live.lora import adapter_state, save_adapter, wrap
from vicort.export.tiny.live.scene_layout import FIRST_WORD, SILENCE, SceneLayout
from vicort.export.tiny.live.scenes import SceneRecipe, SceneTurn, make_scene
from vicort.export.tiny.model import encode_units, new_model
from vicort.export.tiny.reels import Reel, labels
from vicort.export.tiny.tokenizer import VOCABULARY, make_tokenizer
from vicort.export.tiny.video import letterbox
from vicort.export.tiny.world import SHAPES, Painter, make_stream

torch.set_num_threads(1)
PLAIN = SceneRecipe(missed=0, spurious=0, questions=0, twice=0, late=0, unasked=0, bounded=0)


def reels(seed: int, count: int = 3) -> list[Reel]:
    """Of labels alone."""
    made = []
    for k in range(count):
        stream = make_stream(seed * 100 + k, 7, lead=2.0, tail=2.0)
        times = list(np.arange(2 * int(stream.duration)) / 2)
        made.append(
            Reel(
                np.zeros((len(times) // 2, 16, 8), np.float32), labels(stream, times), stream.things
            )
        )
    return made


def told_plainly(scene, words: str) -> list[tuple[int, str]]:
    """(units before, words): each matching thing at the first unit that shows it; of two in one
    unit the later one."""
    shown, said = set(), []
    for unit, pair in enumerate(scene.episode.there):
        new = [k for k in dict.fromkeys(pair.tolist()) if k >= 0 and k not in shown]
        new = [
            k
            for k in new
            if any(
                w in (scene.episode.things[k].shape, scene.episode.things[k].color, "any")
                for w in words.split()
            )
        ]
        if new:
            thing = scene.episode.things[new[-1]]
            said.append((unit + 1, f"{thing.color} {thing.shape}"))
            shown.update(new)
    return said


@given(st.integers(0, 10**6))
@settings(max_examples=examples(60))
def test_each_thing_that_was_asked_for_is_told_once_and_all_else_passed_over(seed: int) -> None:
    scene = make_scene(np.random.default_rng(seed), reels(seed % 7), PLAIN)
    (instruction,) = [turn for turn in scene.turns if turn.question]
    assert (instruction.unit, instruction.answer) == (0, "yes")
    words = instruction.question
    if not any(
        word in words.split()
        for word in (*SHAPES, "red", "green", "blue", "yellow", "white", "purple")
    ):
        words = "any"
    spoken = [(turn.unit, turn.answer) for turn in scene.turns if not turn.question]
    assert spoken == told_plainly(scene, words)
    assert scene.silent.tolist() == [
        unit + 1 not in dict(spoken) for unit in range(len(scene.silent))
    ]


@given(st.integers(0, 10**6))
@settings(max_examples=examples(40))
def test_what_is_missed_is_told_a_unit_later_and_what_was_said_wrongly_teaches_nothing(
    seed: int,
) -> None:
    recipe = SceneRecipe(
        missed=1.0, spurious=1.0, questions=0, twice=0, late=0, unasked=0, windows=0, present=1.0
    )
    scene = make_scene(np.random.default_rng(seed), reels(seed % 7), recipe)
    said = {turn.unit for turn in scene.turns if not turn.question}
    wrong = {turn.unit for turn in scene.turns if not turn.learnt}
    assert len(wrong) <= 1
    for unit in range(len(scene.silent)):
        assert not (scene.silent[unit] and unit + 1 in said)
    for unit in sorted(said - wrong):
        assert not scene.silent[unit - 2]  # it was there a unit before, where there is no loss


@given(st.integers(0, 10**6))
@settings(max_examples=examples(30))
def test_layout(seed: int) -> None:
    """Behind the last token of each unit stands the decision; positions go on from time and text
    alike; nobody sees what comes."""
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, reels(seed % 5), SceneRecipe(spurious=0.0, missed=0.0))
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
        text, behind_text = cells["feature"][place] < 0, cells["feature"][place - 1] < 0
        if text:
            assert (
                cells["positions"][:, place] == max(1, cells["positions"][:, :place].max() + 1)
            ).all()
        elif behind_text and place > 2:
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
        for parameter in trained:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    save_adapter(model, tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert held.keys() == adapter_state(model).keys()
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in held
    with torch.no_grad():
        ours = merged(plain, read_adapter(tmp_path))(**inputs).logits
        torch.testing.assert_close(ours, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_a_training_step_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train_live.EncodedReels, "draw", lambda self, rng, count: reels_of_features()
    )
    monkeypatch.setattr(train_live, "ASKED", replace(train_live.ASKED, streams=1, questions=2))
    monkeypatch.setattr(
        train_live, "STAGES", ((2, SceneRecipe(streams=1, longest=4), (1e-3, 1e-3)),)
    )

    def stepped() -> list[torch.Tensor]:
        run = train_live.start_or_resume(tmp_path)
        eyes = train_live.EncodedReels(run.model, tmp_path, tmp_path / "eyes")
        train_live.train_step(run, eyes, SceneLayout(), train_live.Composer(train_live.ASKED))
        return [parameter.detach().clone() for parameter in run.trained]

    assert all(torch.equal(one, other) for one, other in zip(stepped(), stepped(), strict=True))


def reels_of_features() -> list[Reel]:
    random = np.random.default_rng(0)
    return [
        Reel(random.standard_normal((len(r.there), 16, 128)).astype(np.float32), r.there, r.things)
        for r in reels(1)
    ]


def test_score() -> None:
    things = make_stream(3, 4, gap=(3.0, 3.0)).things
    target = Target("", shape=things[1].shape)
    right = f"{things[1].color} {things[1].shape}"
    begin, gone = Fraction(str(things[1].start)), Fraction(str(things[1].end))
    score = Score(seconds=120)
    score.add(
        things,
        target,
        [Said(begin + 1, right), Said(begin + Fraction(3, 2), right), Said(gone + 2, right)],
    )
    score.add(things, target, [Said(begin - 1, right), Said(begin + Fraction(1, 2), "red shoe")])
    score.add(things, target, [])
    assert score.report() == {
        "minutes": 2.0,
        "appearances": 3,
        "missed": 1,
        "right_words": 1,
        "time_diff_s": 0.75,
        "false_alarms": 3,
        "false_alarms_a_minute": 1.5,
    }


def test_streams_of_the_score_hold_their_silence_between_the_things() -> None:
    setting = next(setting for setting in evaluate_live.SETTINGS if setting.empties)
    stream = evaluate_live.stream_of(setting, HELD_OUT)
    gaps = np.diff([edge for thing in stream.things for edge in (thing.start, thing.end)])[1::2]
    assert len(stream.things) == 7
    assert sorted(gaps)[-1] >= setting.empties > sorted(gaps)[-2]
    assert stream.duration > stream.things[-1].end


def test_the_embedded_adapter_is_small_and_says_what_it_is() -> None:
    assert {path.name for path in ADAPTER.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) < 1e6
    assert json.loads((ADAPTER / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_the_embedded_adapter_tells_most_of_what_it_was_asked_for() -> None:
    model, score = merged(load_model(), read_adapter(ADAPTER)), Score()
    for seed in range(HELD_OUT + 500, HELD_OUT + 503):
        stream = make_stream(seed, 5, lead=1.3, tail=2.0)
        times = [Fraction(index, 2) for index in range(2 * int(stream.duration))]
        painter = Painter(stream, 112, 112)
        frames = np.stack([letterbox(painter.frame(float(time))) for time in times]).reshape(
            -1, 2, 112, 112, 3
        )
        with torch.inference_mode():
            features = encode_units(model, torch.from_numpy(frames))
        for thing in stream.things:
            target = Target(f"a {thing.shape}", shape=thing.shape)
            score.add(
                stream.things,
                target,
                watch(LiveSpeaker(model, train_live.THRESHOLD), target, features, times),
            )
            score.seconds += stream.duration
    # It is not a good one: held-out files gave 18 of 22, and one false alarm a minute
    # (export/tiny/README.md).
    assert score.appearances == 15
    assert score.reported >= 10, score
    assert score.worded >= score.reported - 1
    assert score.false_alarms <= score.seconds / 60 * 3, score
    assert score.late / score.reported < 1.5


def test_turns_are_in_the_order_of_the_stream() -> None:
    for seed in range(40):
        scene = make_scene(
            np.random.default_rng(seed),
            reels(seed % 5),
            SceneRecipe(questions=1.0, twice=1.0, late=1.0),
        )
        keys = [(turn.unit, bool(turn.question)) for turn in scene.turns]
        assert keys == sorted(keys)
        assert all(
            isinstance(turn, SceneTurn) and 0 <= turn.unit <= len(scene.silent)
            for turn in scene.turns
        )
