"""Trains the tiny model in stages, resumable, on all reels in the pool.

    python -m vicort.export.tiny.reels POOL --count 1300 &
    python -m vicort.export.tiny.train POOL RUN --threads 2
    python -m vicort.export.tiny.train POOL RUN --longer --device cuda --minutes 8

The last command continues after the last stage, on a GPU and for 8 minutes; a new RUN starts from
the committed checkpoint. RUN contains state.pt (everything needed to resume), checkpoint/ (in
Hugging Face layout) and curve.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.batches import (
    IGNORED,
    Batch,
    BatchRecipe,
    Composer,
    gather,
    glances,
    sights,
)
from vicort.export.tiny.model import (
    CHECKPOINT,
    encode_units,
    faster_attention,
    new_model,
    save_checkpoint,
)
from vicort.export.tiny.reels import is_square, load_reel
from vicort.export.tiny.tokenizer import VOCABULARY
from vicort.export.tiny.world import COLORS, SHAPES
from vicort.export.tiny.world_questions import KINDS

SIGHTS = (len(SHAPES) + 1, len(COLORS) + 1)  # classes of `sight` in each frame
LOG_EVERY = 50  # steps
SAVE_EVERY = 100  # steps
WARM_UP = 30  # steps of each stage
END = VOCABULARY.index("<|im_end|>")


@dataclass(frozen=True)
class TrainingStage:
    name: str
    steps: int
    rates: tuple[float, float]  # learning rate at its first and last step, geometric in between
    recipe: BatchRecipe | None  # None: the vision encoder alone
    # weight of the loss on what each visual token's unit shows; 0 = the vision encoder is frozen
    sight: float = 0.0
    glances: tuple[int, int] = (16, 7)  # of the vision encoder alone: reels, and units of each
    square: bool = False  # only reels with square frames, in which things are large


MEMORY = BatchRecipe(empties=(0, 30), far=0.7, bounded=0.4, drops=0.4, retrieval=0.3, turns=0.1)
STAGES = (
    TrainingStage("eyes, large", 200, (1.5e-3, 1.5e-3), None, sight=1.0, square=True),
    TrainingStage("eyes", 400, (1.5e-3, 5e-4), None, sight=1.0),
    TrainingStage("eyes, longer", 1600, (1.2e-3, 1e-4), None, sight=1.0, glances=(16, 4)),
    TrainingStage("up to seven", 500, (1.2e-3, 8e-4), BatchRecipe(drops=0.2)),
    TrainingStage(
        "together", 350, (8e-4, 5e-4), BatchRecipe(empties=(0, 12), drops=0.3, far=0.4), sight=0.3
    ),
    TrainingStage("memory", 420, (6e-4, 3e-5), MEMORY, sight=0.2),
)

# after the others, on request: the language model alone
LONGER = TrainingStage("longer", 3000, (3e-4, 1e-5), MEMORY)


@dataclass
class TrainingRun:
    """The state of a training run. `sight`, a head on the visual tokens, is used only in
    training."""

    model: Qwen2_5_VLForConditionalGeneration
    sight: nn.Linear
    optimizer: torch.optim.Optimizer
    device: torch.device
    step: int = 0
    curve: list[dict[str, object]] = field(default_factory=list)


def start_or_resume(folder: Path, device: str = "cpu", longer: bool = False) -> TrainingRun:
    """The run in `folder`, or a new one; with `longer` a new one starts after the last of STAGES,
    from the committed checkpoint."""
    model = new_model(seed=0)
    faster_attention(model)
    sight = nn.Linear(model.config.vision_config.out_hidden_size, sum(SIGHTS) * 2).to(device)
    model.to(torch.device(device))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *sight.parameters()], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02
    )
    run = TrainingRun(model, sight, optimizer, torch.device(device))
    path = folder / "state.pt"
    if longer and not path.exists():
        trained = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            CHECKPOINT, dtype=torch.float32
        )
        model.load_state_dict(trained.state_dict())
        run.step = sum(stage.steps for stage in STAGES)
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=run.device)
        model.load_state_dict(state["model"])
        sight.load_state_dict(state["sight"])
        optimizer.load_state_dict(state["optimizer"])
        run.step, run.curve = state["step"], json.loads(state["curve"])
    return run


def save(run: TrainingRun, folder: Path) -> None:
    parts = {name: getattr(run, name).state_dict() for name in ("model", "sight", "optimizer")}
    torch.save(
        {**parts, "step": run.step, "curve": json.dumps(run.curve)}, folder / "state.partial"
    )
    (folder / "state.partial").rename(folder / "state.pt")
    save_checkpoint(run.model, folder / "checkpoint")
    (folder / "curve.json").write_text(json.dumps(run.curve, indent=1) + "\n")


def stage_at(
    step: int, stages: Sequence[TrainingStage] = STAGES
) -> tuple[TrainingStage, float] | None:
    """The stage of a step and its progress, 0 to 1; None after the last stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step / stage.steps
        step -= stage.steps
    return None


