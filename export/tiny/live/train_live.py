"""Trains the tiny model's adapter for proactive answers: resumable, deterministic by seed.

    python -m vicort.export.tiny.reels POOL --count 200
    python -m vicort.export.tiny.live.train_live POOL RUN

The loss is that of VideoLLM-online (arXiv 2406.11816): cross-entropy of the text, plus that of
<|im_end|> after each unit without text, with weight 1. Every second step adds the base model's
questions, so that their accuracy is kept. The vision encoder is frozen, so each reel is encoded
once. RUN contains state.pt, adapter/ (PEFT's layout), curve.json and the encoded reels.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.batches import BatchRecipe, Composer, episode_of
from vicort.export.tiny.live.lora import save_adapter, wrap
from vicort.export.tiny.live.scene_layout import FIRST_WORD, KINDS, SILENCE, SceneLayout
from vicort.export.tiny.live.scenes import SceneRecipe, make_scenes
from vicort.export.tiny.model import CHECKPOINT, encode_units, faster_attention, token_id
from vicort.export.tiny.reels import Reel, load_reel
from vicort.export.tiny.train import forward

WARM_UP = 30  # steps
STREAM_WEIGHT = 1.0  # paper: of the loss of silence
THRESHOLD = 0.725  # paper: silence takes this probability
ASKED_EVERY = 2  # steps
ASKED = BatchRecipe(
    streams=3,
    questions=12,
    empties=(0, 20),
    far=0.5,
    bounded=0.2,
    drops=0.2,
    retrieval=0.1,
    turns=0.1,
)
SHORT = SceneRecipe(streams=12, longest=10, gaps=(0.5, 0.25, 0.15), present=0.9)
CLEAN = replace(SHORT, late=0, unasked=0, twice=0, questions=0, missed=0, spurious=0, bounded=0)
# to compare with what was asked for
ONE = replace(
    CLEAN, streams=48, longest=3, runs=(1, 1), gaps=(1.0,), windows=0, stay=0, present=0.5
)
FEW = replace(
    CLEAN,
    streams=16,
    longest=8,
    runs=(1, 3),
    gaps=(0.4, 0.2, 0.15, 0.1, 0.05),
    windows=0.15,
    far=0.15,
    present=0.8,
)
# steps, the streams that are spoken over in them, learning rate at the first and the last of them
STAGES = (
    (300, SHORT, (2e-3, 1.5e-3)),
    (220, ONE, (1.5e-3, 1e-3)),
    (80, SceneRecipe(), (1e-3, 1e-3)),
    (200, SHORT, (8e-4, 5e-4)),
    (260, FEW, (1.3e-3, 5e-4)),
    (90, SHORT, (5e-4, 5e-5)),
    (170, replace(CLEAN, streams=8, longest=16), (1.2e-3, 5e-4)),
    (70, replace(SHORT, streams=8, longest=16), (5e-4, 5e-5)),
)
STEPS = sum(steps for steps, _, _ in STAGES)
REELS, REELS_A_STEP = 200, 4  # the first ones of the pool
MAX_ENCODED_UNITS = 64  # units
LOG_EVERY, SAVE_EVERY = 25, 100  # steps
SEED = 60
END = token_id("<|im_end|>")


@dataclass
class AdapterRun:
    model: Qwen2_5_VLForConditionalGeneration
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[dict[str, object]] = field(default_factory=list)


class EncodedReels:
    """The pool's reels as visual tokens, each encoded once: a Reel with units [U, 16, width]
    float32."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, pool: Path, cache: Path) -> None:
        """cache: folder of the encoded reels of this model and pool."""
        self._model = model
        self._paths = sorted(pool.glob("*.npz"))[:REELS]
        self._cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        self._seen: dict[int, Reel] = {}

    def draw(self, rng: np.random.Generator, count: int) -> list[Reel]:
        """`count` different reels."""
        return [
            self._reel(int(index)) for index in rng.choice(len(self._paths), count, replace=False)
        ]

    def _reel(self, index: int) -> Reel:
        if index not in self._seen:
            reel, path = load_reel(self._paths[index]), self._cache / f"{index:06}.npy"
            if not path.exists():
                np.save(path, self._encoded(reel.units))
            self._seen[index] = replace(reel, units=np.load(path))
        return self._seen[index]

    @torch.no_grad()
    def _encoded(self, units: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(np.ascontiguousarray(units)).split(MAX_ENCODED_UNITS)
        with torch.autocast("cpu", enabled=False):
            return torch.cat([encode_units(self._model, piece) for piece in pieces]).numpy()


def start_or_resume(folder: Path) -> AdapterRun:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    faster_attention(model)
    trained = wrap(model, SEED)
    run = AdapterRun(
        model, trained, torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    )
    path = folder / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.curve = state["step"], json.loads(state["curve"])
    return run


def save(run: AdapterRun, folder: Path) -> None:
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "curve": json.dumps(run.curve),
    }
    torch.save(state, folder / "state.partial")
    (folder / "state.partial").rename(folder / "state.pt")
    save_adapter(run.model, folder / "adapter")
    (folder / "curve.json").write_text(json.dumps(run.curve, indent=1) + "\n")


