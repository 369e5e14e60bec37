"""Trains the tiny model in stages, resumable, on all reels in the pool.

    python -m vicort.export.tiny.reels POOL --count 4000 &
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
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.batches import (
    IGNORED,
    PLACES,
    Batch,
    BatchRecipe,
    Composer,
    by_length,
    gather,
    glances,
    mirrored,
)
from vicort.export.tiny.model import (
    CHECKPOINT,
    encode_units,
    faster_attention,
    new_model,
    save_checkpoint,
)
from vicort.export.tiny.reels import Reel, load_reel
from vicort.export.tiny.tokenizer import VOCABULARY
from vicort.export.tiny.world import COLORS, SHAPES, WAYS
from vicort.export.tiny.world_questions import KINDS
from vicort.runtime.core import UNIT_FRAMES

# classes of `sight` in each frame: the left thing's shape, colour, place and way, the right one's
# shape and colour
SIGHTS = (
    len(SHAPES) + 1,
    len(COLORS) + 1,
    PLACES + 1,
    PLACES + 1,
    len(WAYS) + 1,
    len(SHAPES) + 1,
    len(COLORS) + 1,
)
SIGHT_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0)  # of their losses: shapes are hardest
FARTHEST = 9  # pixels by which single units are moved
LENGTH_GROUPS = 4  # in which a batch is run: padded to one length it takes 1.3 times as long
# weights of the losses of kinds of questions that are learnt late; 1 for the others
EMPHASIS = {"count": 4.0, "after": 2.0, "again": 2.0, "often": 1.5, "way": 1.5}
LOG_EVERY = 50  # steps
SAVE_EVERY = 100  # steps
ENCODE_EVERY = 200  # steps after which new reels of the pool are encoded
WARM_UP = 30  # steps of each stage
END = VOCABULARY.index("<|im_end|>")


@dataclass(frozen=True)
class TrainingStage:
    name: str
    steps: int
    rates: tuple[float, float]  # learning rate at its first and last step, linear in between
    recipe: BatchRecipe | None  # of the language model alone; None: the vision encoder alone
    glances: tuple[int, int] = (24, 7)  # of the vision encoder alone: reels, and units of each


MEMORY = BatchRecipe(
    empties=(0, 30), far=0.7, bounded=0.4, drops=0.6, retrieval=0.3, turns=0.1, things=(0, 9)
)
STAGES = (
    TrainingStage("eyes", 9000, (1.2e-3, 2e-5), None),
    TrainingStage("places", 2000, (6e-4, 1e-5), None),
    TrainingStage("ways", 1500, (6e-4, 1e-5), None),
    TrainingStage("small and dark", 3000, (6e-4, 1e-5), None),
    TrainingStage("changes", 4000, (6e-4, 1e-5), None),
    TrainingStage("thickness", 4000, (6e-4, 1e-5), None),
    TrainingStage(
        "short",
        400,
        (1.2e-3, 1e-3),
        BatchRecipe(streams=24, things=(0, 3), empties=(0, 3), longest=8, drops=0.3),
    ),
    TrainingStage("up to nine", 3500, (1e-3, 5e-4), BatchRecipe(drops=0.5, things=(0, 9), far=0.2)),
    TrainingStage("memory", 4000, (6e-4, 2e-5), MEMORY),
    TrainingStage("long", 2000, (6e-4, 1e-5), replace(MEMORY, streams=12, empties=(0, 80))),
    TrainingStage("one look", 1500, (5e-4, 1e-5), replace(MEMORY, empties=(0, 50), one_look=0.8)),
)

# after the others, on request: the language model alone
LONGER = TrainingStage("longer", 3000, (3e-4, 1e-5), MEMORY)


@dataclass
class TrainingRun:
    """The state of a training run. `sight`, a head on the visual tokens, is used only in
    training."""

    model: Qwen2_5_VLForConditionalGeneration
    sight: nn.Linear
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    compiled: bool = True  # the vision encoder, where it is trained alone
    encoded: EncodedPool = field(default_factory=lambda: EncodedPool())
    step: int = 0
    curve: list[dict[str, object]] = field(default_factory=list)


def start_or_resume(
    folder: Path, device: str = "cpu", longer: bool = False, compiled: bool = True
) -> TrainingRun:
    """The run in `folder`, or a new one; with `longer` a new one starts after the last of STAGES,
    from the committed checkpoint."""
    model = new_model(seed=0)
    faster_attention(model)
    sight = nn.Linear(model.config.vision_config.out_hidden_size, sum(SIGHTS) * 2).to(device)
    model.to(torch.device(device))
    run = TrainingRun(model, sight, _optimizers(model, sight), torch.device(device), compiled)
    path = folder / "state.pt"
    if not longer and not path.exists():  # with the eyes of the committed checkpoint
        model.model.visual.load_state_dict(_committed().model.visual.state_dict())
    if longer and not path.exists():
        model.load_state_dict(_committed().state_dict())
        run.step = sum(stage.steps for stage in STAGES)
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=run.device)
        model.load_state_dict(state["model"])
        sight.load_state_dict(state["sight"])
        for optimizer, values in zip(run.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        run.step, run.curve = state["step"], json.loads(state["curve"])
    return run


def _optimizers(
    model: Qwen2_5_VLForConditionalGeneration, sight: nn.Linear
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of all blocks and of the merger, AdamW for the rest."""
    blocks = [
        *model.model.visual.named_parameters(),
        *model.model.language_model.named_parameters(),
    ]
    matrices = [each for name, each in blocks if each.ndim == 2 and "embed" not in name]
    known = {id(each) for each in matrices}
    rest = [each for each in [*model.parameters(), *sight.parameters()] if id(each) not in known]
    return [
        torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def _committed() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)


