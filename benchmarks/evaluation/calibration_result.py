"""The calibration of one system: a temperature, and what it is worth where it was not fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vicort.benchmarks.evaluation.calibration_error import (
    CalibrationFigures,
    Interval,
    figures,
    interval,
    resampled,
)
from vicort.benchmarks.evaluation.rated_choices import ChoiceArrays, RatedChoices
from vicort.benchmarks.evaluation.temperature import fitted_temperature, is_at_bound
from vicort.runtime.errors import ConfigError

FIT = "fit"  # the part that the temperature is fitted on
REPORTED = "all that it was not fitted on"


@dataclass(frozen=True)
class BeforeAndAfter:
    """The figures of some questions at temperature 1 and at the fitted one."""

    before: CalibrationFigures
    after: CalibrationFigures
    ece_change: Interval  # 95 % intervals of after less before, over the same resamples
    nll_change: Interval
    outside: float | None  # mean probability of other texts than the choices; None = not known

    @classmethod
    def of(cls, questions: Sequence[RatedChoices], temperature: float) -> BeforeAndAfter:
        arrays = ChoiceArrays.of(questions)
        before, after = resampled(arrays, 1.0), resampled(arrays, temperature)
        outside = [each.outside for each in questions if each.outside is not None]
        return cls(
            figures(arrays, 1.0),
            figures(arrays, temperature),
            interval(after["ece"] - before["ece"]),
            interval(after["nll"] - before["nll"]),
            fmean(outside) if outside else None,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "ece_change": [round(bound, 5) for bound in self.ece_change],
            "nll_change": [round(bound, 5) for bound in self.nll_change],
            "outside": None if self.outside is None else round(self.outside, 6),
        }


@dataclass(frozen=True)
class CalibrationResult:
    """Fitted on the questions of part FIT alone."""

    temperature: float
    fitted_on: int  # questions
    parts: dict[str, BeforeAndAfter]  # by name; FIT too
    kinds: dict[str, BeforeAndAfter]  # of all parts but FIT, by the kind of question
    reported: BeforeAndAfter  # of all parts but FIT

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[RatedChoices]]) -> CalibrationResult:
        """parts: the questions of each, by its name. Raises ConfigError without questions to fit
        on, or to report on."""
        fit = parts.get(FIT, ())
        others = [each for name, part in parts.items() if name != FIT for each in part]
        if not fit or not others:
            lacking = "fit the temperature on" if not fit else "report on"
            raise ConfigError(
                f"there is no answered question with choices to {lacking}: give more videos or "
                "answers"
            )
        temperature = fitted_temperature(ChoiceArrays.of(fit))
        kinds = dict.fromkeys(each.kind for each in others)
        return cls(
            temperature,
            len(fit),
            {name: BeforeAndAfter.of(part, temperature) for name, part in parts.items() if part},
            {
                kind: BeforeAndAfter.of([each for each in others if each.kind == kind], temperature)
                for kind in kinds
            },
            BeforeAndAfter.of(others, temperature),
        )

    @property
    def remarks(self) -> list[str]:
        """What speaks against the temperature, a line each."""
        found = []
        if is_at_bound(self.temperature):
            found.append(
                f"the temperature {self.temperature:.3g} is at the bound of what is allowed, as "
                "what it was fitted on has too few wrong answers, or too few right ones"
            )
        if self.reported.after.nll > self.reported.before.nll:
            found.append(
                "other questions have a greater negative log likelihood at the temperature "
                f"{self.temperature:.3g} than at 1, so it does not carry over"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "temperature": round(self.temperature, 6),
            "fitted_on": self.fitted_on,
            "remarks": self.remarks,
            REPORTED: self.reported.to_json(),
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "kinds": {name: kind.to_json() for name, kind in self.kinds.items()},
        }
