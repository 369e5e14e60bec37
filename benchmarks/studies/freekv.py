"""FreeKV's speculation on video: how similar successive queries are, how often a selection is
corrected, and what that costs.

    python -m vicort.benchmarks.studies.freekv --streams 2 --clip clip.mp4 \\
        --out benchmarks/results/freekv.json

Files as in `shapestream`: seven things, then nothing for up to 1,000 units. Each variant of the
system watches each file; `uniform` reads as many tokens. For the queries of chunks: streams with
new things all the time, one after the other, and real clips, repeated. Answers of 32 tokens, the
end token ignored, are timed with speculation and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.common.observed_engine import ObservedEngine, is_text
from vicort.benchmarks.common.study import finish, session_after, study_parser, with_budget
from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.evaluation.ages import Row, by_age, rows_of
from vicort.benchmarks.evaluation.items import Video
from vicort.benchmarks.evaluation.watching import Candidate
from vicort.export.tiny.evaluation_files import HELD_OUT, LONG, write_evaluation_file
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.world import SHAPES, StreamPlan
from vicort.runtime.core import Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.page_digest import query_similarity
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

WINDOW = 512  # tokens of the recent window that every variant reads besides
ANSWER = 32  # tokens of a timed answer
BUSY = 12  # files of the world, some 26 seconds each
ROUNDS = 3  # of timed questions
REPEATED = 12  # times that a real clip is shown
VARIANTS: dict[str, dict[str, Any]] = {
    "freekv": {},
    "freekv-256": {"budget": 256},
    "freekv-64": {"budget": 64},
    "freekv, chunks uncorrected": {"tau_prefill": None},
    "freekv, questions only": {"chunks": False},
    "freekv-64, min-max": {"budget": 64, "digest": "min-max"},
    "freekv-64, mean-score": {"budget": 64, "group_scores": "mean-score"},
    "freekv-64, max-score": {"budget": 64, "group_scores": "max-score"},
    "freekv-64, mean-softmax": {"budget": 64, "group_scores": "mean-softmax"},
    "freekv-64, lookahead 1": {"budget": 64, "lookahead": 1},
    "freekv-64, corrected by max": {"budget": 64, "group_similarity": "max"},
}
TIMED: dict[str, dict[str, Any]] = {
    "speculative": {"tau_decode": None},
    "waiting": {"tau_decode": None, "lookahead": 1},
    "speculative, corrected": {},
    "waiting, corrected": {"lookahead": 1},
}


@dataclass
class Series:
    """Runs over one set of buffers: a stream's chunks, or a question and the tokens of its
    answer."""

    kind: str  # "chunk" or "answer"
    newest: bytes  # positions of the newest rows
    q: list[np.ndarray] = field(default_factory=list)  # [L, Hq, D] of each run, of its last time
    times: list[int] = field(default_factory=list)  # how often each run was made


class Runs:
    """What each run of the language engine queried; `run` observes it (ObservedEngine)."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.tokens_at: list[int] = []  # perf_counter_ns, when runs of one token began
        self._open: dict[int, Series] = {}  # by the address of their buffers

    def run(self, bindings: dict[str, np.ndarray], began_ns: int) -> None:
        features, newest = bindings["features"], bindings["pos"].tobytes()
        rows, kind = len(features), "answer" if is_text(bindings) else "chunk"
        if rows == 1:
            self.tokens_at.append(began_ns)
        address = features.ctypes.data
        series = self._open.get(address)
        if series and series.newest == newest:
            series.q[-1] = bindings["q"].copy()
            series.times[-1] += 1
            return
        if series is None or series.kind != kind or (kind == "answer" and rows > 1):
            series = self._open[address] = Series(kind, newest)
            self.series.append(series)
        series.newest = newest
        series.q.append(bindings["q"].copy())
        series.times.append(1)

    def queries(self, kind: str) -> list[list[np.ndarray]]:
        return [series.q for series in self.series if series.kind == kind]

    def times(self, kind: str) -> list[int]:
        """How often each run was made, all series one after another."""
        return [times for series in self.series if series.kind == kind for times in series.times]

    def clear(self) -> None:
        for each in (self.series, self.tokens_at, self._open):
            each.clear()