def speak(
    run: AdapterRun,
    rng: np.random.Generator,
    reels: list[Reel],
    layout: SceneLayout,
    recipe: SceneRecipe,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of streams that are spoken over, and what was decided right: silence and speech at the
    threshold, words if most probable."""
    batch = layout.batch(rng, make_scenes(rng, reels, recipe))
    logits, labels, kinds = forward(run.model, batch, _features(reels))
    losses = cross_entropy(logits, labels, reduction="none")
    weights = torch.where(kinds == SILENCE, STREAM_WEIGHT, 1.0)
    quiet = logits.detach().softmax(-1)[:, END] >= THRESHOLD
    right = torch.where(
        kinds == SILENCE,
        quiet,
        torch.where(kinds == FIRST_WORD, ~quiet, logits.argmax(-1) == labels),
    )
    return (losses * weights).mean(), {
        name: right[kinds == kind] for kind, name in enumerate(KINDS)
    }


def answer(
    run: AdapterRun, rng: np.random.Generator, reels: list[Reel], composer: Composer
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of ordinary questions, and which words of the answers were right."""
    episodes = [episode_of(rng, reels, ASKED) for _ in range(ASKED.streams)]
    batch = composer.compose(rng, episodes, np.concatenate([reel.units for reel in reels]))
    logits, labels, _ = forward(run.model, batch, _features(reels))
    return cross_entropy(logits, labels), {"answers": (logits.argmax(-1) == labels)[labels != END]}


def _features(reels: list[Reel]) -> Tensor:
    return torch.from_numpy(np.concatenate([reel.units for reel in reels])).flatten(0, 1)


def stage_at(step: int) -> tuple[SceneRecipe, float]:
    """The streams and the learning rate of a step."""
    ends = np.cumsum([steps for steps, _, _ in STAGES])
    number = int(np.searchsorted(ends, step, side="right"))
    steps, recipe, (first, last) = STAGES[number]
    share = (step - (ends[number] - steps)) / steps
    return recipe, float(min(1.0, (step + 1) / WARM_UP) * (first + (last - first) * share))


def train_step(
    run: AdapterRun, eyes: EncodedReels, layout: SceneLayout, composer: Composer
) -> tuple[float, dict[str, Tensor]]:
    rng = np.random.default_rng([run.step, SEED])
    recipe, rate = stage_at(run.step)
    reels = eyes.draw(rng, REELS_A_STEP)
    with torch.autocast("cpu", torch.bfloat16):
        loss, right = speak(run, rng, reels, layout, recipe)
        if run.step % ASKED_EVERY == 0:
            asked_loss, asked_right = answer(run, rng, reels, composer)
            loss, right = loss + asked_loss, right | asked_right
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.trained, 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.step += 1
    return loss.item(), right


def train(pool: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run = start_or_resume(folder)
    eyes, layout, composer = (
        EncodedReels(run.model, pool, folder / "eyes"),
        SceneLayout(),
        Composer(ASKED),
    )
    losses: list[float] = []
    right: dict[str, list[Tensor]] = {}
    began = time.monotonic()
    while run.step < STEPS:
        loss, reports = train_step(run, eyes, layout, composer)
        losses.append(loss)
        for name, each in reports.items():
            right.setdefault(name, []).append(each)
        if run.step % LOG_EVERY == 0:
            shares = {
                name: round(torch.cat(each).float().mean().item(), 4)
                for name, each in right.items()
            }
            seconds = round((time.monotonic() - began) / len(losses), 2)
            run.curve.append(
                {
                    "step": run.step,
                    "loss": round(float(np.mean(losses)), 4),
                    "right": shares,
                    "seconds_a_step": seconds,
                }
            )
            print(json.dumps(run.curve[-1]), flush=True)
            losses, right, began = [], {}, time.monotonic()
        if run.step % SAVE_EVERY == 0 or run.step == STEPS:
            save(run, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, help="folder of reels, see vicort.export.tiny.reels")
    parser.add_argument(
        "run", type=Path, help="folder of the run; an interrupted one goes on where it stopped"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.pool, arguments.run)


if __name__ == "__main__":
    main()
