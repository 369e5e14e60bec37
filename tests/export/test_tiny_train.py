"""Training goes on after its last stage, stops when its time is over, and starts again where it
stopped, as if it had not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_reels import mixed_reel
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny import train as training
from vicort.export.tiny.batches import BatchRecipe, Composer, by_length, gather
from vicort.export.tiny.curve_picture import draw_curve
from vicort.export.tiny.model import encode_units, new_model, save_checkpoint
from vicort.export.tiny.reels import load_reel, save_reel
from vicort.export.tiny.train import (
    LONGER,
    STAGES,
    TrainingRun,
    TrainingStage,
    augmented,
    disturbance,
    disturbed,
    emphasised,
    forward,
    forward_by_length,
    stage_at,
    start_or_resume,
    train,
    train_step,
)
from vicort.export.tiny.world_questions import KINDS

torch.set_num_threads(1)
BEFORE = sum(stage.steps for stage in STAGES)
RECIPE = BatchRecipe(streams=1, questions=2, reels=2, things=(0, 2), empties=(0, 2), longest=4)
EYES = TrainingStage("eyes", 2, (1e-3, 1e-4), None, glances=(2, 2))
READING = TrainingStage("reading", 2, (1e-3, 1e-4), RECIPE)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for seed in range(2):
        save_reel(mixed_reel(seed, objects=2, drawn=True), folder / f"{seed:06}.json")
    return folder


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the committed checkpoint, whatever that one knows."""
    folder = tmp_path_factory.mktemp("committed")
    save_checkpoint(new_model(seed=7), folder)
    return folder


@pytest.fixture(autouse=True)
def small(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT", committed)
    monkeypatch.setattr(training, "LOG_EVERY", 1)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).state_dict()


def weights_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


# ---- stages


def test_the_longer_stage_comes_after_all_others() -> None:
    assert stage_at(BEFORE) is None
    assert stage_at(BEFORE + 3, (*STAGES, LONGER)) == (LONGER, 3 / LONGER.steps)
    assert stage_at(BEFORE + LONGER.steps, (*STAGES, LONGER)) is None


def test_a_new_run_begins_at_the_first_stage_with_the_eyes_of_the_committed_checkpoint(
    committed: Path, tmp_path: Path
) -> None:
    run = start_or_resume(tmp_path)
    assert (run.step, run.device, run.curve) == (0, torch.device("cpu"), [])
    begun, other = weights_of(run), weights_in(committed)
    same = {name for name in begun if torch.equal(begun[name], other[name])}
    assert {name for name in begun if ".visual." in name} <= same
    assert "model.language_model.layers.0.mlp.up_proj.weight" not in same


def test_the_eyes_are_trained_alone_and_reading_leaves_them_as_they_are(
    pool: Path, tmp_path: Path
) -> None:
    run, paths = start_or_resume(tmp_path, compiled=False), sorted(pool.glob("*.json"))
    begun = weights_of(run)
    loss, right, kinds = train_step(run, EYES, None, paths, 1e-3)
    assert loss > 0
    assert len(right) == len(kinds) == 4 * 14
    seen = weights_of(run)
    assert changed(begun, seen)
    assert all(".visual." in name for name in changed(begun, seen))
    run.encoded.extend(run.model, run.device, paths)
    train_step(run, READING, Composer(RECIPE), paths, 1e-3)
    read = weights_of(run)
    assert changed(seen, read)
    assert not any(".visual." in name for name in changed(seen, read))


def test_a_batch_in_groups_of_similar_lengths_is_the_same_batch(pool: Path, tmp_path: Path) -> None:
    run, rng = start_or_resume(tmp_path, compiled=False), np.random.default_rng(3)
    reels = [load_reel(path) for path in sorted(pool.glob("*.json"))]
    units, episodes = gather(rng, reels, replace(RECIPE, streams=6))
    features = encode_units(run.model, torch.from_numpy(units))
    batch = Composer(RECIPE).compose(rng, episodes, features.numpy(force=True))
    assert len({each.tokens.shape for each in by_length(batch, 4)}) > 1
    found = []
    for compute in (forward, forward_by_length):
        logits, labels, kinds = compute(run.model, batch, features.flatten(0, 1))
        losses = cross_entropy(logits, labels, reduction="none").tolist()
        found.append(sorted(zip(kinds.tolist(), labels.tolist(), losses, strict=True)))
    np.testing.assert_allclose(*map(np.array, found), atol=1e-4)


def test_some_units_are_darkened_and_none_leaves_its_range() -> None:
    units = np.full((400, 2, 112, 112, 3), 100, np.uint8)[:, :, :8, :8]
    seen = augmented(units, torch.Generator().manual_seed(1))
    assert seen.min() >= 0
    assert seen.max() <= 255
    level = seen.mean((1, 2, 3, 4))
    assert 0.1 < (level < 65).float().mean() < 0.35
    assert ((level > 70) & (level < 135)).float().mean() > 0.5
    assert not torch.equal(seen, augmented(units, torch.Generator().manual_seed(2)))