def save(run: TrainingRun, folder: Path) -> None:
    state = {
        "model": run.model.state_dict(),
        "sight": run.sight.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "step": run.step,
        "curve": json.dumps(run.curve),
    }
    torch.save(state, folder / "state.partial")
    (folder / "state.partial").rename(folder / "state.pt")
    save_checkpoint(run.model, folder / "checkpoint")
    (folder / "curve.json").write_text(curve_text(run.curve))


def curve_text(curve: list[dict[str, object]]) -> str:
    """The reports of a run as JSON, one in each line."""
    return "[\n" + ",\n".join(map(json.dumps, curve)) + "\n]\n"


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
    brightness, contrast, tint and noise; one in five much darker, half of them in light that
    differs from place to place, a third with thinner or thicker shapes."""
    return disturbed(*disturbance(units, generator))


def disturbance(units: np.ndarray, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The units and, for each, gains of the colours, brightness, strength of a noise, its light
    and how its shapes change; and the noise."""
    drawn: dict[str, Any] = {"generator": generator, "device": generator.device}
    frames = torch.from_numpy(np.array(units)).to(generator.device)
    shape = (len(frames), 1, 1, 1, 1)
    gain = (0.16 * torch.randn(shape, **drawn)).exp()
    tint = (0.06 * torch.randn((len(frames), 1, 1, 1, 3), **drawn)).exp()
    dark = 1 - (0.2 + 0.4 * torch.rand(shape, **drawn))
    night = torch.rand(shape, **drawn) < 0.2
    bias = 14 * torch.randn(shape, **drawn)
    strength = 10 * torch.rand(shape, **drawn) ** 2
    # one noise for all units, because drawing it is expensive
    noise = torch.randn(frames.shape[1:], **drawn)
    gains = gain * tint * torch.where(night, dark, 1.0)
    light = torch.rand((5, len(frames)), **drawn)
    thicker = torch.randint(0, 12, (len(frames),), **drawn)
    return frames, gains, bias, strength, light, thicker, noise


def disturbed(
    frames: Tensor,
    gain: Tensor,
    bias: Tensor,
    strength: Tensor,
    light: Tensor,
    thicker: Tensor,
    noise: Tensor,
) -> Tensor:
    """What `augmented` returns, of `disturbance`."""
    shaped = _thickened(frames.float(), thicker)
    lit = shaped * gain * _light(light, frames.shape[2])
    return (lit + bias + strength * noise).clamp(0, 255)


