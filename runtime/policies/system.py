"""A system: one YAML file that names a policy and its parameters for each decision."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from vicort.runtime.argument_kinds import checked_name
from vicort.runtime.core import MAX_SECONDS, UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.drop import AnyDrop
from vicort.runtime.policies.ingest import AnyIngest
from vicort.runtime.policies.long_term import AnyLongTerm
from vicort.runtime.policies.overflow import AnyOverflow, Overflow
from vicort.runtime.policies.plain_yaml import parse_yaml
from vicort.runtime.policies.policy import MAX_COUNT
from vicort.runtime.policies.retrieval import AllUnits, AnyRetrieval
from vicort.runtime.policies.speech import AnySpeech, WhenAsked
from vicort.runtime.policies.validation import explain
from vicort.runtime.safe_text import read_text, shown

MAX_BYTES = 65_536  # of a system file
MAX_NAME_LENGTH = 100  # characters
MAX_MB = 16e6  # of a tier: 16 TB
MAX_HOURS = 1e6
MAX_FPS = 1000
POLICY = "policy"  # the key that names a section's policy
CHANGED = " (changed)"  # behind the name of a system with other settings


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChunkSize(Section):
    # None: as many as the engines take
    frames: int | None = Field(default=None, ge=UNIT_FRAMES, le=MAX_COUNT, multiple_of=UNIT_FRAMES)


class FrameRule(Section):
    """Which frames are taken, and what makes a temporal unit of them."""

    # a second; None: as many as the model was trained with
    fps: float | None = Field(default=None, gt=0, le=MAX_FPS)
    # True: each frame is a unit of its own, doubled; False: two frames are one
    repeat: bool = False


class Text(Section):
    """Whether questions and answers become part of the stream, so that later chunks attend to
    them. Chunks then wait for answers."""

    joins: bool = False
    tokens: int = Field(default=512, ge=1, le=MAX_COUNT)  # the latest tokens of text that stay


class ChangeRule(Section):
    """When the scene of a stream has changed, see `ChangeTrigger`: what a question at changes
    waits for."""

    # a chunk of which a larger share of the tokens is kept shows a change
    kept: float = Field(default=0.4, ge=0, lt=1)
    # seconds from one change to the next, at least
    apart: float = Field(default=0, ge=0, le=MAX_SECONDS)


AUTO = "auto"


def _none_if_auto(value: Any) -> Any:
    if value is None:
        raise ValueError(f"a budget of memory is empty: write {AUTO}, or a number of MB")
    return None if value == AUTO else value


# The best of those measured for questions about any time, see docs/systems.md.
DEFAULT_SYSTEM = "distinct"
# MB of 1e6 bytes. None, which is `auto` in files: the budget follows the model and the machine, see
# `vicort.runtime.memory.budget`.
Megabytes = Annotated[
    float | None,
    Field(ge=0, le=MAX_MB),
    BeforeValidator(_none_if_auto),
    PlainSerializer(lambda mb: AUTO if mb is None else mb),
]


class MemoryLimits(Section):
    """The page budget of each tier, and what happens when the last is full.

    A budget is reserved at the start; the operating system commits it as it is used.
    """

    device_mb: Megabytes = Field(default=None, gt=0)
    host_mb: Megabytes = 0
    # the longest stream, nothing dropped, for which an automatic budget has room
    hours: float = Field(default=12, gt=0, le=MAX_HOURS)
    # the same in visual tokens, in whole MB; None: `hours` says it
    tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    when_full: AnyOverflow


class Budget(NamedTuple):
    """MB of 1e6 bytes for the pages of each tier."""

    device_mb: float
    host_mb: float


class System(Section):
    """The content of a system file. Invalid content raises pydantic's ValidationError;
    `load_system`, `parse_system` and `with_` turn it into a ConfigError of one line."""

    name: str
    about: Any = None  # a description for readers of the file
    frames: FrameRule = FrameRule()
    chunk: ChunkSize = ChunkSize()
    drop: AnyDrop
    ingest: AnyIngest
    # which units in memory a question reads; with long-term memory, those in the recent window
    retrieval: AnyRetrieval = AllUnits()
    long_term: AnyLongTerm | None = None
    text: Text = Text()
    speaks: AnySpeech = WhenAsked()
    changes: ChangeRule = ChangeRule()
    memory: MemoryLimits

    @property
    def budget(self) -> Budget:
        """The page budgets of both tiers. Raises ValueError while one is automatic."""
        if self.memory.device_mb is None or self.memory.host_mb is None:
            raise ValueError(f"system {self.name} has an automatic budget: see `fit_budget`")
        return Budget(self.memory.device_mb, self.memory.host_mb)

    @property
    def overflow(self) -> Overflow:
        return self.memory.when_full

    @property
    def chunk_frames(self) -> int | None:
        """Frames in a chunk; None: as many as the engines take."""
        return self.chunk.frames

    def frame_rate(self, trained: float) -> float:
        """Frames a second to take, where the model was trained with `trained`."""
        return trained if self.frames.fps is None else self.frames.fps

    def units_a_second(self, fps: float) -> float:
        """Temporal units a second, of `fps` frames a second."""
        return fps / (1 if self.frames.repeat else UNIT_FRAMES)

    @property
    def wants_motion(self) -> bool:
        """Whether the source must attach the codec's motion vectors to its frames."""
        return self.drop.pruning is not None

    def with_(self, **changes: Any) -> System:
        """A changed copy, validated like a file. Raises ConfigError.

        The names are those of the YAML file. A dict changes single values of a section, anything
        else replaces it: `system.with_(memory={"device_mb": 64}, retrieval=EvenUnits(units=8))`.
        """
        content = {key: getattr(self, key) for key in self.model_fields_set}
        for key, change in changes.items():
            section = getattr(self, key) if key in KEYS else None
            if isinstance(change, dict) and isinstance(section, BaseModel):
                change = section.model_dump() | change
            content[key] = change
        return _validated(content, f"system {self.name}")

    def with_settings(self, settings: Sequence[str]) -> System:
        """A changed copy, validated like a file. Raises ConfigError.

        settings: such as `drop.threshold=0.5`: the keys of the YAML file and a value in YAML.
        Another `policy` brings its own default parameters; a key of the top level without a value
        is left out.
        """
        if not settings:
            return self
        content = self.to_content()
        where = " ".join(f"--set {setting}" for setting in settings)
        pairs = [_setting(setting) for setting in settings]
        for keys, value in sorted(pairs, key=lambda pair: pair[0][-1] != POLICY):
            _change(content, keys, value, where)
        if not any(keys == ["name"] for keys, _ in pairs):
            content["name"] = f"{self.name[: MAX_NAME_LENGTH - len(CHANGED)]}{CHANGED}"
        return _validated(content, where)

    def to_content(self) -> dict[str, Any]:
        """As a YAML file says it, defaults included."""
        content = self.model_dump(mode="json")
        for key in ("about", "long_term"):
            if content[key] is None:
                del content[key]
        if self.long_term:  # which stands in place of retrieval
            del content["retrieval"]
        return content

    def to_yaml(self) -> str:
        """A file that `load_system` reads as this system."""
        return yaml.safe_dump(self.to_content(), sort_keys=False, allow_unicode=True, width=96)

    @field_validator("name", mode="before")
    @classmethod
    def _name_is_short(cls, name: Any) -> Any:
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
            raise ValueError(
                f"name is {shown(name)}: give at most {MAX_NAME_LENGTH} printable characters"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _one_of_retrieval_and_long_term(cls, content: Any) -> Any:
        if isinstance(content, dict) and {"retrieval", "long_term"} <= set(content):
            raise ValueError(
                "retrieval and long_term both say what a question reads: leave one of them out"
            )
        return content

    @model_validator(mode="after")
    def _policies_fit_together(self) -> Self:
        if not self.long_term and "retrieval" not in self.model_fields_set:
            raise ValueError(
                "key 'retrieval' is missing: name the policy by which a question chooses units, "
                "such as similar-chunks, or set long_term"
            )
        if self.long_term and self.ingest.window is None:
            raise ValueError(
                "with long_term, ingest needs a window that chunks leave: take policy recent-chunks"
            )
        if self.drop.drops and not self.ingest.prefills:
            raise ValueError(
                f"ingest {self.ingest.policy} keeps the latest units whole, and drop "
                f"{self.drop.policy} drops tokens of them: set drop to none"
            )
        if self.ingest.anchor_rule and not self.drop.pruning:
            raise ValueError(
                "ingest.anchors are units with an I frame, which only drop policy motion knows: "
                "take that policy, or leave anchors out"
            )
        if self.speaks.by_itself and not (self.text.joins and self.ingest.prefills):
            raise ValueError(
                "with speaks streaming-eos, words join a stream that is prefilled: set "
                "text.joins, and ingest to all"
            )
        unbounded = self.retrieval.reads_everything or self.ingest.window is None
        if self.memory.host_mb != 0 and unbounded and not self.long_term:
            raise ValueError(
                "policy 'all' reads every page on the device: set memory.host_mb to 0, or "
                "bound ingest and retrieval"
            )
        return self


KEYS = tuple(System.model_fields)


def sets(settings: Sequence[str], *keys: str) -> bool:
    """Whether one of these settings is about the value of these keys, such as "frames", "fps".
    Raises ConfigError for one that is not KEY=VALUE.

    >>> sets(["frames.fps=4"], "frames", "fps"), sets(["frames={repeat: true}"], "frames", "fps")
    (True, False)
    """
    for path, value in map(_setting, settings):
        left = list(keys)
        while path and left and path[0] == left[0]:
            path, left = path[1:], left[1:]
        while left and not path and isinstance(value, dict) and left[0] in value:
            value, left = value[left[0]], left[1:]
        if not path and not left:
            return True
    return False


def _setting(text: str) -> tuple[list[str], Any]:
    """The keys and the value of KEY=VALUE. Raises ConfigError."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {text}: give a key of a system's file and its value, such as --set "
            "drop.threshold=0.5"
        )
    return keys, parse_yaml(value, f"--set {text}")


def _change(content: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> None:
    """Change one value of a file's content. Raises ConfigError."""
    *path, last = keys
    for number, key in enumerate(path, 1):
        if content.get(key) is None:
            content[key] = {}
        if not isinstance(inner := content[key], dict):
            raise ConfigError(
                f"{where}: {'.'.join(keys[:number])} is {shown(inner)}, which has no keys"
            )
        content = inner
    if last == POLICY and content.get(POLICY) != value:
        content.clear()
    if value is None and not path:
        content.pop(last, None)
    else:
        content[last] = value


def known_systems() -> list[str]:
    folder = resources.files("vicort.configs") / "systems"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def load_system(name: str | Path) -> System:
    """A system by its name, or by the path of a YAML file.

    Raises ConfigError, listing what is known, for an unknown name, key, policy or value.
    """
    known = f"one of {', '.join(known_systems())}, the path of a YAML file, or a System"
    name = checked_name(name, "the system", known)
    if name in known_systems():
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
        text = read_text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"system file {path} cannot be read ({error}): choose one of "
            f"{', '.join(known_systems())}"
        ) from error
    return parse_system(text, str(path))


def parse_system(text: str, where: str) -> System:
    """A system from YAML text. Raises ConfigError; `where` names the text in errors."""
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        raise ConfigError(f"{where} holds {type(content).__name__}, not the keys {', '.join(KEYS)}")
    return _validated(content, where)


def _validated(content: dict[Any, Any], where: str) -> System:
    try:
        return System.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, System)}") from error
