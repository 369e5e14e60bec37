"""First token at the same bytes, on the streams that the systems are compared on: systems, the
`uniform` of each, and others, in turns.

    python -m vicort.benchmarks.systems.same_bytes --engine-dir engines/tiny-fp32-openvino --out benchmarks/results/same_bytes.json

`vicort-bench` times systems on a busy stream of its own, minutes apart. Here each session has
watched one of the files of the accuracy table to its end, 1,000 units after the last thing; then
all are asked the same questions, one system after the other, with nothing else running. So answers
come in pairs, of a system and its `uniform`, within a tenth of a second; every other round goes
backwards.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import percentiles
from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.systems.significance import DRAWS
from vicort.benchmarks.systems.twins import TWIN, twin_of, with_store
from vicort.export.tiny.world import SHAPES
from vicort.runtime.core import Answer, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

SYSTEMS = ("distinct", "vicostream", "livevlm")
OTHERS = ("uniform", "simplestream")
AGE = 1000  # units


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, default=Path("engines/tiny-fp32-openvino"))
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12, help="of seven questions, a stream")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before, found = conditions(), dict[str, list[Answer]]()
    with EngineSet.open(options.engine_dir, threads=1) as engines:
        for video in shapestream.load(engines.manifest.model, options.streams, (AGE,)).videos:
            for name, answers in ask(engines, str(video.path), options.rounds).items():
                found.setdefault(name, []).extend(answers)
    rows = {name: row(answers, found.get(TWIN + name)) for name, answers in found.items()}
    print(json.dumps(rows, indent=1))
    if options.out:
        about = before | {
            "engines": options.engine_dir.name,
            "streams": options.streams,
            "rounds": options.rounds,
            "age_units": AGE,
        }
        options.out.write_text(json.dumps({"conditions": about, "rows": rows}, indent=1) + "\n")
    return 0


def ask(engines: EngineSet, path: str, rounds: int) -> dict[str, list[Answer]]:
    """Answers of each system after one file, without those of the first round."""
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name in SYSTEMS:
            system = with_store(engines, load_system(name), Settings().store_mb)
            sessions[name] = watched(stack, engines, system, path)
            tokens = median(answer.tokens_read for answer in asked(sessions[name]))
            twin = with_store(
                engines,
                twin_of(system, tokens, engines.manifest.model.unit_tokens),
                Settings().store_mb,
            )
            sessions[twin.name] = watched(stack, engines, twin, path)
        for name in OTHERS:
            sessions[name] = watched(
                stack, engines, with_store(engines, load_system(name), Settings().store_mb), path
            )
        answers: dict[str, list[Answer]] = {name: [] for name in sessions}
        for number in range(rounds + 1):
            # who comes second finds its shapes warm
            for name, session in list(sessions.items())[:: 1 - 2 * (number % 2)]:
                given = asked(session)
                answers[name] += given if number else []
        return answers


def watched(stack: ExitStack, engines: EngineSet, system: System, path: str) -> Session:
    """A session that has seen a file to its end."""
    session = stack.enter_context(Session(engines, system))
    with open_source(path) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
    session.finish()
    return session


def asked(session: Session) -> list[Answer]:
    return [
        session.ask(f"what color was the {shape}?", sampling=Sampling(max_tokens=4))
        for shape in SHAPES
    ]


def row(answers: list[Answer], twins: list[Answer] | None) -> dict[str, Any]:
    """twins: answers of the system's `uniform` to the same questions."""
    ttft_ms = np.array([answer.ttft_ms for answer in answers])
    found = {
        "ttft_ms": percentiles(ttft_ms.tolist()),
        "tokens_read": round(median(answer.tokens_read for answer in answers)),
        "answers": len(answers),
    }
    if twins:
        found["more_than_its_uniform_ms"] = median_with_interval(
            ttft_ms - [answer.ttft_ms for answer in twins]
        )
    return found


def median_with_interval(values: np.ndarray) -> dict[str, float]:
    """The median, and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {
        "median": round(float(np.median(values)), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
