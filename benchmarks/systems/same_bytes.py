"""First token at the same bytes, on the streams that the systems are compared on: systems, the
`uniform` of each, and others, in turns.

    python -m vicort.benchmarks.systems.same_bytes --engine-dir engines/tiny-fp32-openvino \\
        --out benchmarks/results/same_bytes.json

`vicort-bench` times the systems minutes apart, on a busy stream. Here each session has watched one
of the files of the accuracy table to its end, 1,000 units after the last thing; then all are asked
the same questions, one system after the other, with nothing else running. So a system and its
`uniform` answer within a tenth of a second; every other round is in reverse order.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.common.spread import percentiles
from vicort.benchmarks.common.study import finish, session_after, study_parser
from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.systems.significance import DRAWS
from vicort.benchmarks.systems.twins import TWIN, twin_of, with_store
from vicort.export.tiny.world import SHAPES
from vicort.runtime.core import Answer, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.session import Session

SYSTEMS = ("distinct", "vicostream", "livevlm")
OTHERS = ("uniform", "simplestream")
AGE = 1000  # units


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, streams=3)
    words = "of seven questions for each stream (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=12, help=words)
    options = parser.parse_args()
    about = conditions() | {
        "engines": options.engine_dir.name,
        "streams": options.streams,
        "rounds": options.rounds,
        "age_units": AGE,
    }
    found: dict[str, list[Answer]] = {}
    with EngineSet.open(options.engine_dir, threads=1) as engines:
        for video in shapestream.load(engines.manifest.model, options.streams, (AGE,)).videos:
            for name, answers in ask(engines, str(video.path), options.rounds).items():
                found.setdefault(name, []).extend(answers)
    rows = {name: row(answers, found.get(TWIN + name)) for name, answers in found.items()}
    return finish({"conditions": about, "rows": rows}, options.out, shown=rows)


def ask(engines: EngineSet, path: str, rounds: int) -> dict[str, list[Answer]]:
    """Answers of each system after one file, without those of the first round."""
    unit_tokens, store_mb = engines.manifest.model.unit_tokens, Settings().store_mb
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}

        def watch(system: System) -> None:
            session = session_after(path, engines, with_store(engines, system, store_mb))
            sessions[system.name] = stack.enter_context(session)

        for name in (*SYSTEMS, *OTHERS):
            watch(load_system(name))
            if name in SYSTEMS:
                tokens = median(answer.tokens_read for answer in asked(sessions[name]))
                watch(twin_of(load_system(name), tokens, unit_tokens))
        answers: dict[str, list[Answer]] = {name: [] for name in sessions}
        for number in range(rounds + 1):
            # the second of a pair runs with warm shapes
            for name, session in list(sessions.items())[:: 1 - 2 * (number % 2)]:
                given = asked(session)
                answers[name] += given if number else []
        return answers


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