def _thickened(frames: Tensor, thicker: Tensor) -> Tensor:
    """frames [U, 2, 112, 112, 3]: where `thicker` [U] is 0 or 1, what is bright grows on all sides
    by one pixel or two; where it is 2 or 3, what is dark does."""
    flat = frames.permute(0, 1, 4, 2, 3).flatten(1, 2)
    kind = thicker[:, None, None, None]
    sign = torch.where(kind < 2, 1.0, -1.0)
    once = max_pool2d(sign * flat, 3, stride=1, padding=1)
    twice = max_pool2d(once, 3, stride=1, padding=1)
    grown = sign * torch.where(kind % 2 == 0, once, twice)
    chosen = torch.where(kind < 4, grown, flat)
    return chosen.unflatten(1, (UNIT_FRAMES, 3)).permute(0, 1, 3, 4, 2)


def _light(drawn: Tensor, side: int) -> Tensor:
    """Gains [U, 1, side, side, 1] of light that comes and goes along a direction, in waves or with
    sharp borders; of half of the units. drawn [5, U]: 0 to 1."""
    turn, wave, phase, depth, kind = drawn[..., None, None]
    steps = torch.arange(side, device=drawn.device) / side
    along = steps * torch.cos(2 * torch.pi * turn) + steps[:, None] * torch.sin(2 * torch.pi * turn)
    waves = torch.sin(2 * torch.pi * (along * (0.5 + 3 * wave) + phase))
    waves = torch.where(kind < 0.2, waves.sign(), waves)
    gains = torch.where(kind < 0.5, 0.35 * depth * waves, torch.zeros_like(waves)).exp()
    return gains[:, None, :, :, None]


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


