"""How well the tiny model speaks by itself, on streams it never saw, through encoded files; and
what its ordinary answers lost.

    python -m vicort.export.tiny.live.evaluate_live --out export/tiny/live/evaluation.json
    python -m vicort.export.tiny.live.evaluate_live --fps 4 \\
        --out export/tiny/live/evaluation_4_fps.json

The threshold of silence is chosen first, on streams of their own in the looks of training. Then
every stream is watched once for every target. Runs transformers' own class with the adapter merged,
the positions of vicort and full history: the reference for what the pipeline reaches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.qwen2_5_vl.adapter import Adapter, read_adapter
from vicort.export.tiny import evaluate, evaluation_files
from vicort.export.tiny.evaluate import ReferenceReader, load_model
from vicort.export.tiny.evaluation_files import (
    GAPS,
    HELD_OUT,
    TOUCHING,
    EvaluationSetting,
    write_evaluation_file,
)
from vicort.export.tiny.live.scene_layout import ScenePositions
from vicort.export.tiny.live.scenes import Target
from vicort.export.tiny.live.score import Said, Score, total
from vicort.export.tiny.live.train_live import END, THRESHOLD
from vicort.export.tiny.looks import held_out_look, random_look
from vicort.export.tiny.model import CHECKPOINT, TOKENS_PER_SECOND, encode_units
from vicort.export.tiny.reels import MIXED
from vicort.export.tiny.video import read_units
from vicort.export.tiny.world import COLORS, SHAPES, StreamPlan, Thing
from vicort.runtime.core import UNIT_FRAMES

ADAPTER = Path(__file__).parent / "adapter"
VALIDATION = 9_000_000  # seeds from here on are those of streams that the threshold is chosen on
THRESHOLDS = (0.15, 0.3, 0.45, 0.6, THRESHOLD, 0.8, 0.9)
GOAL_MISSED, GOAL_ALARMS = 0.05, 1.0  # share of appearances; in 10 minutes
LONGEST = 16  # tokens that are said at once
MAX_ENCODED_UNITS = 64  # units
SPARSE = 3  # as many streams of settings of things as of those of little
TARGETS = tuple(Target(f"a {shape}", shape=shape) for shape in SHAPES)
COLORFUL = tuple(Target(f"something {color}", color=color) for color in COLORS)
WAITS = StreamPlan(stay=(2.0, 20.0), gap=(5.0, 60.0))
CROWDED = (3, 4, 5, 6, 7)  # things in a stream


def _mixed(plan: StreamPlan) -> StreamPlan:
    """With things beside each other, that come again in another colour, grow or are partly
    hidden, as often as in training."""
    return replace(
        plan,
        beside=MIXED["beside"],
        again=MIXED["again"],
        growing=MIXED["growing"],
        covered=MIXED["covered"],
    )


KNOWN, UNKNOWN = "known", "held-out"  # looks: families of training, and others
SETTINGS = tuple(
    EvaluationSetting(f"{looks}, {name}", objects, plan, tail, look, fps=fps)
    for looks, look in ((KNOWN, random_look), (UNKNOWN, held_out_look))
    for name, objects, plan, tail, fps in (
        ("gaps", CROWDED, _mixed(GAPS), 2.0, 12),
        ("touching", CROWDED, _mixed(TOUCHING), 2.0, 12),
        ("waits", (2, 3, 4), _mixed(WAITS), 5.0, 4),
        ("a minute of nothing", (0,), GAPS, 60.0, 4),
    )
)
CHOSEN_ON = SETTINGS[:2]
ORDINARY = tuple(
    setting
    for setting in evaluation_files.SETTINGS
    if setting.name in ("known", "gaps", "touching", "mixed")
)


@dataclass(frozen=True)
class Film:
    """A stream as the model sees it."""

    things: tuple[Thing, ...]
    seconds: float
    features: Tensor  # [U, 16, width]
    times: list[Fraction]  # of the 2 U frames


def merged(
    model: Qwen2_5_VLForConditionalGeneration, adapter: Adapter
) -> Qwen2_5_VLForConditionalGeneration:
    """The model itself, its weights changed."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in adapter.weights:
                weight.copy_(adapter.weights[name].added_to(weight))
    return model


