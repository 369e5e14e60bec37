"""What FreeKV's speculation does on video: how alike queries are that follow one another, how often corrections bite, what they cost.

    python -m vicort.benchmarks.freekv --streams 2 --clip clip.mp4 --out benchmarks/results/freekv.json

Files as in `shapestream`: seven things, then nothing for up to 1,000 units. Each variant of the system watches each file; `uniform` reads
as many tokens. Then streams in which something new comes all the time, one behind the other, and real clips, over and over, for the
queries of chunks; and answers of 32 tokens, whose end is ignored, timed with speculation and without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.evaluation.ages import Row, by_age, row_of
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.benchmarks.machine import conditions
from vicort.export.tiny.evaluate import HELD_OUT, LONG
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import make_stream
from vicort.runtime.core import Sampling
from vicort.runtime.engine import EngineSet
from vicort.runtime.long_term.page_digest import query_similarity
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.system import load_system

WINDOW = 512  # tokens of the recent window that every variant reads besides
ANSWER = 32  # tokens of a timed answer
BUSY = 12  # files of the world, some 26 seconds each
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
class Runs:
    """The language engine, and what each of its runs asked for."""

    engine: Any
    q: dict[str, list[list[np.ndarray]]] = field(default_factory=lambda: defaultdict(list))  # "chunk", "answer": series of [L, Hq, D]
    reads: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # how often each was read, one after another
    at: list[int] = field(default_factory=list)  # perf_counter_ns when a token's last run began
    _before: dict[int, bytes] = field(default_factory=dict)  # buffers of a run -> positions of their newest

    @property
    def signature(self) -> Any:
        return self.engine.signature

    def enqueue(self, bindings: Any, stream: Any) -> Any:
        began, done = time.perf_counter_ns(), self.engine.enqueue(bindings, stream)
        tokens, q = bindings["tokens"], bindings["q"].copy()
        kind = "chunk" if tokens.max() < 0 else "answer"
        buffers, positions = tokens.ctypes.data, bindings["pos"].tobytes()
        again, self._before[buffers] = self._before.get(buffers) == positions, positions
        if kind == "answer" and len(tokens) == 1:
            self.at.append(began)
        if again:
            self.q[kind][-1][-1] = q
            self.reads[kind][-1] += 1
        else:
            if not self.q[kind] or (kind == "answer" and len(tokens) > 1):
                self.q[kind].append([])
            self.q[kind][-1].append(q)
            self.reads[kind].append(1)
        return done

    def clear(self) -> None:
        for each in (self.q, self.reads, self.at, self._before):
            each.clear()


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines/tiny-fp32-openvino"))
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--ages", type=int, nargs="+", default=(0, 64, 250, 1000), help="units (default: %(default)s)")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated (default: all)")
    parser.add_argument("--clip", type=Path, action="append", default=[], help="a video whose chunks are looked at, too; may be repeated")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = conditions()
    rows: list[Row] = []
    chosen = {name: VARIANTS[name] for name in options.variant or VARIANTS}
    with tempfile.TemporaryDirectory() as name, EngineSet.open(options.engine_dir) as engines:
        folder, model = Path(name), engines.manifest.model
        runs = engines.llm = Runs(engines.llm)
        systems = {variant: write_system(folder, "freekv", variant, changes) for variant, changes in chosen.items()}
        for budget in sorted({changes.get("budget", 1024) for changes in chosen.values()}):
            units = (WINDOW + budget) // model.unit_tokens
            systems[f"uniform-{units}"] = write_system(folder, "uniform", f"uniform-{units}", {"units": units})
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
                print(f"{video.name}: {variant}: {json.dumps(queries[variant])}", file=sys.stderr, flush=True)
        busy = {"busy world": [new_things(folder, seed) for seed in range(BUSY)]} | {clip.name: [clip] * REPEATED for clip in options.clip}
        chunks = {
            f"{what}, {variant}": chunk_queries(paths, engines, runs, systems.get(variant) or "freekv")
            for what, paths in busy.items()
            for variant in ("freekv", "freekv-64")
        }
        print(json.dumps(chunks, indent=1), file=sys.stderr)
        times = {kind: timed(last, engines, runs, write_system(folder, "freekv", kind, changes)) for kind, changes in TIMED.items()}
    table = by_age(rows)
    for variant, cells in table.items():
        print(f"{variant:28}" + "  ".join(f"{task} {100 * cell['accuracy']:.1f} %" for task, cell in cells.items()))
    print(json.dumps(times, indent=1))
    if options.out:
        about = before | {"engines": options.engine_dir.name, "streams": options.streams, "answer tokens timed": ANSWER}
        written = {"conditions": about, "accuracy": table, "last stream": queries, "chunks": chunks, "answers": times}
        options.out.write_text(json.dumps(written, indent=1) + "\n")
    return 0


def write_system(folder: Path, base: str, name: str, changes: dict[str, Any]) -> str:
    """A system file that changes parameters of a policy that comes with vicort; returns its path."""
    content = yaml.safe_load((resources.files("vicort.configs") / "systems" / f"{base}.yaml").read_text())
    content["long_term" if "long_term" in content else "retrieval"] |= changes
    path = folder / f"{name.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(content | {"name": name}))
    return str(path)


def told(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    """How alike the queries of a stream and its answers were, and how often a chunk or a token was read again."""
    answers = runs.q["answer"]
    return {
        **told_of_chunks(runs, model),
        "question to first token": spread_of(similarities([series[:2] for series in answers], model, 0)),
        "token to next": spread_of(similarities([series[1:] for series in answers], model, 0)),
        "questions and tokens": len(runs.reads["answer"]),
        "questions and tokens read again": sum(count > 1 for count in runs.reads["answer"]),
    }


def told_of_chunks(runs: Runs, model: ModelSpec) -> dict[str, Any]:
    return {
        "chunk to next": spread_of(similarities(runs.q["chunk"], model, 0)),
        "chunks": len(runs.reads["chunk"]),
        "chunks read again": sum(count > 1 for count in runs.reads["chunk"]),
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
        found = told_of_chunks(runs, engines.manifest.model) | {"moved MB a chunk": round(summary.moved_mb / summary.chunks, 3)}
    return found


def similarities(series: Iterable[list[np.ndarray]], model: ModelSpec, skip: int) -> np.ndarray:
    """Cosines of neighbours, one a layer and KV head."""
    found = [query_similarity(b, a, model.kv_heads) for each in series for a, b in zip(each[skip:], each[skip + 1 :], strict=False)]
    return np.array(found).reshape(-1)


def spread_of(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle = np.percentile(values, (5, 50))
    parts = {"median": middle, "p5": low, "least": values.min(), "below 0.8": (values < 0.8).mean(), "below 0.9": (values < 0.9).mean()}
    return {name: round(float(value), 3) for name, value in parts.items()}


def timed(path: Path, engines: EngineSet, runs: Runs, system: str) -> dict[str, Any]:
    """Milliseconds of answers about a whole file, each asked twice, the first time for nothing."""
    model = engines.manifest.model
    engines.manifest = engines.manifest.model_copy(update={"model": model.model_copy(update={"eos_tokens": ()})})
    between, first, moved = [], [], []
    try:
        with Session(engines, load_system(system), sampling=Sampling(max_tokens=ANSWER)) as session, open_source(str(path)) as source:
            for frame in source.frames(session.wants):
                session.push(frame)
            session.ask("what is there now?")
            for _ in range(2):
                for shape in ("circle", "square", "triangle", "cross", "ring", "diamond", "star"):
                    runs.clear()
                    before = session.summary()
                    first.append(session.ask(f"what color was the {shape}?").ttft_ms)
                    between += np.diff(runs.at).tolist()
                    moved.append(session.summary().moved_mb - before.moved_mb)
    finally:
        engines.manifest = engines.manifest.model_copy(update={"model": model})
    steps = np.array(between[len(between) // 2 :]) / 1e6
    return {
        "first token ms": round(float(np.median(first[len(first) // 2 :])), 2),
        "next token ms": {"p50": round(float(np.median(steps)), 3), "p95": round(float(np.percentile(steps, 95)), 3)},
        "moved MB an answer": round(float(np.median(moved)), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
