"""What it costs to limit an answer: computing which tokens may follow, and a whole token.

    python -m vicort.benchmarks.studies.token_masks --tokenizer FOLDER \\
        --out benchmarks/results/token_masks.json

FOLDER holds the tokenizer.json of a published model, padded to the width of its logits. *A mask* is
what a token costs besides the engine: the token is taken, what may follow is computed, and the
logits of all else are set to minus infinity, on one thread; texts are drawn at random among the
allowed ones, so that strings of any characters are in them. In an answer all but the last of these
runs while the engine does. *A token* is that of the embedded model, whose engine is the quickest
there is, and whose vocabulary is small: free and limited answers take turns, both drawn at a high
temperature.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import interleaved, percentiles, spread
from vicort.benchmarks.common.study import finish, session_after, study_parser, with_budget
from vicort.export.tiny.tokenizer import CHAT_TEMPLATE
from vicort.runtime.core import Constraint, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.language.prompt import TOKENIZER_FILE, Prompt
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.language.token_grammars import TokenGrammars
from vicort.runtime.session import Session

WIDTH = 151_936  # of the logits of Qwen2.5-VL
ENDS = ("<|im_end|>", "<|endoftext|>")
VIDEO = "<|video_pad|>"
SCHEMA = {
    "type": "object",
    "properties": {
        "seen": {"type": "boolean"},
        "color": {"enum": ["red", "green", "blue", "black", "white"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "description": {"type": "string", "maxLength": 200},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["seen", "color", "count", "description", "tags"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "JSON schema": Constraint(json_schema=json.dumps(SCHEMA)),
    "regular expression": Constraint(
        regex=r"(yes|no), (a|the) [a-z]{2,12} (car|person|parcel)( in [a-z ]{1,60})?\."
    ),
}
# of a mask, and how long the CPU worked on it, which other programs do not add to
MEASURED = ("computing", "computing, of the CPU", "with setting logits")
MOST_TOKENS = 96  # of one drawn text
TOKENS = 32  # of an answer of the embedded model
WORDS = Constraint(regex=f"[a-z]+( [a-z]+){{{TOKENS - 1}}}")
# so high that all tokens are equally likely, and few answers end early
DRAWN = Sampling(temperature=1e6, top_p=1.0, top_k=0, repetition_penalty=1.0, max_tokens=TOKENS)
SOURCE = "testsrc:seconds=8"
QUESTION = "what is there now?"


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="of a published model; without: no masks"
    )
    parser.add_argument("--texts", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
    }
    if options.tokenizer:
        report["masks"] = masks(options.tokenizer, options.texts)
    with EngineSet.open(options.engine_dir) as engines:
        report["a token of the embedded model"] = tokens(engines, options.rounds)
    return finish(report, options.out)


def masks(folder: Path, texts: int) -> dict[str, Any]:
    """Times of a published model's vocabulary: of preparing it, and of each constraint."""
    grammars, seconds = prepared(folder)
    return {"width": WIDTH, "preparing the tokenizer, s": round(seconds, 3)} | {
        name: mask_times(grammars, constraint, texts) for name, constraint in CONSTRAINTS.items()
    }


def prepared(folder: Path) -> tuple[TokenGrammars, float]:
    """Grammars on a tokenizer, and the seconds that llguidance takes to read it. Raises ConfigError
    if the folder has none."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise ConfigError(f"{file} is missing: name the folder of a published model's tokenizer")
    with tempfile.TemporaryDirectory() as set_folder:
        (Path(set_folder) / TOKENIZER_FILE).write_bytes(file.read_bytes())
        (Path(set_folder) / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        prompt = Prompt(Path(set_folder), _token(set_folder, VIDEO))
    ends = [token for name in ENDS if (token := prompt.token_id(name)) is not None]
    grammars = TokenGrammars(prompt, WIDTH, ends)
    start = time.perf_counter()
    grammars.check(Constraint(regex="yes|no"))
    return grammars, time.perf_counter() - start


def _token(folder: str, name: str) -> int:
    added = json.loads((Path(folder) / TOKENIZER_FILE).read_text())["added_tokens"]
    return next(int(each["id"]) for each in added if each["content"] == name)


def mask_times(grammars: TokenGrammars, constraint: Constraint, texts: int) -> dict[str, Any]:
    """Milliseconds of compiling a constraint and of each mask of drawn texts."""
    start = time.perf_counter()
    grammars.check(constraint)
    compiling = time.perf_counter() - start
    found: dict[str, list[float]] = {name: [] for name in MEASURED}
    for seed in range(texts):
        draw_text(grammars, constraint, seed, found)
    return {"compiling, ms": round(1e3 * compiling, 3)} | {
        f"{name}, ms": percentiles(times, 4) for name, times in found.items()
    }


def draw_text(
    grammars: TokenGrammars, constraint: Constraint, seed: int, found: dict[str, list[float]]
) -> list[int]:
    """Draw a text of at most MOST_TOKENS tokens, and add the milliseconds of its masks."""
    mask = grammars.start(constraint)
    if mask is None:
        raise ValueError("choices have no masks")
    random, tokens = np.random.default_rng(seed), list[int]()
    choice = TokenChoice(Sampling.greedy())
    while len(tokens) < MOST_TOKENS and not mask.closed:
        logits = random.standard_normal(WIDTH, np.float32)
        token = choice.choose(logits, tokens, mask.allowed())
        if mask.ends(token):
            break
        tokens.append(token)
        start, busy = time.perf_counter(), time.thread_time()
        mask.accept(token)
        allowed = mask.allowed()
        found["computing"].append(1e3 * (time.perf_counter() - start))
        found["computing, of the CPU"].append(1e3 * (time.thread_time() - busy))
        logits[~allowed] = -np.inf
        found["with setting logits"].append(1e3 * (time.perf_counter() - start))
    return tokens


def tokens(engines: EngineSet, rounds: int) -> dict[str, Any]:
    """Milliseconds a token of free and of limited answers, and the second by the first, round by
    round."""
    with session_after(SOURCE, engines, with_budget("distinct")) as session:
        ways: dict[str, Callable[[], float]] = {
            "free": lambda: token_time(session, None),
            "limited": lambda: token_time(session, WORDS),
        }
        for way in ways.values():  # caches and the grammar
            way()
        times = interleaved(ways, rounds)
    ratios = [b / a for a, b in zip(times["free"], times["limited"], strict=True)]
    return {name: spread(values) for name, values in times.items()} | {
        "limited / free": spread(ratios)
    }


def token_time(session: Session, constraint: Constraint | None, answers: int = 10) -> float:
    """The median of milliseconds between the pieces of answers, which are tokens."""
    gaps: list[float] = []
    for seed in range(answers):
        times: list[float] = []
        session.ask(
            QUESTION,
            sampling=Sampling(**vars(DRAWN) | {"seed": seed}),
            constraint=constraint,
            on_token=lambda piece, times=times: times.append(time.perf_counter()),  # type: ignore[misc]
        )
        gaps += np.diff(times).tolist()
    return 1e3 * float(np.median(gaps))


if __name__ == "__main__":
    sys.exit(main())
