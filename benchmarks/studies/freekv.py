"""What FreeKV's speculation does on video: how alike queries are that follow one another, how often
corrections bite, what they cost.

    python -m vicort.benchmarks.studies.freekv --streams 2 --clip clip.mp4 --out benchmarks/results/freekv.json

Files as in `shapestream`: seven things, then nothing for up to 1,000 units. Each variant of the
system watches each file; `uniform` reads as many tokens. Then streams in which something new comes
all the time, one behind the other, and real clips, over and over, for the queries of chunks; and
answers of 32 tokens, whose end is ignored, timed with speculation and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.evaluation.ages import Row, by_age, row_of
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.export.tiny.evaluate import HELD_OUT, LONG
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import SHAPES, make_stream
from vicort.runtime.core import Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.page_digest import query_similarity
from vicort.runtime.policies.system import load_system
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
}
TIMED: dict[str, dict[str, Any]] = {
    "speculative": {"tau_decode": None},
    "waiting": {"tau_decode": None, "speculative": False},
    "speculative, corrected": {},
    "waiting, corrected": {"speculative": False},
}


@dataclass
class _Series:
    """Runs over one set of buffers: a stream's chunks, or a question and the tokens of its
    answer."""

    kind: str
    newest: bytes  # positions of the newest rows
    q: list[np.ndarray] = field(default_factory=list)  # [L, Hq, D] of each run, of its last time
    times: list[int] = field(default_factory=list)  # how often each was made


@dataclass
class Runs:
    """The language engine, and what each of its runs asked for."""

    engine: Any
    series: list[_Series] = field(default_factory=list)
    # perf_counter_ns, when runs of one token began
    tokens_at: list[int] = field(default_factory=list)
    _open: dict[int, _Series] = field(default_factory=dict)  # by the address of their buffers

    @property
    def signature(self) -> Any:
        return self.engine.signature

    def enqueue(self, bindings: Any, stream: Any) -> Any:
        tokens, newest = bindings["tokens"], bindings["pos"].tobytes()
        if len(tokens) == 1:
            self.tokens_at.append(time.perf_counter_ns())
        done = self.engine.enqueue(bindings, stream)
        address, kind = tokens.ctypes.data, "chunk" if tokens.max() < 0 else "answer"
        series = self._open.get(address)
        if series and series.newest == newest:
            series.q[-1] = bindings["q"].copy()
            series.times[-1] += 1
            return done
        if series is None or series.kind != kind or (kind == "answer" and len(tokens) > 1):
            series = self._open[address] = _Series(kind, newest)
            self.series.append(series)
        series.newest = newest
        series.q.append(bindings["q"].copy())
        series.times.append(1)
        return done

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, default=Path("engines/tiny-fp32-openvino"))
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument(
        "--ages",
        type=int,
        nargs="+",
        default=(0, 64, 250, 1000),
        help="units (default: %(default)s)",
    )
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="may be repeated (default: all)"
    )
    parser.add_argument(
        "--clip",
        type=Path,
        action="append",
        default=[],
        help="a video whose chunks are looked at, too; may be repeated",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = conditions()
    rows: list[Row] = []
    chosen = {name: VARIANTS[name] for name in options.variant or VARIANTS}
    with tempfile.TemporaryDirectory() as name, EngineSet.open(options.engine_dir) as engines:
        folder, model = Path(name), engines.manifest.model
        runs = engines.llm = Runs(engines.llm)
        systems = {
            variant: write_system(folder, "freekv", variant, changes)
            for variant, changes in chosen.items()
        }
        for budget in sorted({changes.get("budget", 1024) for changes in chosen.values()}):
            units = (WINDOW + budget) // model.unit_tokens
            systems[f"uniform-{units}"] = write_system(
                folder, "uniform", f"uniform-{units}", {"units": units}
            )
        queries: dict[str, dict[str, Any]] = {}
        videos = shapestream.load(model, options.streams, options.ages).videos
        last = next(video.path for video in reversed(videos) if video.path)
        for video in videos:
            items = {item.id: item for item in video.items}
            for variant, file in systems.items():
                runs.clear()
                replies = watch(video, Candidate.of(engines, load_system(file))).replies
                rows += [row_of(variant, items[reply.item], reply) for reply in replies]
                queries[variant] = told(runs, model) if variant in chosen else {}
                print(
                    f"{video.name}: {variant}: {json.dumps(queries[variant])}",
                    file=sys.stderr,
                    flush=True,
                )
        busy = {"busy world": [new_things(folder, seed) for seed in range(BUSY)]} | {
            clip.name: [clip] * REPEATED for clip in options.clip
        }
        chunks = {
            f"{what}, {variant}": chunk_queries(
                paths, engines, runs, systems.get(variant) or "freekv"
            )
            for what, paths in busy.items()
            for variant in ("freekv", "freekv-64")
        }
        print(json.dumps(chunks, indent=1), file=sys.stderr)
        times = timed(
            last,
            engines,
            runs,
            {
                kind: write_system(folder, "freekv", kind, changes)
                for kind, changes in TIMED.items()
            },
        )
    table = by_age(rows)
    for variant, cells in table.items():
        print(
            f"{variant:28}"
            + "  ".join(f"{task} {100 * cell['accuracy']:.1f} %" for task, cell in cells.items())
        )
    print(json.dumps(times, indent=1))
    if options.out:
        about = before | {
            "engines": options.engine_dir.name,
            "streams": options.streams,
            "answer tokens timed": ANSWER,
        }
        written = {
            "conditions": about,
            "accuracy": table,
            "last stream": queries,
            "chunks": chunks,
            "answers": times,
        }
        options.out.write_text(json.dumps(written, indent=1) + "\n")
    return 0


def write_system(folder: Path, base: str, name: str, changes: dict[str, Any]) -> str:
    """A system file that changes parameters of a policy that comes with vicort; returns its
    path."""
    content = yaml.safe_load(
        (resources.files("vicort.configs") / "systems" / f"{base}.yaml").read_text()
    )
    content["long_term" if "long_term" in content else "retrieval"] |= changes
    path = folder / f"{name.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(content | {"name": name}))
    return str(path)


def told(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    """How alike the queries of a stream and its answers were, and how often a chunk or a token was
    read again."""
    answers = runs.queries("answer")
    return {
        **told_of_chunks(runs, model),
        "question to first token": spread_of(
            similarities([series[:2] for series in answers], model, 0)
        ),
        "token to next": spread_of(similarities([series[1:] for series in answers], model, 0)),
        "questions and tokens": len(runs.times("answer")),
        "questions and tokens read again": sum(count > 1 for count in runs.times("answer")),
    }


def told_of_chunks(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    return {
        "chunk to next": spread_of(similarities(runs.queries("chunk"), model, 0)),
        "chunks": len(runs.times("chunk")),
        "chunks read again": sum(count > 1 for count in runs.times("chunk")),
    }


def new_things(folder: Path, seed: int) -> Path:
    """A file of the world in which things follow one another, and that ends with the last."""
    path = folder / f"busy-{seed}.mp4"
    stream = make_stream(HELD_OUT + 1000 + seed, shapestream.THINGS, LONG.size[0] / LONG.size[1])
    write_video(path, stream, LONG.size, LONG.fps, LONG.codec, LONG.bitrate, LONG.style)
    return path


def chunk_queries(paths: list[Path], engines: EngineSet, runs: Runs, system: str) -> dict[str, Any]:
    """Of files one behind the other, as one stream without questions."""
    runs.clear()
    after = Fraction(0)
    with Session(engines, load_system(system)) as session:
        for path in paths:
            start = after
            with open_source(str(path)) as source:
                for frame in source.frames():
                    after = start + frame.time + Fraction(1, 2)
                    if session.wants(start + frame.time):
                        session.push(replace(frame, time=start + frame.time))
        session.finish()
        summary = session.summary()
        found = told_of_chunks(runs, engines.manifest.model) | {
            "moved MB a chunk": round(summary.moved_mb / summary.chunks, 3)
        }
    return found


def similarities(series: Iterable[list[np.ndarray]], model: ModelSpec, skip: int) -> np.ndarray:
    """Cosines of neighbours, one a layer and KV head."""
    found = [
        query_similarity(b, a, model.kv_heads)
        for each in series
        for a, b in zip(each[skip:], each[skip + 1 :], strict=False)
    ]
    return np.array(found).reshape(-1)


def spread_of(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle = np.percentile(values, (5, 50))
    parts = {
        "median": middle,
        "p5": low,
        "least": values.min(),
        "below 0.8": (values < 0.8).mean(),
        "below 0.9": (values < 0.9).mean(),
    }
    return {name: round(float(value), 3) for name, value in parts.items()}


def timed(path: Path, engines: EngineSet, runs: Runs, systems: dict[str, str]) -> dict[str, Any]:
    """Milliseconds of answers about a whole file, the systems in turns; the first round is not
    counted."""
    model, manifest = engines.manifest.model, engines.manifest
    engines.manifest = manifest.model_copy(
        update={"model": model.model_copy(update={"eos_tokens": ()})}
    )
    first: dict[str, list[float]] = defaultdict(list)
    between: dict[str, list[float]] = defaultdict(list)
    moved: dict[str, list[float]] = defaultdict(list)
    try:
        with ExitStack() as stack:
            sessions = {
                kind: stack.enter_context(watched(path, engines, system))
                for kind, system in systems.items()
            }
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


def watched(path: Path, engines: EngineSet, system: str) -> Session:
    """A session that has seen a file."""
    session = Session(engines, load_system(system), sampling=Sampling(max_tokens=ANSWER))
    with open_source(str(path)) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
    session.ask("what is there now?")
    return session


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(values, level)), 2) for level in (10, 50, 95)}


if __name__ == "__main__":
    sys.exit(main())
