"""What is wrong with an alert file, as one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from vicort.runtime.redact import redact
from vicort.runtime.safe_text import is_real, shown

PRIVATE = "notify"  # the key below which values may be secrets
MAX_KEY = 30  # characters of a key below it that is shown
MAX_NUMBERS = 20  # of a list that is shown
_KEY = re.compile(r"[A-Z]?[a-z]*(?:[-_][A-Z]?[a-z]*)*")  # unlike most secrets
_NAME = "give 1 to 64 of the letters a to z, digits, _ and -, the first one no sign"
_VARIABLE = (
    "give the name of a variable of the environment, such as HOOK_SECRET; the secret itself does "
    "not belong in this file"
)


def explain(error: ValidationError, root: type[BaseModel], content: Mapping[Any, Any]) -> str:
    """One of the errors as one line: the place, its value and what is allowed.

    Unknown keys come first, because a misspelled key causes a missing one, too. Below `notify` no
    value is shown, only its type and the names of keys; elsewhere neither mappings nor URLs are.
    """
    kinds = ["extra_forbidden", "missing"]

    def order(each: Any) -> int:
        return kinds.index(each["type"]) if each["type"] in kinds else len(kinds)

    first = min(error.errors(include_url=False), key=order)
    return redact(_line(first, _resolve(first["loc"], root, content)))


@dataclass
class _Place:
    """path: the place in words. model: of its last key. owner: the model that has this key. ends:
    whether the last part is a key of the owner."""

    model: type[BaseModel]
    owner: type[BaseModel]
    path: list[str] = field(default_factory=list)
    private: bool = False
    ends: bool = False

    @property
    def section(self) -> str:
        return ": ".join(self.path[:-1])

    @property
    def words(self) -> str:
        return ": ".join(self.path)

    @property
    def keys(self) -> str:
        name = self.path[-2] if self.section else "the file"
        return f"{name} takes {', '.join(_keys(self.owner))}"


def _line(error: Any, place: _Place) -> str:
    kind, value, last = error["type"], error["input"], error["loc"][-1:]
    before = f"{place.section}: " if place.section else ""
    if kind == "extra_forbidden":
        key = _key(last[0], place.private)
        return f"{before}unknown key {key}: {place.keys}"
    if kind == "missing":
        return f"{before}key {place.path[-1]!r} is missing: {place.keys}"
    if kind == "value_error":
        why = str(error["ctx"]["error"])
        path = place.path
        if path and why.startswith(f"{path[-1]}:"):
            path = path[:-1]
        return ": ".join([*path, why])
    value = _description(value, place.private)
    if kind == "model_type":
        return f"{place.words} is {value}: give the keys {', '.join(_keys(place.model))}"
    if kind == "string_pattern_mismatch" and place.private:
        is_topic = last == ("discovery_prefix",)
        advice = "give 1 to 100 characters without + and #" if is_topic else _VARIABLE
        return f"{place.words} is {value}: {advice}"
    if kind == "string_pattern_mismatch":
        return f"{before}name {value}: {_NAME}"
    why = error["msg"].replace("Input should", "it should", 1)
    if place.private and "input" in error.get("ctx", {}):
        why = "it is not allowed"
    return f"{place.words} is {value}: {why}" + (f"; {place.keys}" if place.ends else "")


def _description(value: Any, private: bool) -> str:
    """A value in an error. private: its type alone."""
    if isinstance(value, Mapping):
        keys = ", ".join(_key(key, True) for key in list(value)[:MAX_NUMBERS])
        return f"a mapping with the keys {keys}" if keys else "an empty mapping"
    if isinstance(value, list | tuple):
        is_short = len(value) <= MAX_NUMBERS and all(map(is_real, value))
        return shown(value) if is_short and not private else f"a list of {len(value)}"
    if isinstance(value, str) and (private or "://" in value):
        return f"a text of {len(value)} characters"
    if private and value is not None:
        return f"a value of the type {type(value).__name__}"
    return shown(value)


def _key(key: Any, private: bool) -> str:
    """The name of a key. private: only if it is unlike a secret."""
    text = str(key)
    if private and (len(text) > MAX_KEY or not _KEY.fullmatch(text)):
        return f"of {len(text)} characters"
    return shown(key)


def _resolve(location: tuple[int | str, ...], root: type[BaseModel], content: Any) -> _Place:
    place = _Place(root, root)
    kinds: dict[str, type[BaseModel]] = {}  # of a union, by the key that names the kind
    tag = None
    for part in (part for part in location if part != "[key]"):
        place.ends = False
        if isinstance(part, str) and part in kinds:
            place.model = place.owner = kinds[part]
            kinds, tag = {}, part
            place.path.append(part)
            continue
        content = _inside(content, part)
        if isinstance(part, int):
            name = content.get("name") if isinstance(content, Mapping) else None
            if place.private or not isinstance(name, str):
                name = f"number {part + 1}"
            place.path[-1] = f"{place.path[-1].removesuffix('s')} {name}"
            continue
        entry = _fields(place.model).get(str(part))
        if part != tag or entry is None:
            place.path.append(str(part) if entry or not place.private else _key(part, True))
        tag = None
        if entry is None:
            continue
        place.private |= part == PRIVATE
        models = _models(entry.annotation)
        kinds = {each.kind: each for each in models if hasattr(each, "kind")}
        place.owner, place.ends = place.model, True
        place.model = models[0] if models and not kinds else place.model
    if not place.ends:
        place.owner = place.model
    return place


def _inside(content: Any, part: int | str) -> Any:
    try:
        return content[part]
    except (KeyError, IndexError, TypeError):
        return None


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys(model: type[BaseModel]) -> list[str]:
    return list(_fields(model))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
