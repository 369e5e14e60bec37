"""The base class of policies.

A policy is a frozen model: its fields are its parameters, and `policy` is the name that selects it
in a system's YAML file. To add one, write the class and add it to the union at the end of its file.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_COUNT = 1_000_000_000  # of units, chunks, frames or tokens in a parameter


class Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: str