class LiveSpeaker(ReferenceReader):
    """Watches one stream unit by unit, and speaks where it does not choose silence."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, threshold: float
    ) -> None:
        super().__init__(model, tokenizer)
        self._places, self._threshold = ScenePositions(self.prompt), threshold

    @torch.inference_mode()
    def instruct(self, instruction: str) -> str:
        """Hears an instruction, and answers it."""
        return self._say(self._place(self.tokenizer.encode("<|vision_end|>" + instruction).ids))

    @torch.inference_mode()
    def sees(self, features: Tensor, time: int) -> str | None:
        """features [16, width] of a unit at `time` in steps -> what is said after it, None =
        nothing."""
        logits = self._causal(features, self._places.unit(time))
        if logits.softmax(-1)[END] >= self._threshold:
            return None
        logits[END] = -torch.inf
        return self._say(logits)

    def _say(self, logits: Tensor) -> str:
        tokens: list[int] = []
        while len(tokens) < LONGEST and (token := int(logits.argmax())) != END:
            tokens.append(token)
            logits = self._place([token])
        self._place([END])
        return self.tokenizer.decode(tokens)

    def _place(self, tokens: list[int]) -> Tensor:
        return self._causal(self._embed(tokens), self._places.text(len(tokens)))

    def _causal(self, rows: Tensor, positions: np.ndarray) -> Tensor:
        """The logits after the last row."""
        past = self.cache.get_seq_length()
        mask = np.arange(past + len(rows))[None, :] <= past + np.arange(len(rows))[:, None]
        return self.model.lm_head(self._run(rows, positions, mask)[-1])


def watch(
    speaker: LiveSpeaker, target: Target, features: Tensor, times: Sequence[Fraction]
) -> list[Said]:
    """One stream from its begin, with the instruction before it; times: of the 2 U frames."""
    speaker.instruct(f"say when {target.words} appears")
    said = []
    for unit, rows in enumerate(features):
        text = speaker.sees(rows, int((times[UNIT_FRAMES * unit] - times[0]) * TOKENS_PER_SECOND))
        if text is not None:
            said.append(Said(times[UNIT_FRAMES * unit + 1], text))
    return said


def films(
    model: Qwen2_5_VLForConditionalGeneration,
    setting: EvaluationSetting,
    seeds: range,
    fps: float,
) -> Iterator[Film]:
    """Streams of the setting, through files, of which `fps` frames a second are seen."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stream.{setting.container}"
        for seed in seeds:
            stream = write_evaluation_file(path, setting, seed)
            frames, times = read_units(path, fps)
            with torch.inference_mode():
                pieces = torch.from_numpy(frames).split(MAX_ENCODED_UNITS)
                features = torch.cat([encode_units(model, piece) for piece in pieces])
            yield Film(stream.things, stream.duration, features, times)


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    watched: Sequence[Film],
    targets: Sequence[Target],
    threshold: float,
) -> Score:
    """One pass over each film for every target."""
    score = Score()
    for film in watched:
        for target in targets:
            speaker = LiveSpeaker(model, tokenizer, threshold)
            score.add(film.things, target, watch(speaker, target, film.features, film.times))
            score.seconds += film.seconds
    return score


def cost(score: Score) -> float:
    """What is missed or late, and false alarms, each in proportion to its goal."""
    missed = 1 - score.in_time / max(1, score.appearances)
    return missed / GOAL_MISSED + score.alarms_in_10_minutes() / GOAL_ALARMS


def chosen(by_threshold: dict[float, Score]) -> float:
    """The threshold of the lowest cost; of several, the one nearest to the paper's."""
    return min(
        by_threshold,
        key=lambda each: (round(cost(by_threshold[each]), 6), abs(each - THRESHOLD)),
    )


@dataclass
class Results:
    """What was measured, in sections; each result is printed, and written to `out` if it is
    given."""

    out: Path | None
    sections: dict[str, dict[str, object]] = field(default_factory=dict)

    def note(self, section: str, name: str, result: object) -> None:
        self.sections.setdefault(section, {})[name] = result
        print(section, name, json.dumps(result), flush=True)
        if self.out:
            self.out.write_text(json.dumps(self.sections, indent=1) + "\n")


def choose_threshold(
    results: Results,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    streams: int,
    fps: float,
) -> float:
    """The one of the lowest cost on `streams` streams of each setting of CHOSEN_ON."""
    seeds = range(VALIDATION, VALIDATION + streams)
    watched = [film for setting in CHOSEN_ON for film in films(model, setting, seeds, fps)]
    scores: dict[float, Score] = {}
    for each in THRESHOLDS:
        scores[each] = measure(model, tokenizer, watched, TARGETS, each)
        results.note("validation", f"threshold {each}", scores[each].report())
    return chosen(scores)


def measure_speech(
    results: Results,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    streams: int,
    threshold: float,
    fps: float,
) -> None:
    """What is reported of the streams of all settings."""
    by_setting: dict[str, Score] = {}
    for setting in SETTINGS:
        count = max(1, streams // (1 if setting.objects == CROWDED else SPARSE))
        watched = list(films(model, setting, range(HELD_OUT, HELD_OUT + count), fps))
        by_setting[setting.name] = measure(model, tokenizer, watched, TARGETS, threshold)
        results.note("say when a SHAPE appears", setting.name, by_setting[setting.name].report())
        if setting.name == f"{UNKNOWN}, gaps":
            score = measure(model, tokenizer, watched, COLORFUL, threshold)
            results.note("say when something COLOR appears", setting.name, score.report())
    for looks in (KNOWN, UNKNOWN, ""):
        of_these = [score for name, score in by_setting.items() if name.startswith(looks)]
        results.note("say when a SHAPE appears", f"all {looks}".strip(), total(of_these).report())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--streams", type=int, default=20, help="streams a setting")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second that are seen")
    parser.add_argument("--threshold", type=float, help="of silence (default: it is chosen)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_model(arguments.base)
    model = merged(load_model(arguments.base), read_adapter(arguments.adapter))
    tokenizer = Tokenizer.from_file(str(arguments.base / "tokenizer.json"))
    results, threshold = Results(arguments.out), arguments.threshold
    if threshold is None:
        streams = max(1, 2 * arguments.streams // 3)
        threshold = choose_threshold(results, model, tokenizer, streams, arguments.fps)
    results.note("threshold", "silence", threshold)
    measure_speech(results, model, tokenizer, arguments.streams, threshold, arguments.fps)
    for setting in ORDINARY:
        for name, which in (("base", base), ("with the adapter", model)):
            count = max(1, arguments.streams // 2)
            answers = evaluate.measure(which, tokenizer, setting, count, arguments.fps)
            results.note("ordinary questions", f"{setting.name}, {name}", answers)


if __name__ == "__main__":
    main()
