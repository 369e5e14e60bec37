"""The temperature at which the probabilities of choices are given: calibration.json of an engine
set.

`vicort-eval calibration --store` writes it. A set without it gives them as the model does.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import CALIBRATION_FILE, FILE_NAME
from vicort.runtime.safe_text import brief, printable, read_text, shown
from vicort.runtime.written_files import write_file

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MAX_BYTES = 1 << 16

Error = Annotated[float, Field(ge=0, le=1)]


class FittedTemperature(BaseModel):
    """What calibration.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    engines: str  # SHA-256 of the manifest of the set whose answers it was fitted on
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
    questions: Annotated[int, Field(ge=1)]  # that it was fitted on
    # expected calibration error of other questions, at temperature 1 and at this one
    ece_before: Error
    ece_after: Error

    def store(self, folder: Path) -> None:
        """Write it to an engine set, whole or not at all. Raises ConfigError."""
        write_file(folder / CALIBRATION_FILE, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class ChoiceCalibration:
    """Turns log probabilities of an answer's choices into the probabilities that are given."""

    fitted: FittedTemperature | None = None  # None: temperature 1

    @classmethod
    def of_folder(cls, folder: Path) -> ChoiceCalibration:
        """That of an engine set.

        Raises EngineError, which names the command that fits it again, if the file is damaged, has
        a value that is not allowed, or was written for another set.
        """
        path = folder / CALIBRATION_FILE
        if not os.path.lexists(path):
            return cls()
        again = (
            "remove the file; `vicort-eval calibration --store "
            f"--engine-dir {printable(str(folder))}` then fits a new one"
        )
        where = printable(str(path))
        if not path.is_file():  # reading a pipe would never end
            raise EngineError(f"{where} is no regular file: {again}")
        try:
            fitted = FittedTemperature.model_validate_json(read_text(path, MAX_BYTES), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            what = f"{name} is {shown(first['input'])}" if name else "it is damaged"
            raise EngineError(f"{where}: {what} ({first['msg']}): {again}") from error
        except (OSError, ValueError) as error:
            raise EngineError(f"{where} cannot be read ({brief(error)}): {again}") from error
        if fitted.engines != engines_of(folder):
            raise EngineError(f"{where} was written for another engine set: {again}")
        return cls(fitted)

    @property
    def temperature(self) -> float:
        return self.fitted.temperature if self.fitted else 1.0

    def choices(self, log_probabilities: np.ndarray) -> np.ndarray:
        """The probability of each choice, from the natural logarithms of those of their texts.

        log_probabilities: [n] float, n >= 1, each at most 0 and at least one finite.
        Returns [n] float64 that sum to 1: temperature scaling over the choices alone
        (arXiv:1706.04599, section 4.2), p_i = exp(l_i / T) / sum_j exp(l_j / T). So the order of
        the choices is that of the model.
        """
        return softmax(np.asarray(log_probabilities, np.float64) / self.temperature)


def softmax(logs: np.ndarray) -> np.ndarray:
    """[n] float64 -> [n] float64: their exponentials, of sum 1."""
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def engines_of(folder: Path) -> str:
    """SHA-256 of an engine set's manifest, which has the hashes of the other files. Raises
    OSError."""
    return hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()
