"""The file that describes alerts: which streams are watched, what is asked, and who hears of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vicort.runtime.alerts.alert_file_errors import explain
from vicort.runtime.alerts.polygon import Polygon, parse_polygon
from vicort.runtime.alerts.rule import CLEAR_FOR, FIRE_FOR, AlertRule, Enough
from vicort.runtime.alerts.seconds import seconds_of
from vicort.runtime.alerts.targets import Target
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.plain_yaml import parse_yaml
from vicort.runtime.policies.system import load_system
from vicort.runtime.safe_text import is_real, read_text, shown
from vicort.runtime.sources.sampler import as_rate

MAX_BYTES = 1 << 20  # of an alert file
MAX_STREAMS = 64
MAX_ALERTS = 1000
MAX_POLYGONS = 32  # zones of a stream, and its privacy masks
MAX_CHOICES = 32
MAX_TARGETS = 16
MAX_TEXT = 2000  # characters of a question; an engine may take fewer
MAX_CLIP = Fraction(60)  # seconds before and after
LEAST_PERIOD = Fraction(1, 20)  # seconds
LONGEST = Fraction(30 * 86_400)  # seconds
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
VARIABLE = re.compile(r"\$\{(\w{1,100})\}")


def parse_duration(value: Any) -> Any:
    """Seconds, from `500ms`, `1.5s`, `2m`, `1h` or a number of seconds. Raises ValueError."""
    if is_real(value) and 0 <= value <= LONGEST:
        return Fraction(str(value))
    if isinstance(value, Fraction):
        return value
    seconds = seconds_of(value) if isinstance(value, str) else None
    if seconds is None or seconds > LONGEST:
        raise ValueError(
            f"{shown(value)} is no duration: write a number with ms, s, m or h, such as 500ms or "
            "2s, and at most 720h"
        )
    return seconds


def parse_enough(value: Any) -> Any:
    """From `2 of 3`. Raises ValueError."""
    if isinstance(value, Enough):
        return value
    found = isinstance(value, str) and re.fullmatch(r"(\d{1,4}) of (\d{1,4})", value.strip())
    if not found:
        raise ValueError(
            f"{shown(value)} does not say how many of the last answers: write N of M, such as "
            "2 of 3"
        )
    return Enough(int(found[1]), int(found[2]))


def _word(value: Any) -> Any:
    """A choice; YAML reads some words as other things."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if is_real(value) else value


