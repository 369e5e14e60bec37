"""Training goes on behind its last stage, stops when its time is over, and starts again where it
stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny import train as training
from vicort.export.tiny.batches import BatchRecipe
from vicort.export.tiny.model import CHECKPOINT
from vicort.export.tiny.reels import fill_pool
from vicort.export.tiny.train import LONGER, STAGES, stage_at, train

BEFORE = sum(stage.steps for stage in STAGES)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    fill_pool(folder, 0, 1)
    return folder


def test_the_longer_stage_comes_behind_all_others() -> None:
    assert stage_at(BEFORE) is None
    assert stage_at(BEFORE + 3, (*STAGES, LONGER)) == (LONGER, 3 / LONGER.steps)
    assert stage_at(BEFORE + LONGER.steps, (*STAGES, LONGER)) is None


def test_training_on_begins_with_the_committed_checkpoint_and_resumes(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training,
        "LONGER",
        replace(LONGER, steps=2, recipe=BatchRecipe(streams=1, questions=2, reels=1)),
    )
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def step(run, *rest, real=training.train_step):
        weights[run.step] = {
            name: tensor.clone() for name, tensor in run.model.state_dict().items()
        }
        return real(run, *rest)

    monkeypatch.setattr(training, "train_step", step)
    times = iter([0.0, 1.0, 61.0])  # the minute is over behind the first step
    train(pool, tmp_path, longer=True, minutes=1, clock=lambda: next(times))
    committed = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32
    ).state_dict()
    assert list(weights) == [BEFORE]
    assert all(torch.equal(tensor, committed[name]) for name, tensor in weights[BEFORE].items())
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    train(pool, tmp_path, longer=True)
    assert list(weights) == [BEFORE, BEFORE + 1]
    moved = [
        name
        for name, tensor in weights[BEFORE + 1].items()
        if not torch.equal(tensor, committed[name])
    ]
    assert moved
    assert not [name for name in moved if ".visual." in name]
    train(pool, tmp_path, longer=True)  # all stages are done
    assert list(weights) == [BEFORE, BEFORE + 1]


def test_a_new_run_without_it_begins_at_the_first_stage(tmp_path: Path) -> None:
    run = training.start_or_resume(tmp_path)
    assert (run.step, run.device) == (0, torch.device("cpu"))
