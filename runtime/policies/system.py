"""A system: one YAML file that names a policy for each decision and its parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.drop import DROPS, Drop
from vicort.runtime.policies.ingest import INGESTS, Ingest
from vicort.runtime.policies.long_term import LONG_TERMS, LongTermPolicy
from vicort.runtime.policies.overflow import OVERFLOWS, Overflow
from vicort.runtime.policies.registry import MOST
from vicort.runtime.policies.retrieval import RETRIEVALS, Retrieval
from vicort.runtime.policies.speech import SPEECHES, Speech, WhenAsked
from vicort.runtime.safe_text import read_text, shown

MOST_BYTES = 65_536  # of a system file
LONGEST_NAME = 100  # characters
MOST_MB = 16e6  # of a tier: 16 TB
SECTIONS = (
    "name",
    "about",
    "chunk",
    "drop",
    "ingest",
    "retrieval",
    "long_term",
    "text",
    "speaks",
    "memory",
)
NEEDED = ("name", "drop", "ingest", "memory")


class Budget(BaseModel):
    """Bytes that pages may take, a tier, in MB of 1e6 bytes; allocated once, committed by the
    system as it is touched."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device_mb: float = Field(1024, gt=0, le=MOST_MB)
    host_mb: float = Field(0, ge=0, le=MOST_MB)


class ChunkSize(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    # None = as many as the engines take
    frames: int | None = Field(None, ge=UNIT_FRAMES, le=MOST, multiple_of=UNIT_FRAMES)


class Text(BaseModel):
    """Whether questions and answers become part of the stream, so that what comes sees them; then
    chunks wait for answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    joins: bool = False
    tokens: int = Field(default=512, ge=1, le=MOST)  # the latest that stay


@dataclass(frozen=True)
class System:
    name: str
    drop: Drop
    ingest: Ingest
    # of the units in memory; with long-term memory, of those in the recent window
    retrieval: Retrieval
    overflow: Overflow
    budget: Budget
    long_term: LongTermPolicy | None = None
    text: Text = field(default_factory=lambda: Text())
    speaks: Speech = field(default_factory=lambda: WhenAsked())
    chunk_frames: int | None = None  # frames in a chunk, None = as many as the engines take

    @property
    def wants_motion(self) -> bool:
        """Whether its frames should carry what their codec tells of motion."""
        return self.drop.reads_motion


def known_systems() -> list[str]:
    folder = resources.files("vicort.configs") / "systems"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def load_system(name: str | Path) -> System:
    """A system by its name, or by the path of a YAML file.

    Raises ConfigError, listing what is known, for an unknown name, key, policy or value.
    """
    if str(name) in known_systems():
        return parse_system(
            (resources.files("vicort.configs") / "systems" / f"{name}.yaml").read_text(),
            f"{name}.yaml",
        )
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"unknown system {str(name)!r}: choose one of {', '.join(known_systems())}, or give "
            "the path of a YAML file"
        )
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"system file {path} cannot be read ({error}): choose one of "
            f"{', '.join(known_systems())}"
        ) from error
    return parse_system(text, str(path))


class _PlainLoader(yaml.SafeLoader):
    """YAML that runs nothing and repeats nothing: aliases are how a small file becomes a large
    one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"aliases (*{shown(self.peek_event().anchor)}) are not taken here: write the "
                "value out"
            )
        return super().compose_node(parent, index)


def parse_system(text: str, where: str) -> System:
    """A system from YAML text; `where` names it in errors."""
    try:
        content: Any = yaml.load(text, _PlainLoader)
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        why = (
            " ".join(str(error).split())
            if isinstance(error, yaml.YAMLError)
            else "a value that YAML does not allow, or nested too deep"
        )
        raise ConfigError(f"{where} is not YAML: {why}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where} holds {type(content).__name__}, not the keys {', '.join(SECTIONS)}"
        )
    if unknown := set(content) - set(SECTIONS):
        raise ConfigError(
            f"{where}: unknown key {min(map(shown, unknown))}: the keys are {', '.join(SECTIONS)}"
        )
    needed = {*NEEDED, *(() if "long_term" in content else ("retrieval",))}
    if missing := needed - set(content):
        raise ConfigError(
            f"{where}: key {sorted(missing)[0]!r} is missing: the keys are {', '.join(SECTIONS)}"
        )
    if {"long_term", "retrieval"} <= set(content):
        raise ConfigError(
            f"{where}: retrieval and long_term both say what a question sees: leave one of them out"
        )
    name, memory = content["name"], content["memory"]
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{where}: name is {shown(name)}: give one of at most {LONGEST_NAME} letters"
        )
    if not isinstance(memory, dict):
        raise ConfigError(
            f"{where}: memory is {shown(memory)}, not the keys device_mb, host_mb, when_full"
        )
    system = System(
        name=name,
        drop=DROPS.create(content["drop"], where),
        ingest=INGESTS.create(content["ingest"], where),
        retrieval=RETRIEVALS.create(content.get("retrieval", {"policy": "all"}), where),
        overflow=OVERFLOWS.create({"policy": memory.get("when_full")}, where),
        budget=_settings(
            Budget,
            {key: value for key, value in memory.items() if key != "when_full"},
            f"{where}: memory",
            "when_full",
        ),
        long_term=LONG_TERMS.create(content["long_term"], where)
        if "long_term" in content
        else None,
        speaks=SPEECHES.create(content.get("speaks", {"policy": "when-asked"}), where),
        text=_settings(Text, content.get("text", {}), f"{where}: text"),
        chunk_frames=_settings(ChunkSize, content.get("chunk", {}), f"{where}: chunk").frames,
    )
    _check_bounds(system, where)
    return system


def _check_bounds(system: System, where: str) -> None:
    if system.long_term and system.ingest.window is None:
        raise ConfigError(
            f"{where}: with long_term, ingest needs a window that chunks leave: take policy "
            "recent-chunks"
        )
    if system.ingest.anchor_rule and not system.drop.reads_motion:
        raise ConfigError(
            f"{where}: ingest.anchors are units with an I frame, which drop policy motion knows: "
            "name that, or leave them out"
        )
    if system.speaks.by_itself and not (system.text.joins and system.ingest.prefills):
        raise ConfigError(
            f"{where}: with speaks streaming-eos, words join a stream that is prefilled: set "
            "text.joins, and ingest to all"
        )
    unbounded = system.retrieval.reads_everything or system.ingest.window is None
    if system.budget.host_mb and unbounded and not system.long_term:
        raise ConfigError(
            f"{where}: policy 'all' reads every page on the device: set memory.host_mb to 0, or "
            "bound ingest and retrieval"
        )


M = TypeVar("M", bound=BaseModel)


def _settings(kind: type[M], settings: Any, where: str, *others: str) -> M:
    """A section of plain values. others: keys of the section that are read elsewhere."""
    keys = ", ".join([*kind.model_fields, *others])
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} is {shown(settings)}, not the keys {keys}")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{where}.{'.'.join(map(str, first['loc']))}: {first['msg']}; the keys are {keys}"
        ) from error