def augmented(units: np.ndarray, generator: torch.Generator) -> Tensor:
    """[U, 2, 112, 112, 3] float32 of 0 to 255, on the generator's device: the units with other
    brightness, contrast and noise."""
    drawn: dict[str, Any] = {"generator": generator, "device": generator.device}
    frames = torch.from_numpy(np.ascontiguousarray(units)).to(generator.device).float()
    shape = (len(frames), 1, 1, 1, 1)
    gain = 1 + 0.1 * torch.randn(shape, **drawn)
    bias = 8 * torch.randn(shape, **drawn)
    strength = 6 * torch.rand(shape, **drawn) ** 2
    # one noise for all units, because drawing it is expensive
    small = torch.randn(frames.shape[1:], **drawn)
    return (frames * gain + bias + strength * small).clamp_(0, 255)


def forward(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [N, vocabulary], labels [N], kinds [N]) of the batch's labelled cells, where the
    features [units * 16, width] are."""

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(features.device)

    rows = put(batch.feature)
    words = model.get_input_embeddings()(put(batch.tokens))
    embedded = torch.where(rows[..., None] >= 0, features[rows.clamp(min=0)].to(words.dtype), words)
    labels = put(batch.labels)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=put(batch.positions),
        attention_mask={"full_attention": put(batch.mask)},
        use_cache=False,
    ).last_hidden_state
    chosen = labels != IGNORED
    return model.lm_head(hidden[chosen]).float(), labels[chosen], put(batch.kinds)[chosen]


def sight_loss(run: TrainingRun, features: Tensor, shown: np.ndarray) -> tuple[Tensor, Tensor]:
    """Loss of predicting from every visual token what its unit shows.

    features [U, 16, width], shown [U, 2, 2] (frame; shape, colour) -> mean loss, and [U, 2 * 2]
    which of them the tokens together predict correctly.
    """
    logits = run.sight(features).float()
    losses, right = [], []
    targets = torch.from_numpy(shown).to(run.device).flatten(1).T
    for part, target in zip(logits.split([*SIGHTS, *SIGHTS], -1), targets, strict=True):
        losses.append(
            cross_entropy(part.flatten(0, 1), target.repeat_interleave(features.shape[1]))
        )
        right.append(part.mean(1).argmax(-1) == target)
    return torch.stack(losses).mean(), torch.stack(right, 1)


def look(
    run: TrainingRun,
    stage: TrainingStage,
    rng: np.random.Generator,
    generator: torch.Generator,
    pool: list[Path],
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of single units; shapes and colours predicted correctly or not, as kinds 1 and 0."""
    reels = [load_reel(pool[index]) for index in rng.integers(0, len(pool), stage.glances[0])]
    units, shown = glances(rng, reels, stage.glances[1])
    with torch.autocast(run.device.type, torch.bfloat16):
        loss, right = sight_loss(run, encode_units(run.model, augmented(units, generator)), shown)
    return loss * stage.sight, right.flatten(), torch.tensor([1, 0, 1, 0]).repeat(len(right))