def test_light_and_thickness_differ_within_some_units() -> None:
    units = np.zeros((400, 2, 40, 40, 3), np.uint8)
    units[:, :, 16:24, 16:24] = 200
    # without what is the same for a whole unit, and without its noise
    frames, gain, bias, strength, light, thicker, noise = disturbance(
        units, torch.Generator().manual_seed(1)
    )
    plain = torch.ones_like(gain), torch.zeros_like(bias), torch.zeros_like(strength)
    seen = disturbed(frames, *plain, light, thicker, noise)
    sizes = (seen[:, 0, :, :, 0] > 0).sum((1, 2))
    found = {side: (sizes == side * side).float().mean().item() for side in (4, 6, 8, 10, 12)}
    assert sum(found.values()) == pytest.approx(1)
    assert found.pop(8) > 0.55
    assert all(0.04 < share < 0.14 for share in found.values())
    lit = seen[:, 0, 18:22, 18:22, 0].flatten(1)  # what all of them show
    uneven = (lit.amax(1) - lit.amin(1) > 5).float().mean()
    assert 0.1 < uneven < 0.5
    torch.testing.assert_close(seen[:, 0], seen[:, 1])


def test_kinds_that_are_learnt_late_count_more() -> None:
    late, early = list(KINDS).index("count"), list(KINDS).index("color")
    losses = torch.tensor([1.0, 3.0, 3.0])
    mean = emphasised(losses, torch.tensor([late, early, early])).item()
    assert 1.0 < mean < losses.mean().item()
    assert emphasised(losses, torch.tensor([early] * 3)).item() == pytest.approx(7 / 3)


def test_matrices_of_the_blocks_are_trained_by_muon_and_the_rest_by_adam(tmp_path: Path) -> None:
    run = start_or_resume(tmp_path)
    names = {id(each): name for name, each in run.model.named_parameters()}
    names |= {id(each): f"sight.{name}" for name, each in run.sight.named_parameters()}
    by_muon, by_adam = (
        [id(each) for group in optimizer.param_groups for each in group["params"]]
        for optimizer in run.optimizers
    )
    assert sorted(by_muon + by_adam) == sorted(names)  # every parameter, once
    of_blocks = {
        name
        for name, each in run.model.named_parameters()
        if each.ndim == 2 and any(part in name for part in (".blocks.", ".layers.", ".merger."))
    }
    assert {names[each] for each in by_muon} == of_blocks
    assert len(of_blocks) > 60


# ---- stopping and resuming


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STAGES", (EYES, READING))
    train(pool, tmp_path / "whole", compiled=False)
    for steps in (1, 2, 9):  # the minute is over in the eyes' stage, and in the reading stage
        times = iter([0.0, *[1.0] * steps, 61.0])
        train(pool, tmp_path / "parts", minutes=1, clock=lambda t=times: next(t), compiled=False)
    curves = [
        json.loads((tmp_path / name / "curve.json").read_text()) for name in ("whole", "parts")
    ]
    for curve in curves:
        assert [each["step"] for each in curve] == [1, 2, 3, 4]
        assert [each["stage"] for each in curve] == ["eyes"] * 2 + ["reading"] * 2
        for each in curve:
            del each["seconds_a_step"]
    assert curves[0] == curves[1]
    whole, parts = (weights_in(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    assert not changed(whole, parts)


def test_training_on_begins_with_the_committed_checkpoint_and_resumes(
    pool: Path, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LONGER", replace(LONGER, steps=2, recipe=RECIPE))
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def step(run, *rest, real=training.train_step):
        weights[run.step] = weights_of(run)
        return real(run, *rest)

    monkeypatch.setattr(training, "train_step", step)
    times = iter([0.0, 1.0, 61.0])  # the minute is over after the first step
    train(pool, tmp_path, longer=True, minutes=1, clock=lambda: next(times))
    begun = weights_in(committed)
    assert list(weights) == [BEFORE]
    assert not changed(begun, weights[BEFORE])
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    train(pool, tmp_path, longer=True)
    assert list(weights) == [BEFORE, BEFORE + 1]
    moved = changed(begun, weights[BEFORE + 1])
    assert moved
    assert not [name for name in moved if ".visual." in name]
    train(pool, tmp_path, longer=True)  # all stages are done
    assert list(weights) == [BEFORE, BEFORE + 1]


@pytest.mark.slow
def test_what_is_compiled_can_be_chosen(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STAGES", (replace(EYES, steps=1),))
    compiled = []

    def counted():
        compiled.append(1)
        return training._glance_loss

    monkeypatch.setattr(training, "_compiled_glance_loss", counted)
    train(pool, tmp_path / "plain", compiled=False)
    assert compiled == []
    train(pool, tmp_path / "compiled")
    assert compiled == [1]


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stages = ["eyes", "eyes", "short"]
    curve = [
        {"step": 50 * n, "stage": stage, "loss": 1 / (n + 1), "accuracy": {"color": 0.5}}
        for n, stage in enumerate(stages)
    ]
    draw_curve(curve, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
