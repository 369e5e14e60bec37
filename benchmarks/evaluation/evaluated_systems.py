"""The systems that an evaluation compares, and what it says while it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, VicortError
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.safe_text import print_safely
from vicort.runtime.session import Session


def systems_of(names: Sequence[str]) -> dict[str, System]:
    """Systems by their `name` field. Raises ConfigError on duplicates."""
    systems: dict[str, System] = {}
    for name in names:
        system = load_system(name)
        if system.name in systems:
            raise ConfigError(
                f"--system {name}: its name {system.name!r} is used by another system: change it "
                "in its YAML file"
            )
        systems[system.name] = system
    return systems


def runnable(
    engines: EngineSet, systems: Mapping[str, System], named: bool, **options: Any
) -> dict[str, System]:
    """Systems that can run on these engines, with the budgets that they get on this machine; the
    others are left out with a warning, or raise their error if the user named them. options: of a
    session."""
    able = {}
    for name, system in systems.items():
        try:
            with Session(engines, system, **options) as session:
                able[name] = session.system
                if session.fitted.given_up:
                    say(f"warning: {session.fitted.given_up}")
        except VicortError as error:
            if named:
                raise
            say(f"warning: {name} is left out: {error}")
    return able


def declare(systems: Mapping[str, System], ledger: Ledger) -> None:
    from vicort.benchmarks.common.workload import describe_system

    for name, system in systems.items():
        ledger.declare(name, describe_system(system))


def say(line: str) -> None:
    print_safely(f"vicort-eval: {line}", file=sys.stderr)
