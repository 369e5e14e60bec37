"""What is reported of alerts: each change, and at the end how often each was asked."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vicort.runtime.alerts.rule import AlertState
from vicort.runtime.core import Event

DECIMALS = 6  # of probabilities in JSON
OPTIONAL = ("delay_ms", "zone", "picture", "clip", "description")


@dataclass(frozen=True)
class AlertEvent(Event):
    """An alert fired on a stream, or it cleared. What is None is left out of the JSON."""

    alert: str  # its name
    stream: str
    state: AlertState
    at: Fraction  # seconds of the stream, of the evidence: the newest frame that the answer saw
    question: str
    choice: str  # that the probabilities are of
    probability: float  # of the newest answer
    # every answer that was counted: seconds of its newest frame, and the probability
    series: tuple[tuple[Fraction, float], ...]
    choices: dict[str, float]  # of the newest answer: the probability of each
    read: tuple[tuple[Fraction, Fraction], ...]  # seconds, time ranges that the newest answer read
    key: str  # another one for each event; receivers see it again if a delivery is repeated
    # of a live source: wall time from the arrival of that frame until this event
    delay_ms: float | None = None
    zone: str | None = None
    picture: str | None = None  # path of a JPEG file: that frame, with zones and masks
    clip: str | None = None  # path of an MP4 file, which is complete `clip.after` seconds later
    description: str | None = None  # the answer to `then`

    def to_json(self) -> dict[str, Any]:
        written = super().to_json()
        written["probability"] = round(self.probability, DECIMALS)
        written["series"] = [[round(float(at), 6), round(p, DECIMALS)] for at, p in self.series]
        written["choices"] = {text: round(p, DECIMALS) for text, p in self.choices.items()}
        for key in OPTIONAL:
            if written[key] is None:
                del written[key]
        return written


@dataclass(frozen=True)
class AlertsEvent(Event):
    """How the alerts of a stream went, at its end."""

    stream: str
    # by name: asked, of one with a gate saved (not asked because of it), skipped (due while the
    # answer before was not complete), failed (without an answer), fired, cleared
    alerts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class DeliveryEvent(Event):
    """What became of the messages of all alerts, at the end of a run."""

    state: dict[str, Any]
