"""Context, accuracy, performance: each system's position on the three axes, computed from its
measurements, and the axes that it improves.

The principle is Zeng et al.'s ("The CAP Principle for LLM Serving: A Survey", arXiv 2405.11299):
work on serving aims at longer context (C), higher accuracy (A) or better performance (P), and one
optimisation improves two of them at most; a guiding principle, they say, and no theorem. It leaves
open how each is measured. These measures are ours:

- C: the oldest age, in seconds, at which a system still answers at least LEVEL of the questions,
  and at every younger age too; besides,
  that age for each MB of pages held.
- A: the share of right answers over all ages, each age with the same weight.
- P: frames a second, overlapped, and the first token's median, idle. It is better if one of the two
  is by more than MARGIN and the
  other is not worse by as much; worse the other way round; where one is better and the other worse,
  neither.
"""

from __future__ import annotations

from typing import Any

from vicort.benchmarks.common.tables import Table
from vicort.benchmarks.systems.significance import ALPHA, compare
from vicort.benchmarks.systems.systems import right_of
from vicort.benchmarks.systems.twins import TWIN
from vicort.runtime.errors import ConfigError

LEVEL = 0.75  # of the questions; one guess in six is right by chance
MARGIN = 0.05
REFERENCE = "full-history"  # nothing optimised: everything is kept and read
SIGNS = {1: "+", 0: "=", -1: "−"}


def place(parts: dict[str, Any]) -> dict[str, Any]:
    """Every system's position, against full history and, if it has a twin, against that. Raises
    ConfigError without the part `systems`."""
    if "systems" not in parts:
        raise ConfigError(
            "--only cap: it reads the part systems of the same result, which is not there: add "
            "--only systems"
        )
    part = parts["systems"]
    whole = {name: row for name, row in part["rows"].items() if "right" in row and "ingest" in row}
    axes = {name: _axes(row, part) for name, row in whole.items()}
    for name, here in axes.items():
        references = {"reference": REFERENCE, "twin": TWIN + name}
        here["against"] = {
            kind: _against(name, other, axes, whole, part)
            for kind, other in references.items()
            if other in axes and other != name
        }
    return {
        "level": LEVEL,
        "margin": MARGIN,
        "alpha": ALPHA,
        "reference": REFERENCE,
        "oldest_s": _oldest(part),
        "systems": axes,
    }


def _axes(row: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    context = remembered(row["accuracy"], part["ages"]) * part["unit_seconds"]
    cells = [
        row["accuracy"][key]["accuracy"]
        for key in ("now", *(f"{age} units" for age in part["ages"]))
    ]
    return {
        "context_s": context,
        "context_s_a_mb": round(context / row["stored_mb"], 1) if row["stored_mb"] else None,
        "accuracy": round(sum(cells) / len(cells), 4),
        "frames_a_second": row["ingest"]["frames_a_second"]["median"],
        "ttft_ms": row["ttft_ms"]["idle"]["p50"],
    }


def remembered(accuracy: dict[str, Any], ages: list[int]) -> int:
    """The oldest age in units up to which every age is answered at LEVEL; 0 if not even what has
    just gone is."""
    oldest = 0
    for age in sorted(ages):
        if accuracy[f"{age} units"]["accuracy"] < LEVEL:
            break
        oldest = age
    return oldest


def _oldest(part: dict[str, Any]) -> float:
    return max(part["ages"]) * part["unit_seconds"]


def _against(
    name: str, other: str, axes: dict[str, Any], rows: dict[str, Any], part: dict[str, Any]
) -> dict[str, int]:
    """1, 0 or -1 for C, A and P."""
    ours, theirs = axes[name], axes[other]
    ages = [-1, *part["ages"]]
    answers = compare(right_of(rows[name], ages), right_of(rows[other], ages))
    return {
        "C": _sign(ours["context_s"] - theirs["context_s"]),
        "A": _sign(answers["difference"]) if answers["p"] < ALPHA else 0,
        "P": performance(ours, theirs),
    }


def performance(ours: dict[str, float], theirs: dict[str, float]) -> int:
    """Of two numbers each: the rate, of which more is better, and the first token, of which less
    is."""
    gains = (
        ours["frames_a_second"] / theirs["frames_a_second"],
        theirs["ttft_ms"] / ours["ttft_ms"],
    )
    signs = {(gain > 1 + MARGIN) - (gain < 1 / (1 + MARGIN)) for gain in gains}
    return 0 if {1, -1} <= signs else sum(signs)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def table(cap: dict[str, Any]) -> Table:
    rows = []
    for name, here in cap["systems"].items():
        if not name.startswith(TWIN):
            context = (
                f"{here['context_s']:g} s{' or more' * (here['context_s'] == cap['oldest_s'])}"
            )
            per_mb = f"{here['context_s_a_mb']:g}" if here["context_s_a_mb"] else "–"
            cells = (
                context,
                per_mb,
                f"{here['accuracy']:.0%}",
                f"{here['frames_a_second']:.0f}",
                f"{here['ttft_ms']:.1f} ms",
            )
            rows.append(
                (
                    name,
                    *cells,
                    *(signs(here["against"].get(kind)) for kind in ("reference", "twin")),
                )
            )
    return Table(
        "CAP  context, accuracy, performance (arXiv 2405.11299; its measures are ours)",
        (
            f"C: oldest age at which {cap['level']:.0%} of the questions are answered right, and "
            "all younger ones. A: mean over the ages.",
            "P: frames a second and first token, idle, p50. + better, − worse, = neither:",
            f"C by any step, A by p < {cap['alpha']:g} over streams, P by more than "
            f"{cap['margin']:.0%}, and not where one of its two is "
            "better and the other worse.",
        ),
        (
            "system",
            "C",
            "C, s a MB",
            "A",
            "P, frames/s",
            "P, first token",
            f"against {cap['reference']}",
            "against its uniform",
        ),
        tuple(rows),
        tuple(statements(cap)),
    )


def signs(against: dict[str, int] | None) -> str:
    return " ".join(f"{axis}{SIGNS[sign]}" for axis, sign in against.items()) if against else "–"


def statements(cap: dict[str, Any]) -> list[str]:
    """In words, which axes each system improves over reading as much evenly spaced; over full
    history where it has no twin."""
    words = {"C": "context", "A": "accuracy", "P": "performance"}
    lines = []
    for name, here in cap["systems"].items():
        kind = "twin" if "twin" in here["against"] else "reference"
        if name.startswith(TWIN) or kind not in here["against"]:
            continue
        other = "its uniform" if kind == "twin" else cap["reference"]
        better, worse = (
            [words[axis] for axis, sign in here["against"][kind].items() if sign == side]
            for side in (1, -1)
        )
        lines.append(
            f"{name}, against {other}: improves {' and '.join(better) or 'none'}; worsens "
            f"{' and '.join(worse) or 'none'}."
        )
    all_three = [
        name
        for name, here in cap["systems"].items()
        if set(here["against"].get("twin", {0: 0}).values()) == {1}
    ]
    lines.append(
        f"All three at the same time, over its uniform: {', '.join(all_three) or 'none of them'}."
    )
    return lines
