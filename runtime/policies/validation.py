"""A pydantic ValidationError as one line that says which key is wrong and what is allowed."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from vicort.runtime.policies.policy import Policy
from vicort.runtime.safe_text import shown

UNKNOWN_POLICY = ("union_tag_invalid", "union_tag_not_found", "model_attributes_type")
UNKNOWN_KEY = ("extra_forbidden", "invalid_key")


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One of the errors as one line: the key's path, its value and what is allowed.

    Errors of top-level keys come first, and unknown keys before missing ones, because a misspelled
    key causes both.
    """

    def order(each: Any) -> tuple[bool, int]:
        kinds = [*UNKNOWN_KEY, "missing"]
        return len(each["loc"]) > 1, kinds.index(each["type"]) if each["type"] in kinds else 9

    first = min(error.errors(include_url=False), key=order)
    kind, value = first["type"], first["input"]
    path, model, policies = _resolve(first["loc"], root)
    where, section = ".".join(path), "".join(f"{key}: " for key in path[:-1])
    choose = f"choose one of {', '.join(sorted(policies))}"
    keys = ", ".join(key for key in model.model_fields if key != "policy")
    if issubclass(model, Policy):
        takes = f"policy {_name(model)} takes {keys or 'no parameters'}"
    else:
        takes = f"the keys are {keys}" if model is root else f"{path[0]} takes {keys}"
    if kind in UNKNOWN_POLICY and policies:
        if not isinstance(value, dict):
            return f"{where} is {shown(value)}: name its policy as {where}.policy; {choose}"
        return f"{where} policy {shown(value.get('policy'))} is unknown: {choose}"
    if kind in UNKNOWN_KEY:
        return f"{section}unknown key {shown(first['loc'][-1])}: {takes}"
    if kind == "missing":
        return f"{section}key {path[-1]!r} is missing: {choose if policies else takes}"
    if kind == "model_type":
        return f"{where} is {shown(value)}: {takes}"
    if kind == "value_error":
        why = str(first["ctx"]["error"])
        return f"{where}: {why}; {takes}" if issubclass(model, Policy) else why
    why = first["msg"].replace("Input should", "it should", 1)
    return f"{where} is {shown(value)}: {why}; {takes}"


def _resolve(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[list[str], type[BaseModel], dict[str, type[BaseModel]]]:
    """The path of keys without the names of policies that pydantic puts between them, the innermost
    model on it, and the policies that its last key may name."""
    path: list[str] = []
    model = root
    policies: dict[str, type[BaseModel]] = {}
    for part in map(str, location):
        if part in policies:
            model, policies = policies[part], {}
            continue
        path.append(part)
        field = model.model_fields.get(part)
        models = _models(field.annotation) if field else []
        policies = {_name(each): each for each in models if issubclass(each, Policy)}
        if models and not policies:
            model = models[0]
    return path, model, policies


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _name(policy: type[BaseModel]) -> str:
    return str(policy.model_fields["policy"].default)
