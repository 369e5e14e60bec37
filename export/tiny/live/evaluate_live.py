"""How well the tiny model speaks by itself, on streams it never saw, through encoded files; and
what its ordinary answers lost.

    python -m vicort.export.tiny.live.evaluate_live --out export/tiny/live/evaluation.json

Runs transformers' own class with the adapter merged, the positions of vicort and full history: the
reference for what the pipeline reaches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.qwen2_5_vl.adapter import Adapter, read_adapter
from vicort.export.tiny import evaluate
from vicort.export.tiny.evaluate import (
    DEFAULT,
    HELD_OUT,
    LONG,
    MAX_ANSWER_TOKENS,
    EvaluationSetting,
    ReferenceReader,
    load_model,
)
from vicort.export.tiny.live.scene_layout import ScenePositions
from vicort.export.tiny.live.scenes import Target
from vicort.export.tiny.live.train_live import END, THRESHOLD
from vicort.export.tiny.model import TOKENS_PER_SECOND, encode_units
from vicort.export.tiny.video import read_units, write_video
from vicort.export.tiny.world import (
    COLORS,
    SHAPES,
    UNSEEN,
    Thing,
    ThingStream,
    make_stream,
    shifted,
)
from vicort.export.tiny.world_questions import named
from vicort.runtime.core import UNIT_FRAMES

ADAPTER = Path(__file__).parent / "adapter"
THRESHOLDS = (0.5, 0.9)  # besides the one that is used
GRACE = 1.0  # seconds, a unit: what is said so long after a thing is gone still means it
TARGETS = tuple(Target(f"a {shape}", shape=shape) for shape in SHAPES)
COLORFUL = tuple(Target(f"something {color}", color=color) for color in COLORS)
SETTINGS = (
    DEFAULT,
    replace(LONG, name="a minute of nothing", empties=60),
    *(replace(DEFAULT, name=f"style {name}", style=style) for name, style in UNSEEN.items()),
)
ORDINARY = tuple(
    setting
    for setting in evaluate.SETTINGS
    if setting.name in ("objects 4", "objects 7", "empties 64")
)


@dataclass(frozen=True)
class Said:
    seen_until: Fraction  # seconds, last frame of the unit after which it was said
    text: str


@dataclass
class Score:
    seconds: float = 0.0  # of video, each instruction for itself
    appearances: int = 0
    reported: int = 0
    worded: int = 0  # of those reported: colour and shape correct
    late: float = 0.0  # seconds, sum of |said - appeared| over those reported
    false_alarms: int = 0

    def report(self) -> dict[str, float | int]:
        return {
            "minutes": round(self.seconds / 60, 2),
            "appearances": self.appearances,
            "missed": self.appearances - self.reported,
            "right_words": self.worded,
            "time_diff_s": round(self.late / max(1, self.reported), 3),
            "false_alarms": self.false_alarms,
            "false_alarms_a_minute": round(self.false_alarms / (self.seconds / 60), 3),
        }

    def add(self, things: Sequence[Thing], target: Target, said: Sequence[Said]) -> None:
        """Each thing is reported by the first words while it is visible; all other words are false
        alarms."""
        awaited = [thing for thing in things if target.matches(thing)]
        self.appearances += len(awaited)
        for each in said:
            found = next(
                (thing for thing in awaited if thing.start <= each.seen_until <= thing.end + GRACE),
                None,
            )
            if found is None:
                self.false_alarms += 1
                continue
            awaited.remove(found)
            self.reported += 1
            self.worded += each.text == named(found)
            self.late += abs(float(each.seen_until) - found.start)


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

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, threshold: float) -> None:
        super().__init__(model)
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
        while len(tokens) < MAX_ANSWER_TOKENS and (token := int(logits.argmax())) != END:
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


def stream_of(setting: EvaluationSetting, seed: int) -> ThingStream:
    """Up to seven things, and in the middle of the stream, not after it, the setting's seconds of
    nothing."""
    objects, (width, height) = setting.objects[seed % len(setting.objects)], setting.size
    stream = shifted(make_stream(seed, objects, width / height, tail=2.0), seconds=1.3)
    half = len(stream.things) // 2
    late = shifted(stream, setting.empties)
    return replace(late, things=stream.things[:half] + late.things[half:])


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    setting: EvaluationSetting,
    streams: int,
    targets: Sequence[Target],
    threshold: float = THRESHOLD,
) -> dict[str, float | int]:
    """One pass over each stream for every target."""
    score = Score()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(HELD_OUT, HELD_OUT + streams):
            stream, path = stream_of(setting, seed), Path(folder) / f"stream.{setting.container}"
            write_video(
                path,
                stream,
                setting.size,
                setting.fps,
                setting.codec,
                setting.bitrate,
                setting.style,
                setting.options,
            )
            frames, times = read_units(path)
            with torch.inference_mode():
                features = encode_units(model, torch.from_numpy(np.ascontiguousarray(frames)))
            for target in targets:
                score.add(
                    stream.things,
                    target,
                    watch(LiveSpeaker(model, threshold), target, features, times),
                )
                score.seconds += stream.duration
    return score.report()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--streams", type=int, default=6, help="streams a setting")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base, model = load_model(), merged(load_model(), read_adapter(arguments.adapter))
    results: dict[str, dict] = {}

    def note(section: str, name: str, result: object) -> None:
        results.setdefault(section, {})[name] = result
        print(section, name, result, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")

    note(
        "say when a SHAPE appears",
        DEFAULT.name,
        measure(model, DEFAULT, arguments.streams, TARGETS),
    )
    for setting in ORDINARY:
        for name, which in (("base", base), ("with the adapter", model)):
            note(
                "ordinary questions",
                f"{setting.name}, {name}",
                evaluate.measure(which, setting, arguments.streams),
            )
    for setting in SETTINGS[1:]:
        note(
            "say when a SHAPE appears",
            setting.name,
            measure(model, setting, arguments.streams, TARGETS),
        )
    note(
        "say when something COLOR appears",
        DEFAULT.name,
        measure(model, DEFAULT, arguments.streams, COLORFUL),
    )
    for threshold in THRESHOLDS:
        result = measure(model, DEFAULT, arguments.streams, TARGETS, threshold)
        note("say when a SHAPE appears", f"{DEFAULT.name}, threshold {threshold}", result)


if __name__ == "__main__":
    main()