def main() -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args()
    about = conditions() | {
        "engines": options.engine_dir.name,
        "streams": options.streams,
        "answer tokens timed": ANSWER,
    }
    chosen = {name: VARIANTS[name] for name in options.variant or VARIANTS}
    runs = Runs()
    with tempfile.TemporaryDirectory() as name, EngineSet.open(options.engine_dir) as engines:
        engines.llm = ObservedEngine(engines.llm, runs.run)
        folder, model = Path(name), engines.manifest.model
        systems = {name: freekv(name, changes) for name, changes in chosen.items()}
        for budget in sorted({changes.get("budget", 1024) for changes in chosen.values()}):
            units = (WINDOW + budget) // model.unit_tokens
            label = f"uniform-{units}"
            systems[label] = with_budget("uniform").with_(name=label, retrieval={"units": units})
        videos = shapestream.load(model, options.streams, options.ages).videos
        table, queries = accuracy(videos, engines, runs, systems, chosen)
        busy = {"busy world": [new_things(folder, seed) for seed in range(BUSY)]} | {
            clip.name: [clip] * REPEATED for clip in options.clip
        }
        chunks = {
            f"{what}, {name}": chunk_queries(
                paths, engines, runs, systems.get(name) or with_budget("freekv")
            )
            for what, paths in busy.items()
            for name in ("freekv", "freekv-64")
        }
        print(json.dumps(chunks, indent=1), file=sys.stderr)
        last = next(video.path for video in reversed(videos) if video.path)
        times = timed(last, engines, runs, {kind: freekv(kind, TIMED[kind]) for kind in TIMED})
    for name, cells in table.items():
        shares = (f"{task} {100 * cell['accuracy']:.1f} %" for task, cell in cells.items())
        print(f"{name:28}" + "  ".join(shares))
    result = {
        "conditions": about,
        "accuracy": table,
        "last stream": queries,
        "chunks": chunks,
        "answers": times,
    }
    return finish(result, options.out, shown=times)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(__doc__, streams=2)
    words = "units since the last thing disappeared (default: %(default)s)"
    parser.add_argument("--ages", type=int, nargs="+", default=(0, 64, 250, 1000), help=words)
    words = "may be repeated (default: all)"
    parser.add_argument("--variant", action="append", choices=VARIANTS, help=words)
    words = "a video whose chunks are measured too; may be repeated"
    parser.add_argument("--clip", type=Path, action="append", default=[], help=words)
    return parser


