"""A system: one YAML file that names a policy for each decision and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.runtime.bounded import read_text, shown
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.drop import DROPS, Drop
from vicort.runtime.policies.ingest import INGESTS, AllChunks, Ingest
from vicort.runtime.policies.overflow import OVERFLOWS, Overflow
from vicort.runtime.policies.retrieval import RETRIEVALS, AllUnits, Retrieval

MOST_BYTES = 65_536  # of a system file
LONGEST_NAME = 100  # characters
MOST_MB = 16e6  # of a tier: 16 TB
SECTIONS = ("name", "about", "drop", "ingest", "retrieval", "memory")


class Budget(BaseModel):
    """Bytes that pages may take, a tier, in MB of 1e6 bytes; allocated once, committed by the system as it is touched."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device_mb: float = Field(1024, gt=0, le=MOST_MB)
    host_mb: float = Field(0, ge=0, le=MOST_MB)


@dataclass(frozen=True)
class System:
    name: str
    drop: Drop
    ingest: Ingest
    retrieval: Retrieval
    overflow: Overflow
    budget: Budget


def known_systems() -> list[str]:
    folder = resources.files("vicort.configs") / "systems"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_system(name: str | Path) -> System:
    """A system by its name, or by the path of a YAML file.

    Raises ConfigError, listing what is known, for an unknown name, key, policy or value.
    """
    if str(name) in known_systems():
        return parse_system((resources.files("vicort.configs") / "systems" / f"{name}.yaml").read_text(), f"{name}.yaml")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"unknown system {str(name)!r}: choose one of {', '.join(known_systems())}, or give the path of a YAML file")
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"system file {path} cannot be read ({error}): choose one of {', '.join(known_systems())}") from error
    return parse_system(text, str(path))


class _PlainLoader(yaml.SafeLoader):
    """YAML that runs nothing and repeats nothing: aliases are how a small file becomes a large one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{shown(self.peek_event().anchor)}) are not taken here: write the value out")
        return super().compose_node(parent, index)


def parse_system(text: str, where: str) -> System:
    """A system from YAML text; `where` names it in errors."""
    try:
        content: Any = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else "a value that YAML does not allow, or nested too deep"
        raise ConfigError(f"{where} is not YAML: {why}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where} holds {type(content).__name__}, not the keys {', '.join(SECTIONS)}")
    if unknown := set(content) - set(SECTIONS):
        raise ConfigError(f"{where}: unknown key {min(map(shown, unknown))}: the keys are {', '.join(SECTIONS)}")
    if missing := set(SECTIONS) - {"about"} - set(content):
        raise ConfigError(f"{where}: key {sorted(missing)[0]!r} is missing: the keys are {', '.join(SECTIONS)}")
    name, memory = content["name"], content["memory"]
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ConfigError(f"{where}: name is {shown(name)}: give one of at most {LONGEST_NAME} letters")
    if not isinstance(memory, dict):
        raise ConfigError(f"{where}: memory is {shown(memory)}, not the keys device_mb, host_mb, when_full")
    try:
        budget = Budget.model_validate({key: value for key, value in memory.items() if key != "when_full"})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{where}: memory.{'.'.join(map(str, first['loc']))}: {first['msg']}; the keys are device_mb, host_mb, when_full"
        ) from error
    system = System(
        name=name,
        drop=DROPS.create(content["drop"], where),
        ingest=INGESTS.create(content["ingest"], where),
        retrieval=RETRIEVALS.create(content["retrieval"], where),
        overflow=OVERFLOWS.create({"policy": memory.get("when_full")}, where),
        budget=budget,
    )
    unbounded = isinstance(system.retrieval, AllUnits) or isinstance(system.ingest, AllChunks)
    if budget.host_mb and unbounded:
        raise ConfigError(f"{where}: policy 'all' reads every page on the device: set memory.host_mb to 0, or bound ingest and retrieval")
    return system
