"""A policy is a small frozen class whose fields are its parameters; a YAML file names it and sets
them."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

MOST = 1_000_000_000  # of units, chunks or frames


class Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: ClassVar[str]  # the name that YAML files use


P = TypeVar("P", bound=Policy)


class Registry(Generic[P]):
    """The policies of one kind, by name."""

    def __init__(self, kind: str, *policies: type[P]) -> None:
        self.kind = kind
        self._policies = {policy.policy: policy for policy in policies}

    def create(self, settings: Any, where: str) -> P:
        """`{policy: NAME, parameter: value, …}` -> the policy. Raises ConfigError naming what is
        allowed."""
        found = settings.get("policy") if isinstance(settings, dict) else settings
        if (
            not isinstance(settings, dict)
            or not isinstance(found, str)
            or found not in self._policies
        ):
            raise ConfigError(
                f"{where}: {self.kind} policy {shown(found)} is unknown: choose one of "
                f"{', '.join(sorted(self._policies))}"
            )
        parameters = {key: value for key, value in settings.items() if key != "policy"}
        policy = self._policies[found]
        try:
            return policy.model_validate(parameters)
        except ValidationError as error:
            first = error.errors()[0]
            allowed = ", ".join(policy.model_fields) or "no parameters"
            message = (
                f"{where}: {self.kind}.{'.'.join(map(str, first['loc']))}: {first['msg']}; "
                f"{policy.policy} takes {allowed}"
            )
            raise ConfigError(message) from error
