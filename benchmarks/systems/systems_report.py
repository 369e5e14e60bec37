"""The systems' comparison as tables: cost, accuracy by age, and significant differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.evaluation.ages import wilson
from vicort.benchmarks.systems.significance import ALPHA
from vicort.benchmarks.systems.twins import TWIN

MISSING = "–"
WORDS = {1: "better", 0: "not significant", -1: "worse"}  # of a verdict


def tables(part: dict[str, Any]) -> list[Table]:
    return [accuracy_table(part), cost_table(part), verdict_table(part)]


def accuracy_table(part: dict[str, Any]) -> Table:
    """Share of right answers, with a 95 % interval (Wilson) and, of a twin, what it reads."""
    ages = part["ages"]
    header = ("system", "tokens read", "now", *(_age(age, part) for age in ages))
    rows = [
        (
            _label(name),
            f"{row['tokens_read']:.0f}",
            *(
                _accuracy(row["accuracy"][key])
                for key in ("now", *(f"{age} units" for age in ages))
            ),
        )
        for name, row in _whole(part)
    ]
    return Table(
        "ACCURACY of the systems by the age of what is asked about; [95 % interval of each cell, "
        "questions taken as independent]",
        (
            *_conditions(part),
            (
                f"Ages are in units of {part['unit_seconds']:g} s; (chunks of "
                f"{part['chunk_units']} "
                "units)."
            ),
        ),
        header,
        tuple(rows),
        tuple(_failures(part)),
    )


def cost_table(part: dict[str, Any]) -> Table:
    """What a system costs by the clock and in memory."""
    header = (
        *(
            "system",
            "frames/s",
            "sequential",
            "first token idle, ms",
            "while ingesting, ms",
            "lag at 1x, ms",
            "dropped",
        ),
        *("tokens read", "kept", "pages device + host", "MB held", "MB moved", "reruns", "RSS MB"),
    )
    return Table(
        "COST of the systems; first token and lag: p50 / p95 / p99",
        (
            *_conditions(part),
            f"Timed after {part['fill_frames']} frames, or {part['unbounded_fill_frames']} if it "
            "forgets nothing, one system at a time. A "
            "twin reads as many tokens here as its system does here.",
            "Idle: nothing else runs; while ingesting: frames come as fast as they are taken.",
            "At 1x: frames come at the rate of a camera, a question every half second, the "
            "oldest chunk is dropped if it cannot keep up.",
        ),
        header,
        tuple(
            (_label(name), *_costs(row))
            for name, row in _whole(part)
            if "ingest" in row and "ingest" in part["rows"][name.removeprefix(TWIN)]
        ),
        (
            "MB held: pages in use before questions. Moved: between device and host. Reruns: "
            "runs of the language graph made again over",
            "other pages, of chunks and questions. Both over the timed stream, fill included.",
        ),
    )


def verdict_table(part: dict[str, Any]) -> Table:
    """Old events: each system against its twin and against simplestream."""
    rows = []
    groups = {f"{age} units": f"{age} units" for age in part["old_ages"]} | {"old": "all old"}
    for name, row in _whole(part):
        compared = part["verdicts"].get(name, {})
        if "twin" in compared:
            twin = part["rows"][TWIN + name]
            ttft = " / ".join(_p50(side) for side in (row, twin))
            cells = [_compared(compared["twin"][group]) for group in groups]
            bare = (
                _compared(compared["simplestream"]["old"])
                if "simplestream" in compared
                else MISSING
            )
            rows.append((name, *cells, bare, ttft))
    old = ", ".join(map(str, part["old_ages"]))
    return Table(
        "SAME BYTES: events that are old, each system against the uniform that reads as many "
        "tokens and has the same store",
        (
            f"Old: {old} units, that is {min(part['old_ages']) / part['chunk_units']:g} chunks or "
            "more. Points of accuracy "
            "[95 % bootstrap over streams], p of an exact sign-flip test",
            "over streams, raised by Holm's rule over the systems; 'better' and 'worse' where "
            f"that is below {ALPHA:g}. First token: idle, "
            "p50, the system / its uniform.",
        ),
        (
            "system",
            *(f"{title}: against its uniform" for title in groups.values()),
            "all old: against simplestream",
            "first token, ms",
        ),
        tuple(rows),
    )


def old_accuracy(row: dict[str, Any], part: dict[str, Any]) -> tuple[float, float, float]:
    """Accuracy over old events, and its 95 % interval."""
    marks = "".join(marks for age in part["old_ages"] for marks in row["right"][str(age)].values())
    right = marks.count("1")
    return right / len(marks), *wilson(right, len(marks))


def _whole(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with answers, each twin after its system."""
    for name, row in part["rows"].items():
        if "right" in row:
            yield name, row


def _failures(part: dict[str, Any]) -> Iterator[str]:
    """Streams that a slow system did not watch, and rows that failed."""
    for name, row in part["rows"].items():
        if row.get("streams", part["streams"]) < part["streams"]:
            yield (
                f"{name} is slow: it watched the first {row['streams']} streams only, and is "
                "compared over those."
            )
        if "error" in row:
            yield f"{name} FAILED: {row['error']}"


def _conditions(part: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{part['engine_set']} (videollm-online: {part['speaking_engine_set']}); {part['streams']} "
        "unseen streams, seven things each,",
        "through H.264 files and the pipeline.",
        f"Store: {part['store_mb']:g} MB of pages for every system ({part['store_units']} whole "
        "units; the oldest question is asked after "
        f"{max(part['ages'])} more), full-history excepted.",
    )


def _label(name: str) -> str:
    return "  its uniform" if name.startswith(TWIN) else name


def _age(age: int, part: dict[str, Any]) -> str:
    return f"{age} ({age / part['chunk_units']:g})"


def _accuracy(cell: dict[str, Any]) -> str:
    return f"{100 * cell['accuracy']:.0f} % [{100 * cell['low']:.0f}, {100 * cell['high']:.0f}]"


def _costs(row: dict[str, Any]) -> tuple[str, ...]:
    replay, sequential = row.get("replay"), row.get("sequential")
    return (
        f"{row['ingest']['frames_a_second']['median']:.0f}",
        f"{sequential['frames_a_second']['median']:.0f}" if sequential else MISSING,
        _percentiles(row["ttft_ms"]["idle"]),
        _percentiles(row["ttft_ms"]["while ingesting"]),
        _percentiles(replay["lag_ms"]) if replay else MISSING,
        f"{replay['dropped']} of {replay['frames']}" if replay else MISSING,
        f"{row['tokens_read_when_timed']:.0f}",
        f"{row['kept_share']:.0%}",
        " + ".join(map(str, row["pages"].values())),
        f"{row['stored_mb']:.1f}",
        f"{row['moved_mb']:.1f}",
        str(row["reruns"]),
        f"{row['rss_mb']:.0f}",
    )


def _percentiles(values: dict[str, float] | None) -> str:
    return (
        " / ".join(f"{values[level]:.1f}" for level in ("p50", "p95", "p99")) if values else MISSING
    )


def _p50(row: dict[str, Any]) -> str:
    return f"{row['ttft_ms']['idle']['p50']:.1f}" if "ttft_ms" in row else MISSING


def _compared(result: dict[str, Any]) -> str:
    interval = f"[{100 * result['low']:+.0f}, {100 * result['high']:+.0f}]"
    return (
        f"{100 * result['difference']:+.0f} {interval}, p {result['p_holm']:.2g}: "
        f"{WORDS[result['better']]}"
    )
