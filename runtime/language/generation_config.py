"""How a model's authors would have its tokens chosen: generation_config.json of an engine set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.runtime.core import Sampling
from vicort.runtime.errors import EngineError
from vicort.runtime.safe_text import read_text, shown

FILE = "generation_config.json"
MAX_BYTES = 1 << 20
# What transformers takes where a sampling model's file says nothing.
SAMPLED = Sampling(temperature=1.0, top_p=1.0, top_k=50)

Positive = Annotated[float, Field(gt=0, le=1e6)]


class _GenerationConfig(BaseModel):
    """The fields that choose tokens. Null means that the file says nothing."""

    model_config = ConfigDict(extra="ignore")

    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    repetition_penalty: Positive | None = None


def read_generation(folder: Path) -> Sampling:
    """The sampling of the model in `folder`: greedy where the file, or its `do_sample`, is missing.

    Raises EngineError if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return Sampling().over(Sampling.greedy())
    try:
        config = _GenerationConfig.model_validate(json.loads(read_text(path, MAX_BYTES)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise EngineError(
            f"{path}: {where} is {shown(first['input'])} ({first['msg']}): correct it, or build "
            "the engine set again with vicort-build"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON: build the engine set again with vicort-build"
        ) from error
    found = Sampling(config.temperature, config.top_p, config.top_k, config.repetition_penalty)
    if config.do_sample:
        return found.over(SAMPLED).over(Sampling.greedy())
    # for a caller who gives a temperature
    return replace(found, temperature=0.0).over(Sampling.greedy())
