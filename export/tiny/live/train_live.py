"""Trains the tiny model's adapter for proactive answers: resumable, deterministic by seed.

    python -m vicort.export.tiny.reels POOL --count 1200
    python -m vicort.export.tiny.live.train_live POOL RUN --base CHECKPOINT

The loss is that of VideoLLM-online (arXiv 2406.11816): cross-entropy of the text, plus that of
<|im_end|> after each unit without text, with weight 1. Every third step adds the base model's
questions, so that their accuracy is kept. The vision encoder is frozen, so each reel is encoded
once. RUN contains state.pt, adapter/ (PEFT's layout) and curve.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.batches import Composer, gather
from vicort.export.tiny.live.lora import save_adapter, trained_state, wrap
from vicort.export.tiny.live.scene_layout import FIRST_WORD, KINDS, SILENCE, SceneLayout
from vicort.export.tiny.live.scene_streams import SceneRecipe
from vicort.export.tiny.live.scenes import make_scenes
from vicort.export.tiny.model import CHECKPOINT, faster_attention, token_id
from vicort.export.tiny.reels import Reel
from vicort.export.tiny.train import MEMORY, EncodedPool, curve_text, forward

STREAM_WEIGHT = 1.0  # paper: of the loss of silence
THRESHOLD = 0.725  # paper: silence takes this probability
ASKED_EVERY = 3  # steps
ASKED = replace(MEMORY, streams=4, questions=16, reels=6, empties=(0, 20))
# to compare with what was asked for: a thing or two, half of which were asked for
ONE = SceneRecipe(
    length=(2, 5), sections=0.3, section=(1, 3), stay=0, blink=0, gaps=(0.5, 0.5), waits=(2, 3),
    unasked=0, twice=0, late=0, present=0.6, questions=0, missed=0, spurious=0, bounded=0,
)  # fmt: skip
# to tell what is new from what was there
FEW = replace(
    ONE, length=(5, 24), stay=0.1, gaps=(0.5, 0.2, 0.1, 0.1), waits=(4, 12), section=(2, 8)
)


@dataclass(frozen=True)
class LiveStage:
    share: float  # of all steps
    recipe: SceneRecipe
    rates: tuple[float, float]  # learning rate at its first and last step, geometric in between


STAGES = (
    LiveStage(0.15, ONE, (2e-3, 2e-3)),
    LiveStage(0.25, FEW, (2e-3, 1.5e-3)),
    LiveStage(0.6, SceneRecipe(), (1.5e-3, 3e-5)),
)
WARM_UP = 30  # steps of the run
STEPS = 4000
REELS, REELS_A_STEP = 1200, 12  # of the pool, each as it is and mirrored
LOG_EVERY, SAVE_EVERY = 25, 100  # steps
SEED = 60
END = token_id("<|im_end|>")


@dataclass
class AdapterRun:
    model: Qwen2_5_VLForConditionalGeneration
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    base: str  # SHA-256 of the base's weights
    encoded: EncodedPool = field(default_factory=EncodedPool)
    step: int = 0
    curve: list[dict[str, object]] = field(default_factory=list)


def start_or_resume(folder: Path, base: Path = CHECKPOINT) -> AdapterRun:
    """The run in `folder`, or a new one, beside the checkpoint in `base`.

    Raises ValueError if the run in `folder` began beside another checkpoint.
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    faster_attention(model)
    trained = wrap(model, SEED)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.0)
    digest = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    run, path = AdapterRun(model, trained, optimizer, digest), folder / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["base"] != digest:
            raise ValueError(
                f"{path} began beside another checkpoint than {base}: name that one with --base, "
                "or another folder for a new run"
            )
        model.load_state_dict(state["trained"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        run.step, run.curve = state["step"], json.loads(state["curve"])
    return run


def save(run: AdapterRun, folder: Path) -> None:
    state = {
        "trained": trained_state(run.model),
        "optimizer": run.optimizer.state_dict(),
        "base": run.base,
        "step": run.step,
        "curve": json.dumps(run.curve),
    }
    torch.save(state, folder / "state.partial")
    (folder / "state.partial").rename(folder / "state.pt")
    save_adapter(run.model, folder / "adapter")
    (folder / "curve.json").write_text(curve_text(run.curve))


def speak(
    run: AdapterRun,
    rng: np.random.Generator,
    reels: Sequence[Reel],
    layout: SceneLayout,
    recipe: SceneRecipe,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of scenes; and which decisions (at THRESHOLD) and words were right, by kind."""
    batch = layout.batch(rng, make_scenes(rng, reels, recipe))
    features = run.encoded.features(np.concatenate([reel.units for reel in reels]))
    logits, labels, kinds = forward(run.model, batch, features.flatten(0, 1))
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
    units, episodes = gather(rng, reels, composer.recipe)
    features = run.encoded.features(units)
    batch = composer.compose(rng, episodes, features.float().numpy())
    logits, labels, _ = forward(run.model, batch, features.flatten(0, 1))
    return cross_entropy(logits, labels), {"answers": (logits.argmax(-1) == labels)[labels != END]}


def stage_at(step: int, steps: int) -> tuple[SceneRecipe, float]:
    """The streams and the learning rate of a step, of `steps` in all."""
    done = step / steps
    for number, stage in enumerate(STAGES):
        if done < stage.share or number == len(STAGES) - 1:
            break
        done -= stage.share
    first, last = stage.rates
    rate = first * (last / first) ** (done / stage.share)
    return stage.recipe, min(1.0, (step + 1) / WARM_UP) * rate


def train_step(
    run: AdapterRun, layout: SceneLayout, composer: Composer, steps: int
) -> tuple[float, dict[str, Tensor]]:
    rng = np.random.default_rng([run.step, SEED])
    recipe, rate = stage_at(run.step, steps)
    chosen = rng.integers(0, len(run.encoded.reels), REELS_A_STEP)
    reels = [run.encoded.reels[index] for index in chosen]
    with torch.autocast("cpu", torch.bfloat16):
        loss, right = speak(run, rng, reels, layout, recipe)
        if run.step % ASKED_EVERY == 0:
            asked_loss, asked_right = answer(run, rng, reels[: ASKED.reels], composer)
            loss, right = loss + asked_loss, right | asked_right
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.trained, 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.step += 1
    return loss.item(), right


def train(
    pool: Path, folder: Path, base: Path = CHECKPOINT, steps: int = STEPS, reels: int = REELS
) -> None:
    """Train until step `steps`, on the pool's first `reels` reels."""
    folder.mkdir(parents=True, exist_ok=True)
    run, layout, composer = start_or_resume(folder, base), SceneLayout(), Composer(ASKED)
    run.encoded.extend(run.model, torch.device("cpu"), sorted(pool.glob("*.json"))[:reels])
    losses: list[float] = []
    right: dict[str, list[Tensor]] = {}
    began = time.monotonic()
    while run.step < steps:
        loss, reports = train_step(run, layout, composer, steps)
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
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            save(run, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, help="folder of reels, see vicort.export.tiny.reels")
    parser.add_argument(
        "run", type=Path, help="folder of the run; an interrupted one goes on where it stopped"
    )
    parser.add_argument(
        "--base", type=Path, default=CHECKPOINT, help="checkpoint folder (default: the embedded)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument(
        "--reels", type=int, default=REELS, help="the pool's first ones (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.pool, arguments.run, arguments.base, arguments.steps, arguments.reels)


if __name__ == "__main__":
    main()