def accuracy(
    videos: Sequence[Video],
    engines: EngineSet,
    runs: Runs,
    systems: Mapping[str, System],
    variants: Collection[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every system over every video: accuracy by age, and, of the last video, how the variants'
    queries compare."""
    rows: list[Row] = []
    queries: dict[str, dict[str, Any]] = {}
    for video in videos:
        for name, system in systems.items():
            runs.clear()
            rows += rows_of(name, video, Candidate.of(engines, system))
            queries[name] = of_questions(runs, engines.manifest.model) if name in variants else {}
            line = f"{video.name}: {name}: {json.dumps(queries[name])}"
            print(line, file=sys.stderr, flush=True)
    return by_age(rows), queries


def freekv(name: str, changes: dict[str, Any]) -> System:
    """The system `freekv` under another name and with other parameters of its policy."""
    return with_budget("freekv").with_(name=name, long_term=changes)


def of_questions(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    """How similar the queries of a stream and its answers were, and how often a chunk or a token
    was read again."""
    answers = runs.queries("answer")
    return {
        **of_chunks(runs, model),
        "question to first token": similarity([series[:2] for series in answers], model),
        "token to next": similarity([series[1:] for series in answers], model),
        "questions and tokens": len(runs.times("answer")),
        "questions and tokens read again": sum(count > 1 for count in runs.times("answer")),
    }


def of_chunks(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    return {
        "chunk to next": similarity(runs.queries("chunk"), model),
        "chunks": len(runs.times("chunk")),
        "chunks read again": sum(count > 1 for count in runs.times("chunk")),
    }


def new_things(folder: Path, seed: int) -> Path:
    """A file of the world in which things follow one another, and that ends with the last."""
    path = folder / f"busy-{seed}.mp4"
    setting = replace(LONG, name="busy", tail=0.0, look=look_without_photo, plan=StreamPlan())
    write_evaluation_file(path, setting, HELD_OUT + 1000 + seed)
    return path


def chunk_queries(
    paths: list[Path], engines: EngineSet, runs: Runs, system: System
) -> dict[str, Any]:
    """Of files one after the other, as one stream without questions."""
    runs.clear()
    after = Fraction(0)
    with Session(engines, system) as session:
        for path in paths:
            start = after
            with open_source(str(path)) as source:
                for frame in source.frames():
                    after = start + frame.time + Fraction(1, 2)
                    if session.wants(start + frame.time):
                        session.push(replace(frame, time=start + frame.time))
        session.finish()
        summary = session.summary()
        moved = {"moved MB a chunk": round(summary.moved_mb / summary.chunks, 3)}
        return of_chunks(runs, engines.manifest.model) | moved


def similarity(series: Iterable[list[np.ndarray]], model: ModelSpec) -> dict[str, float]:
    """Cosines of neighbouring queries, one for each layer and KV head; {} if there are none."""
    pairs = [(a, b) for each in series for a, b in pairwise(each)]
    if not pairs:
        return {}
    values = np.array([query_similarity(b, a, model.kv_heads) for a, b in pairs])
    low, middle = np.percentile(values, (5, 50))
    parts = {
        "median": middle,
        "p5": low,
        "least": values.min(),
        "below 0.8": (values < 0.8).mean(),
        "below 0.9": (values < 0.9).mean(),
    }
    return {name: round(float(value), 3) for name, value in parts.items()}


def timed(path: Path, engines: EngineSet, runs: Runs, systems: dict[str, System]) -> dict[str, Any]:
    """Milliseconds of answers about a whole file, the systems in turns; the first round is not
    counted."""
    manifest = engines.manifest
    endless = manifest.model.model_copy(update={"eos_tokens": ()})
    engines.manifest = manifest.model_copy(update={"model": endless})
    first: dict[str, list[float]] = defaultdict(list)
    between: dict[str, list[float]] = defaultdict(list)
    moved: dict[str, list[float]] = defaultdict(list)
    sampling = Sampling(max_tokens=ANSWER)
    try:
        with ExitStack() as stack:
            sessions = {
                kind: stack.enter_context(session_after(path, engines, system, sampling=sampling))
                for kind, system in systems.items()
            }
            for session in sessions.values():
                session.ask("what is there now?")
            for turn in range(1 + ROUNDS):
                for shape, (kind, session) in itertools.product(SHAPES, sessions.items()):
                    runs.clear()
                    before = session.summary().moved_mb
                    answer = session.ask(f"what color was the {shape}?")
                    if turn:
                        first[kind].append(answer.ttft_ms)
                        between[kind] += (np.diff(runs.tokens_at) / 1e6).tolist()
                        moved[kind].append(session.summary().moved_mb - before)
    finally:
        engines.manifest = manifest
    return {
        kind: {
            "first token ms": quantiles(first[kind]),
            "next token ms": quantiles(between[kind]),
            "moved MB an answer": round(float(np.median(moved[kind])), 3),
        }
        for kind in systems
    }


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(values, level)), 2) for level in (10, 50, 95)}


if __name__ == "__main__":
    sys.exit(main())
