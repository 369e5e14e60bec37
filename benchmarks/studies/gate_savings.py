"""What the gates of standing questions save, and what they miss.

    python -m vicort.benchmarks.studies.gate_savings --out benchmarks/results/gate_savings.json

Streams of the synthetic world in which mostly nothing happens, the same as of `vicort-eval alerts`.
For each shape it is asked every second whether there was one in the last seconds. Every question is
asked, and beside its probability of yes it is written down whether anything changed in memory, and
how like the question the chunks are that came. From that follows what each gate would have left
out: an answer that is left out is the one before. The gate `like` works as in an alert, only while
the answer before is a clear no. Its threshold keeps a share of the askings whose true answer is yes
and before which something was kept; it is learned on streams of other seeds, in looks of training.
The others have looks that training never saw.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, study_parser, with_budget
from vicort.benchmarks.evaluation.alert_streams import AlertStream, Looks, make_alert_stream
from vicort.export.tiny.world import SHAPES
from vicort.runtime.alerts.rule import AlertRule
from vicort.runtime.core import Constraint, Question
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.memory.kept_content import ContentMark, KeptContent
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

FPS = 4  # frames a second: two units
WINDOW = Fraction(4)  # seconds before an asking that its question reads
YES_NO = Constraint(choices=("yes", "no"))
EVEN = 0.5  # probability above which an answer is yes
LOW = AlertRule.below  # probability below which it is a clear no
# seed of the first stream, and its looks: where the threshold is learned, and the others; none of
# the seeds of vicort-eval
GROUPS: tuple[tuple[int, Looks], ...] = ((2_000_500, "training"), (500, "held-out"))
SHARES = (0.99, 0.95, 0.9)  # of the askings with yes that a threshold keeps
SYSTEMS: dict[str, System] = {
    "distinct": with_budget("distinct"),
    "timechat-online": with_budget("timechat-online", host_mb=0),
    "uniform": with_budget("uniform"),
}


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, streams=4)
    parser.add_argument("--seconds", type=int, default=900, help="of a stream (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    options = parser.parse_args()
    jobs = [
        (seed + number, looks, options.seconds, options.engine_dir)
        for seed, looks in GROUPS
        for number in range(options.streams)
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        rows = list(pool.map(watch_stream, *zip(*jobs, strict=True)))
    groups = rows[: options.streams], rows[options.streams :]
    askings = {
        name: tuple([each for row in group for each in row[name]] for group in groups)
        for name in SYSTEMS
    }
    report = {
        "conditions": machine.conditions(),
        "command": " ".join(sys.argv[1:]),
        "window_s": float(WINDOW),
        "streams": options.streams,
        "seconds": options.seconds,
        "systems": {name: gates(*both) for name, both in askings.items()},
    }
    return finish(report, options.out)


@dataclass(frozen=True)
class StandingAsking:
    """One alert at one moment."""

    alert: tuple[str, str]  # the stream and the shape
    at: int  # seconds
    probability: float  # of yes
    truth: bool
    changed: bool  # whether it could read anything else than a second before
    # the largest cosine of the question with what came since then; -1 = nothing came
    likeness: float


def watch_stream(
    seed: int, looks: Looks, seconds: int, engine_dir: Path
) -> dict[str, list[StandingAsking]]:
    """Every question of a stream, with each system. Runs in a process of its own."""
    stream, engines = make_alert_stream(seed, looks, seconds), EngineSet.open(engine_dir, threads=1)
    askings: dict[str, list[StandingAsking]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.mp4"
        stream.write(path)
        for name, system in SYSTEMS.items():
            began = time.monotonic()
            askings[name] = list(watched(path, stream, engines, system))
            took = time.monotonic() - began
            print(f"{stream.name}, {name}: {took:.0f} s", file=sys.stderr, flush=True)
    return askings


def watched(
    path: Path, stream: AlertStream, engines: EngineSet, system: System
) -> Iterator[StandingAsking]:
    """Every question of a stream. It stands still while they are answered."""
    texts = {shape: f"was there a {shape}?" for shape in SHAPES}
    with Session(engines, system, fps=FPS) as session, open_source(str(path)) as source:
        inspection = session.inspect()
        words = {
            shape: engines.embedding[np.asarray(inspection.prompt.words(text))].mean(axis=0)
            for shape, text in texts.items()
        }
        before: ContentMark | None = None
        for frame in source.frames(session.wants):
            session.push(frame)
            if frame.time.denominator != 1:
                continue
            at, since = int(frame.time), max(Fraction(0), frame.time - WINDOW)
            futures = [
                session.submit(Question(text, frame.time, since=since, constraint=YES_NO))
                for text in texts.values()
            ]
            answers = [future.result() for future in futures]
            memory, within = inspection.memory, Question("", since=since).within
            content = KeptContent(memory, memory.fork, ())
            now = content.mark(within)
            for shape, answer in zip(texts, answers, strict=True):
                likeness = (
                    1.0 if before is None else content.likeness_since(before, words[shape], within)
                )
                yield StandingAsking(
                    (stream.name, shape),
                    at,
                    (answer.choices or {})["yes"],
                    any(
                        start <= at and end >= float(since)
                        for start, end in stream.stretches(shape)
                    ),
                    before is None or now.mark != before.mark,
                    1.0 if likeness is None else likeness,
                )
            before = now


def gates(learning: Sequence[StandingAsking], others: Sequence[StandingAsking]) -> dict[str, Any]:
    """What each gate saved and missed of `others`, with thresholds from `learning`."""
    report: dict[str, Any] = {
        "askings": len(others),
        "true answer yes": sum(each.truth for each in others),
        "wrong answers, no gate": wrong([each.probability for each in others], others),
        "area under the curve of likeness": area(others),
        "changed": outcome(others, changed=True),
    }
    for share in SHARES:
        like = threshold(learning, share)
        gate = f"like, keeping {share:.0%}"
        report[gate] = {"threshold": round(like, 4)} | outcome(others, like=like)
        report[f"changed and {gate}"] = outcome(others, changed=True, like=like)
    return report


def threshold(askings: Iterable[StandingAsking], share: float) -> float:
    """The largest that keeps this share of the askings with yes before which something came."""
    likeness = sorted(each.likeness for each in askings if each.truth and each.likeness > -1)
    return likeness[int((1 - share) * len(likeness))]


def area(askings: Iterable[StandingAsking]) -> float:
    """How often an asking with yes is likelier than one with no, of those before which something
    came: 0.5 = likeness says nothing."""
    came = [each for each in askings if each.likeness > -1]
    yes = np.array([each.likeness for each in came if each.truth])
    no = np.sort([each.likeness for each in came if not each.truth])
    below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return round(float(below.mean() / 2 / len(no)), 4)


def outcome(
    askings: Sequence[StandingAsking], *, changed: bool = False, like: float | None = None
) -> dict[str, Any]:
    """With such a gate: the share of askings that it saves, and how the answers that count follow
    those without a gate."""
    others = wrong_ones = saved = lost = 0
    delays: list[int | None] = []
    for alert in by_alert(askings):
        own, closed = followed(alert, changed, like)
        pairs = list(zip(own, alert, strict=True))
        others += sum((p > EVEN) != (each.probability > EVEN) for p, each in pairs)
        wrong_ones += wrong(own, alert)
        saved += sum(closed)
        lost += sum(shut and each.truth for shut, each in zip(closed, alert, strict=True))
        delays += late([each.probability for each in alert], own)
    missed = sum(delay is None for delay in delays)
    followed_late = [delay for delay in delays if delay]
    return {
        "saved": round(saved / len(askings), 4),
        "saved with true answer yes": lost,
        "answers that are others": others,
        "wrong answers": wrong_ones,
        "changes of the answer": len(delays),
        "missed": missed,
        "late": len(followed_late),
        "latest_s": max(followed_late, default=0),
    }


def by_alert(askings: Sequence[StandingAsking]) -> Iterator[list[StandingAsking]]:
    """The askings of each alert, in their order."""
    alerts: dict[tuple[str, str], list[StandingAsking]] = {}
    for each in askings:
        alerts.setdefault(each.alert, []).append(each)
    yield from alerts.values()


def followed(
    alert: Sequence[StandingAsking], changed: bool, like: float | None
) -> tuple[list[float], list[bool]]:
    """The probabilities that count, and whether each asking was left out.

    What came before an asking that was left out was unlike too, so only what came since then can
    open the gate of likeness.
    """
    counted: list[float] = []
    closed: list[bool] = []
    for each in alert:
        shut = bool(counted) and (
            (changed and not each.changed)
            or (like is not None and counted[-1] < LOW and each.likeness < like)
        )
        counted.append(counted[-1] if shut else each.probability)
        closed.append(shut)
    return counted, closed


def late(truth: Sequence[float], counted: Sequence[float]) -> list[int | None]:
    """Of each change between yes and no of the answers without a gate: seconds until the one that
    counts follows; None = not before they change again."""
    wanted, got = ([p > EVEN for p in row] for row in (truth, counted))
    starts = [at for at in range(1, len(wanted)) if wanted[at] != wanted[at - 1]]
    delays: list[int | None] = []
    for start, end in pairwise([*starts, len(wanted)]):
        delays.append(next((at - start for at in range(start, end) if got[at] == wanted[at]), None))
    return delays


def wrong(probabilities: Sequence[float], askings: Sequence[StandingAsking]) -> int:
    pairs = zip(probabilities, askings, strict=True)
    return sum((p > EVEN) != each.truth for p, each in pairs)


if __name__ == "__main__":
    sys.exit(main())