def read(
    run: TrainingRun,
    stage: TrainingStage,
    rng: np.random.Generator,
    generator: torch.Generator,
    pool: list[Path],
    composer: Composer,
):
    """Loss of questions about streams; each answer token but the last right or not, and the kind of
    its question."""
    reels = [load_reel(pool[index]) for index in rng.integers(0, len(pool), composer.recipe.reels)]
    units, episodes = gather(rng, reels, composer.recipe)
    with torch.autocast(run.device.type, torch.bfloat16):
        with torch.set_grad_enabled(stage.sight > 0):
            features = encode_units(run.model, augmented(units, generator))
        batch = composer.compose(rng, episodes, features.detach().float().numpy(force=True))
        logits, labels, kinds = forward(run.model, batch, features.flatten(0, 1))
        seen = (
            sight_loss(run, features, np.concatenate([sights(reel) for reel in reels]))[0]
            if stage.sight
            else 0.0
        )
    words = labels != END
    return (
        cross_entropy(logits, labels) + stage.sight * seen,
        (logits.argmax(-1) == labels)[words],
        kinds[words],
    )


def train_step(
    run: TrainingRun, stage: TrainingStage, composer: Composer | None, pool: list[Path], rate: float
) -> tuple[float, Tensor, Tensor]:
    """One update. -> loss, what was answered right or not, and its kind, on the CPU."""
    rng, generator = (
        np.random.default_rng([run.step, 20]),
        torch.Generator(run.device).manual_seed(run.step),
    )
    loss, right, kinds = (
        read(run, stage, rng, generator, pool, composer)
        if composer
        else look(run, stage, rng, generator, pool)
    )
    run.optimizer.zero_grad()  # to None: parameters without a gradient are not decayed
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    return loss.item(), right.cpu(), kinds.cpu()


class Meter:
    """Means since the last report."""

    def __init__(self, kinds: list[str]) -> None:
        self.kinds = kinds
        self.began = time.monotonic()
        self.losses: list[float] = []
        self.right: list[Tensor] = []
        self.kind: list[Tensor] = []

    def add(self, loss: float, right: Tensor, kind: Tensor) -> None:
        self.losses.append(loss)
        self.right.append(right)
        self.kind.append(kind)

    def report(self, step: int, stage: str) -> dict[str, object]:
        right, kind = torch.cat(self.right).float(), torch.cat(self.kind)
        accuracy = {
            name: round(right[kind == k].mean().item(), 3)
            for k, name in enumerate(self.kinds)
            if (kind == k).any()
        }
        seconds = (time.monotonic() - self.began) / len(self.losses)
        return {
            "step": step,
            "stage": stage,
            "loss": round(float(np.mean(self.losses)), 4),
            "accuracy": accuracy,
            "seconds_a_step": round(seconds, 2),
        }


def train(
    pool: Path,
    folder: Path,
    device: str = "cpu",
    longer: bool = False,
    minutes: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until the last stage is done or `minutes` have passed, then save. device: in PyTorch's
    notation."""
    folder.mkdir(parents=True, exist_ok=True)
    end = clock() + 60 * minutes
    run, stages = start_or_resume(folder, device, longer), (*STAGES, LONGER) if longer else STAGES
    composers = {stage.name: Composer(stage.recipe) if stage.recipe else None for stage in stages}
    meter, saved = None, run.step
    while (now := stage_at(run.step, stages)) is not None and clock() < end:
        stage, share = now
        meter = meter or Meter(list(KINDS))
        paths = [
            path
            for path in sorted(pool.glob("*.npz"))
            if not stage.square or is_square(int(path.stem))
        ]
        warm = min(1.0, (share * stage.steps + 1) / WARM_UP)
        rate = warm * stage.rates[0] * (stage.rates[1] / stage.rates[0]) ** share
        meter.add(*train_step(run, stage, composers[stage.name], paths, rate))
        run.step += 1
        if run.step % LOG_EVERY == 0:
            run.curve.append(meter.report(run.step, stage.name))
            print(json.dumps(run.curve[-1]), flush=True)
            meter = None
        if run.step % SAVE_EVERY == 0:
            save(run, folder)
            saved = run.step
    if run.step > saved:
        save(run, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, help="folder of reels, see vicort.export.tiny.reels")
    parser.add_argument("run", type=Path, help="folder of the run; an interrupted one is resumed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--device",
        default="cpu",
        help="PyTorch device: cpu, cuda (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop and save after this time (default: no limit)",
    )
    parser.add_argument(
        "--longer",
        action="store_true",
        help="continue after the last stage; a new run starts from the committed checkpoint",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.pool, arguments.run, arguments.device, arguments.longer, arguments.minutes)


if __name__ == "__main__":
    main()
