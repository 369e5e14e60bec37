"""How well the tiny model speaks by itself, on streams it never saw, through encoded files; and
what its ordinary answers lost.

    python -m vicort.export.tiny.live.evaluate_live --out export/tiny/live/evaluation.json
    python -m vicort.export.tiny.live.evaluate_live --fps 4 \\
        --out export/tiny/live/evaluation_4_fps.json

The threshold of silence is chosen first, on streams of their own in the looks of training. Then
every stream is watched once for every target, and once more for VideoLLM-online's own metrics
(`spoken_turn.py`). Runs transformers' own class with the adapter merged, the positions of vicort
and full history: the reference for what the pipeline reaches.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

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
from vicort.export.tiny.live.spoken_turn import SpokenTurn, TurnScore, units_tried_later
from vicort.export.tiny.live.train_live import END, THRESHOLD
from vicort.export.tiny.looks import held_out_look, random_look
from vicort.export.tiny.model import CHECKPOINT, TOKENS_PER_SECOND, encode_units
from vicort.export.tiny.reels import MIXED, labels
from vicort.export.tiny.video import read_units
from vicort.export.tiny.world import COLORS, SHAPES, StreamPlan, Thing
from vicort.export.tiny.world_questions import named
from vicort.runtime.core import UNIT_FRAMES

Rule = Literal["published", "threshold"]  # as `speaks.rule` of a system
Part = Literal["speech", "turns", "questions"]  # of what is measured
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


Stretch = Sequence[tuple[Tensor, int]]  # units: features [16, width], and time in steps


@dataclass(frozen=True)
class Film:
    """A stream as the model sees it."""

    things: tuple[Thing, ...]
    seconds: float
    features: Tensor  # [U, 16, width]
    times: list[Fraction]  # of the 2 U frames
    there: np.ndarray  # [U, 2, 2] int: the things in each frame from left to right, -1 = none

    def units(self) -> list[tuple[Tensor, int]]:
        first = self.times[0]
        starts = self.times[::UNIT_FRAMES]
        return [
            (rows, int((start - first) * TOKENS_PER_SECOND))
            for rows, start in zip(self.features, starts, strict=True)
        ]

    def reports(self, target: Target) -> list[tuple[int, str]]:
        """(unit, what is right to say after it), as the adapter was trained: each thing is reported
        after the first unit that shows it."""
        reported: set[int] = set()
        found = []
        for unit, shown in enumerate(self.there):
            wanted = [k for k in dict.fromkeys(shown.ravel().tolist()) if k >= 0]
            due = [k for k in wanted if k not in reported and target.matches(self.things[k])]
            if due:
                found.append((unit, named(*(self.things[k] for k in due))))
                reported.update(due)
        return found


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
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Tokenizer,
        threshold: float,
        rule: Rule,
    ) -> None:
        """threshold, rule: as `StreamingEos` of the runtime has them."""
        super().__init__(model, tokenizer)
        self._places, self._threshold, self._rule = ScenePositions(self.prompt), threshold, rule

    @torch.inference_mode()
    def instruct(self, instruction: str) -> str:
        """Hears an instruction, and answers it."""
        return self._say(self._place(self.tokenizer.encode("<|vision_end|>" + instruction).ids))

    @torch.inference_mode()
    def sees(self, features: Tensor, time: int) -> str | None:
        """features [16, width] of a unit at `time` in steps -> what is said after it, None =
        nothing."""
        logits = self._after_unit(features, time)
        return None if self._is_silent(logits) else self._say(_words(logits))

    @torch.inference_mode()
    def turn(self, units: Stretch, words: str, later: Stretch) -> SpokenTurn:
        """Watches units after which `words` are due, and hears them; later: units that are tried
        without these words if it is silent, and not kept."""
        silent = []
        for features, time in units:
            logits = self._after_unit(features, time)
            silent.append(self._is_silent(logits))
        tried = self._tried(later) if all(silent) else []
        text = [*self.tokenizer.encode(words).ids, END]
        rows = self._causal(self._embed(text), self._places.text(len(text)), last=len(text))
        before = torch.cat([_words(logits)[None], rows[:-1]]).log_softmax(-1)
        return SpokenTurn(
            np.array(silent),
            np.array(tried, bool),
            (before.argmax(-1) == torch.tensor(text)).numpy(),
            before[range(len(text)), text].numpy(),
        )

    def _tried(self, units: Stretch) -> list[bool]:
        past, places = self.cache.get_seq_length(), copy.copy(self._places)
        silent = [self._is_silent(self._after_unit(features, time)) for features, time in units]
        if units:
            self.cache.crop(past - self.cache.get_seq_length())
        self._places = places
        return silent

    def _after_unit(self, features: Tensor, time: int) -> Tensor:
        return self._causal(features, self._places.unit(time))[0]

    def _is_silent(self, logits: Tensor) -> bool:
        return is_silent(logits, self._threshold, self._rule)

    def _say(self, logits: Tensor) -> str:
        tokens: list[int] = []
        while len(tokens) < LONGEST and (token := int(logits.argmax())) != END:
            tokens.append(token)
            logits = self._place([token])
        self._place([END])
        return self.tokenizer.decode(tokens)

    def _place(self, tokens: list[int]) -> Tensor:
        return self._causal(self._embed(tokens), self._places.text(len(tokens)))[0]

    def _causal(self, rows: Tensor, positions: np.ndarray, last: int = 1) -> Tensor:
        """The logits after each of the `last` rows."""
        past = self.cache.get_seq_length()
        mask = np.arange(past + len(rows))[None, :] <= past + np.arange(len(rows))[:, None]
        return self.model.lm_head(self._run(rows, positions, mask)[-last:])


def is_silent(logits: Tensor, threshold: float, rule: Rule) -> bool:
    """Whether the model is silent, by the logits [V] after a unit."""
    probabilities = logits.softmax(-1)
    if probabilities[END] < threshold:
        return False
    return rule == "threshold" or int(probabilities.argmax()) == END


def _words(logits: Tensor) -> Tensor:
    """Without silence."""
    words = logits.clone()
    words[END] = -torch.inf
    return words


def watch(speaker: LiveSpeaker, target: Target, film: Film) -> list[Said]:
    """One stream from its begin, with the instruction before it."""
    speaker.instruct(f"say when {target.words} appears")
    said = []
    for unit, (rows, time) in enumerate(film.units()):
        text = speaker.sees(rows, time)
        if text is not None:
            said.append(Said(film.times[UNIT_FRAMES * unit + 1], text))
    return said


def true_turns(speaker: LiveSpeaker, target: Target, film: Film) -> list[SpokenTurn]:
    """As `watch`, but the speaker hears what is right to say, and when, instead of itself."""
    speaker.instruct(f"say when {target.words} appears")
    units, reports, turns = film.units(), film.reports(target), []
    ends = [unit + 1 for unit, _ in reports]
    next_ends = [*ends[1:], *ends[-1:]]
    start = 0
    for (_, words), end, next_end in zip(reports, ends, next_ends, strict=True):
        tried = units_tried_later(end - start, next_end - end)
        turns.append(speaker.turn(units[start:end], words, units[end : end + tried]))
        start = end
    return turns


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
            there = labels(stream, times)
            yield Film(stream.things, stream.duration, features, times, there)


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


@dataclass(frozen=True)
class Evaluation:
    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: Tokenizer
    rule: Rule
    fps: float  # frames a second that are seen

    def films(self, setting: EvaluationSetting, seeds: range) -> list[Film]:
        return list(films(self.model, setting, seeds, self.fps))

    def choose_threshold(self, results: Results, streams: int) -> float:
        """The one of the lowest cost on `streams` streams of each setting of CHOSEN_ON."""
        seeds = range(VALIDATION, VALIDATION + streams)
        watched = [film for setting in CHOSEN_ON for film in self.films(setting, seeds)]
        scores: dict[float, Score] = {}
        for each in THRESHOLDS:
            scores[each] = self.speech(watched, TARGETS, each)
            results.note("validation", f"threshold {each}", scores[each].report())
        return chosen(scores)

    def measure(
        self, results: Results, streams: int, threshold: float, parts: Sequence[Part]
    ) -> None:
        """The streams of all settings."""
        by_setting: dict[str, Score] = {}
        turns = TurnScore()
        for setting in SETTINGS:
            count = max(1, streams // (1 if setting.objects == CROWDED else SPARSE))
            watched = self.films(setting, range(HELD_OUT, HELD_OUT + count))
            if "speech" in parts:
                score = by_setting[setting.name] = self.speech(watched, TARGETS, threshold)
                results.note("say when a SHAPE appears", setting.name, score.report())
                if setting.name == f"{UNKNOWN}, gaps":
                    score = self.speech(watched, COLORFUL, threshold)
                    results.note("say when something COLOR appears", setting.name, score.report())
            if "turns" in parts and setting.objects != (0,):
                own = self.turns(watched, TARGETS, threshold)
                results.note("metrics of VideoLLM-online", setting.name, own.report())
                turns += own
        for looks in (KNOWN, UNKNOWN, "") if "speech" in parts else ():
            of_these = total(each for name, each in by_setting.items() if name.startswith(looks))
            name = f"all {looks}".strip()
            results.note("say when a SHAPE appears", name, of_these.report())
        if "turns" in parts:
            results.note("metrics of VideoLLM-online", "all", turns.report())

    def speech(self, watched: Sequence[Film], targets: Sequence[Target], threshold: float) -> Score:
        """One pass over each film for every target."""
        score = Score()
        for film in watched:
            for target in targets:
                speaker = LiveSpeaker(self.model, self.tokenizer, threshold, self.rule)
                score.add(film.things, target, watch(speaker, target, film))
                score.seconds += film.seconds
        return score

    def turns(
        self, watched: Sequence[Film], targets: Sequence[Target], threshold: float
    ) -> TurnScore:
        """Each film and target is a stream of its own."""
        score = TurnScore()
        for film in watched:
            for target in targets:
                speaker = LiveSpeaker(self.model, self.tokenizer, threshold, self.rule)
                score.add(true_turns(speaker, target, film), UNIT_FRAMES / self.fps)
        return score


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    base = load_model(options.base)
    model = merged(load_model(options.base), read_adapter(options.adapter))
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    results, threshold, parts = Results(options.out), options.threshold, options.part
    if parts and options.out and options.out.exists():
        results.sections |= json.loads(options.out.read_text())
    parts = parts or get_args(Part)
    evaluation = Evaluation(model, tokenizer, options.rule, options.fps)
    if threshold is None:
        threshold = evaluation.choose_threshold(results, max(1, 2 * options.streams // 3))
    results.note("threshold", "silence", threshold)
    results.note("threshold", "rule", options.rule)
    evaluation.measure(results, options.streams, threshold, parts)
    for setting in ORDINARY if "questions" in parts else ():
        for name, which in (("base", base), ("with the adapter", model)):
            count = max(1, options.streams // 2)
            answers = evaluate.measure(which, tokenizer, setting, count, options.fps)
            results.note("ordinary questions", f"{setting.name}, {name}", answers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--streams", type=int, default=20, help="streams a setting")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second that are seen")
    parser.add_argument("--threshold", type=float, help="of silence (default: it is chosen)")
    words = "what silence needs (default: %(default)s)"
    parser.add_argument("--rule", choices=get_args(Rule), default="threshold", help=words)
    words = "measure this alone, and keep the rest of OUT; may be repeated (default: all)"
    parser.add_argument("--part", choices=get_args(Part), action="append", help=words)
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    main()