Duration = Annotated[Fraction, BeforeValidator(parse_duration)]
Share = Annotated[Enough, BeforeValidator(parse_enough)]
Outline = Annotated[Polygon, BeforeValidator(parse_polygon)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Choice = Annotated[str, BeforeValidator(_word), Field(min_length=1, max_length=200)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class AlertSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class StreamEntry(AlertSection):
    """A camera, or anything else that `open_source` opens."""

    # None: the command line names the source. ${NAME} stands for a variable of the environment
    url: str | None = Field(default=None, min_length=1, repr=False)
    system: str | None = None  # None = that of the command line, or the default
    fps: float | Literal["source"] | None = None  # frames a second; None = the system's
    zones: Annotated[dict[Name, Outline], Field(max_length=MAX_POLYGONS)] = {}
    privacy_masks: Annotated[tuple[Outline, ...], Field(max_length=MAX_POLYGONS)] = ()

    @property
    def rate(self) -> Fraction | Literal["source"] | None:
        return as_rate(self.fps) if isinstance(self.fps, float) else self.fps

    def source(self, name: str, environment: Mapping[str, str] = os.environ) -> str:
        """The name of its source for `open_source`; name: of the stream. Raises ConfigError."""
        if self.url is None:
            raise ConfigError(
                f"stream {name} has no url: add one, or name its source, such as "
                f"`--alerts FILE {name}=clip.mp4`"
            )
        for variable in VARIABLE.findall(self.url):
            if variable not in environment:
                raise ConfigError(
                    f"the url of stream {name} needs the variable {variable} of the environment: "
                    f"set it, as in `{variable}=... vicort-run`"
                )
        return VARIABLE.sub(lambda found: environment[found[1]], self.url)

    @field_validator("system")
    @classmethod
    def _system_is_known(cls, system: str | None) -> str | None:
        if system is not None:
            _values(load_system, system)
        return system

    @field_validator("fps")
    @classmethod
    def _fps_is_a_rate(cls, fps: float | str | None) -> float | str | None:
        if isinstance(fps, float):
            _values(as_rate, fps)
        return fps


class FireEntry(AlertSection):
    choice: Choice = "yes"
    above: float = AlertRule.above
    for_: Share = Field(default=FIRE_FOR, alias="for")


class ClearEntry(AlertSection):
    below: float = AlertRule.below
    for_: Share = Field(default=CLEAR_FOR, alias="for")


class ClipEntry(AlertSection):
    """Seconds of video before and after the evidence."""

    before: Annotated[Duration, Field(le=MAX_CLIP)] = Fraction(5)
    after: Annotated[Duration, Field(le=MAX_CLIP)] = Fraction(5)


class GateEntry(AlertSection):
    """When the question is not asked, see `AskGate`: its last answer counts again."""

    changed: bool = False
    like: float | None = Field(default=None, ge=-1, le=1)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.changed and self.like is None:
            raise ValueError(
                "gate is empty: give changed: true, like: 0.1 or both, or leave it out"
            )
        return self


class AlertEntry(AlertSection):
    name: Name
    # names of streams; None = all
    streams: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_STREAMS)] | None = None
    question: Words
    choices: Annotated[tuple[Choice, ...], Field(max_length=MAX_CHOICES)] = ("yes", "no")
    # seconds of the stream
    ask_every: Annotated[Duration, Field(ge=LEAST_PERIOD)] = Fraction(1)
    # seconds of the stream that the question reads; None = all that is remembered
    window: Annotated[Duration, Field(gt=0)] | None = None
    fire: FireEntry = FireEntry()
    clear: ClearEntry = ClearEntry()
    cooldown: Duration = Fraction(0)
    gate: GateEntry | None = None  # None = it is asked whenever it is due
    zone: Name | None = None  # of each of its streams; None = the whole picture
    then: Words | None = None  # a question that is asked when the alert fires
    clip: ClipEntry | None = None
    notify: Annotated[tuple[Target, ...], Field(max_length=MAX_TARGETS)] = ()

    @property
    def rule(self) -> AlertRule:
        """Raises ConfigError."""
        return AlertRule(
            self.fire.above, self.fire.for_, self.clear.below, self.clear.for_, self.cooldown
        )

    @field_validator("question", "then")
    @classmethod
    def _is_no_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError(f"{shown(text)} contains no question: write one")
        return text

    @field_validator("choices")
    @classmethod
    def _choices_differ(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        if len(choices) < 2:
            raise ValueError(
                f"choices has {len(choices)} of them: give two or more, such as [yes, no]"
            )
        if twice := next((each for each in choices if choices.count(each) > 1), None):
            raise ValueError(f"choice {shown(twice)} is there twice: leave one out")
        return choices

    @model_validator(mode="after")
    def _rule_is_possible(self) -> Self:
        if self.fire.choice not in self.choices:
            raise ValueError(
                f"fire.choice {shown(self.fire.choice)} is none of the choices: give one of "
                f"{', '.join(self.choices)}"
            )
        if self.streams and len(set(self.streams)) < len(self.streams):
            raise ValueError(f"streams {', '.join(self.streams)}: leave out the one that is twice")
        _values(lambda: self.rule)
        return self


class AlertFile(AlertSection):
    """The content of an alert file; `load_alerts` reads one. Paths are relative to the folder in
    which the program runs."""

    streams: Annotated[dict[Name, StreamEntry], Field(min_length=1, max_length=MAX_STREAMS)]
    alerts: Annotated[tuple[AlertEntry, ...], Field(min_length=1, max_length=MAX_ALERTS)]
    evidence: Path = Path("alerts")  # folder of pictures and clips, made if it is missing
    evidence_mb: float = Field(default=1000, gt=0, le=1e9)  # the oldest are removed beyond that
    # keeps messages until they are delivered; None = spool.sqlite in the evidence folder
    spool: Path | None = None
    spool_mb: float = Field(default=64, gt=0, le=1e6)

    @property
    def spool_path(self) -> Path:
        return self.spool or self.evidence / "spool.sqlite"

    def of_stream(self, name: str) -> tuple[AlertEntry, ...]:
        """The alerts that watch this stream, in the order of the file."""
        return tuple(each for each in self.alerts if each.streams is None or name in each.streams)

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        names = [each.name for each in self.alerts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two alerts have the name {twice}: rename one")
        for alert in self.alerts:
            for stream in alert.streams or self.streams:
                if stream not in self.streams:
                    raise ValueError(
                        f"alert {alert.name}: stream {stream} is unknown: name one of "
                        f"{', '.join(self.streams)}"
                    )
                zones = self.streams[stream].zones
                if alert.zone is not None and alert.zone not in zones:
                    raise ValueError(
                        f"alert {alert.name}: stream {stream} has no zone {alert.zone}: "
                        + (f"name one of {', '.join(zones)}" if zones else "add it to its zones")
                    )
        if idle := next((name for name in self.streams if not self.of_stream(name)), None):
            raise ValueError(f"stream {idle} has no alert: name it in one, or leave it out")
        return self


def load_alerts(path: Path | str) -> AlertFile:
    """The content of an alert file. Raises ConfigError of one line: the file, the place in it, the
    value and what is allowed."""
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"alert file {path} cannot be read ({error}): name a YAML file, see docs/alerts.md"
        ) from error
    return parse_alerts(text, str(path))


def parse_alerts(text: str, where: str) -> AlertFile:
    """Alerts from YAML text. Raises ConfigError; `where` names the text in errors."""
    content = parse_yaml(text, where, words=True, private=True)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where} holds {type(content).__name__}, not the keys "
            f"{', '.join(AlertFile.model_fields)}"
        )
    try:
        return AlertFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, AlertFile, content)}") from None


def _values(make: Any, *arguments: Any) -> None:
    """Call it, so that a ConfigError becomes an error of the value that pydantic reports."""
    try:
        make(*arguments)
    except ConfigError as error:
        raise ValueError(str(error)) from error