def forward_by_length(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `forward`, in another order."""
    parts = [forward(model, each, features) for each in by_length(batch, LENGTH_GROUPS)]
    logits, labels, kinds = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits, labels, kinds


def sight_loss(sight: nn.Linear, features: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of predicting from every visual token what its unit shows.

    features [U, 16, width], shown [U, 2, 7], see `sights` -> mean loss, and [U, 2 * 7] which of
    them the tokens together predict correctly.
    """
    logits = sight(features).float()
    losses, right = [], []
    for part, target, weight in zip(
        logits.split([*SIGHTS, *SIGHTS], -1), shown.flatten(1).T, SIGHT_WEIGHTS * 2, strict=True
    ):
        loss = cross_entropy(part.flatten(0, 1), target.repeat_interleave(features.shape[1]))
        losses.append(weight * loss)
        right.append(part.mean(1).argmax(-1) == target)
    return torch.stack(losses).sum() / (2 * sum(SIGHT_WEIGHTS)), torch.stack(right, 1)


def look(
    run: TrainingRun,
    stage: TrainingStage,
    rng: np.random.Generator,
    generator: torch.Generator,
    pool: list[Path],
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of single units; shapes and colours predicted correctly or not, as kinds 1 and 0."""
    reels, count = stage.glances
    units, shown = glances(rng, _drawn_reels(rng, pool, reels), count, FARTHEST)
    drawn = disturbance(units, generator)
    compute = _compiled_glance_loss() if run.compiled else _glance_loss
    with torch.autocast(run.device.type, torch.bfloat16):
        loss, right = compute(run.model, run.sight, torch.from_numpy(shown).to(run.device), *drawn)
    kinds = torch.tensor([1, 0, 5, 5, 10, 2, 2] * UNIT_FRAMES)
    return loss, right.flatten(), kinds.repeat(len(right))


def _glance_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    sight: nn.Linear,
    shown: Tensor,
    *drawn: Tensor,
) -> tuple[Tensor, Tensor]:
    return sight_loss(sight, encode_units(model, disturbed(*drawn)), shown)


@cache
def _compiled_glance_loss() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_glance_loss, dynamic=False)


def _drawn_reels(rng: np.random.Generator, pool: list[Path], count: int) -> list[Reel]:
    """Reels of the pool, every second one mirrored."""
    reels = [load_reel(pool[index]) for index in rng.integers(0, len(pool), count)]
    return [mirrored(reel) if rng.random() < 0.5 else reel for reel in reels]


class EncodedPool:
    """The visual tokens of all reels, as they are and mirrored, while the vision encoder does not
    change."""

    def __init__(self) -> None:
        self.reels: list[Reel] = []  # their units are rows of the features
        self._features: list[Tensor] = []
        self._known: set[Path] = set()
        self._rows = 0

    @torch.inference_mode()
    def extend(
        self, model: Qwen2_5_VLForConditionalGeneration, device: torch.device, pool: list[Path]
    ) -> None:
        generator = torch.Generator(device).manual_seed(len(self.reels))
        for path in pool:
            if path in self._known:
                continue
            self._known.add(path)
            reel = load_reel(path)
            for each in (reel, mirrored(reel)):
                with torch.autocast(device.type, torch.bfloat16):
                    found = encode_units(model, augmented(each.units, generator))
                rows = np.arange(self._rows, self._rows + len(found))
                self.reels.append(replace(each, units=rows))
                self._features.append(found.bfloat16())
                self._rows += len(found)

    def features(self, rows: np.ndarray) -> Tensor:
        if len(self._features) > 1:
            self._features = [torch.cat(self._features)]
        return self._features[0][torch.from_numpy(rows)]


def read(
    run: TrainingRun, rng: np.random.Generator, composer: Composer
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of questions about streams; each answer token but the last right or not, and the kind of
    its question."""
    count = composer.recipe.reels
    reels = [run.encoded.reels[index] for index in rng.integers(0, len(run.encoded.reels), count)]
    units, episodes = gather(rng, reels, composer.recipe)
    features = run.encoded.features(units).to(run.device)
    batch = composer.compose(rng, episodes, features.float().numpy(force=True))
    with torch.autocast(run.device.type, torch.bfloat16):
        logits, labels, kinds = forward_by_length(run.model, batch, features.flatten(0, 1))
    words = labels != END
    return (
        emphasised(cross_entropy(logits, labels, reduction="none"), kinds),
        (logits.argmax(-1) == labels)[words],
        kinds[words],
    )


def emphasised(losses: Tensor, kinds: Tensor) -> Tensor:
    """The weighted mean of losses [N] of questions of `kinds` [N], numbers of KINDS."""
    weights = torch.tensor([EMPHASIS.get(kind, 1.0) for kind in KINDS], device=losses.device)
    return (losses * weights[kinds]).sum() / weights[kinds].sum()


def train_step(
    run: TrainingRun, stage: TrainingStage, composer: Composer | None, pool: list[Path], rate: float
) -> tuple[float, Tensor, Tensor]:
    """One update. -> loss, what was answered right or not, and its kind, on the CPU."""
    rng = np.random.default_rng([run.step, 20])
    if composer:
        loss, right, kinds = read(run, rng, composer)
    else:
        generator = torch.Generator(run.device).manual_seed(run.step)
        loss, right, kinds = look(run, stage, rng, generator, pool)
    for optimizer in run.optimizers:
        optimizer.zero_grad()  # to None: parameters without a gradient are not decayed
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
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
    compiled: bool = True,
) -> None:
    """Train until the last stage is done or `minutes` have passed, then save.

    pool: folder of reels; folder: of the run. device: in PyTorch's notation. compiled: compile the
    vision encoder where it is trained alone, which takes most of a minute once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = clock() + 60 * minutes
    stages = (*STAGES, LONGER) if longer else STAGES
    run = start_or_resume(folder, device, longer, compiled)
    composers = {stage.name: Composer(stage.recipe) if stage.recipe else None for stage in stages}
    meter, saved = None, run.step
    encoded = False
    while (now := stage_at(run.step, stages)) is not None and clock() < end:
        stage, share = now
        meter = meter or Meter(list(KINDS))
        paths = sorted(pool.glob("*.json"))
        if stage.recipe and (not encoded or run.step % ENCODE_EVERY == 0):
            run.encoded.extend(run.model, run.device, paths)
            encoded = True
        warm = min(1.0, (share * stage.steps + 1) / WARM_UP)
        rate = warm * (stage.rates[0] + (stage.rates[1] - stage.rates[0]) * share)
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
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the vision encoder where it is trained alone (default: yes)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.pool,
        arguments.run,
        arguments.device,
        arguments.longer,
        arguments.minutes,
        compiled=arguments.compile,
    )


if __name__ == "__main__":
    main()
