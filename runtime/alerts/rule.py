"""When an alert fires and when it clears: hysteresis over the probabilities of its answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from vicort.runtime.errors import ConfigError

AlertState = Literal["fired", "cleared"]
MAX_ANSWERS = 1000  # that one change of an alert may look at
SLACK = 2  # periods that an answer may take, of those that are counted together
LONGEST_ANSWER = Fraction(10)  # seconds that it may take, if that is more


@dataclass(frozen=True)
class Enough:
    """At least `count` of the last `of` answers."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count} of {self.of}"


FIRE_FOR, CLEAR_FOR = Enough(2, 3), Enough(3, 3)


class AlertReading(NamedTuple):
    """What one answer says about an alert."""

    at: Fraction  # seconds of the stream, of the newest frame that the answer saw
    probability: float  # of the choice that the alert is about, 0 to 1


@dataclass(frozen=True)
class Change:
    """An alert fired, or it cleared."""

    state: AlertState
    readings: tuple[AlertReading, ...]  # those that were counted, the last one made the change

    @property
    def at(self) -> Fraction:
        """Seconds of the stream, of the evidence."""
        return self.readings[-1].at

    @property
    def probability(self) -> float:
        """Of the newest reading."""
        return self.readings[-1].probability


@dataclass(frozen=True)
class AlertRule:
    """When an alert changes.

    It fires when at least `fire` of the last answers have a probability above `above`, and clears
    when at least `clear` of the last answers have one below `below`. Only answers since the last
    change are counted. Between the two thresholds it stays as it is. Raises ConfigError for values
    that are not allowed.

    The defaults: two of three answers, so that one wrong answer neither fires nor prevents it; at
    0.8, of which docs/confidence.md says how often such an answer is right; and three answers in a
    row to clear, because an alert that clears too early fires a second time for the same thing.
    """

    above: float = 0.8
    fire: Enough = FIRE_FOR
    below: float = 0.4
    clear: Enough = CLEAR_FOR
    # seconds of the stream after it fired in which it does not fire again
    cooldown: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not 0 <= self.above < 1:
            raise ConfigError(
                f"fire above {self.above:g}: give a probability from 0 to less than 1, such as 0.8"
            )
        if not 0 < self.below <= 1:
            raise ConfigError(
                f"clear below {self.below:g}: give a probability above 0 and at most 1, such as 0.4"
            )
        if self.below > self.above:
            raise ConfigError(
                f"clear below {self.below:g} is more than fire above {self.above:g}, so one answer "
                f"would fire and clear: give clear below {self.above:g} or less"
            )
        for name, enough in (("fire", self.fire), ("clear", self.clear)):
            if not 1 <= enough.count <= enough.of <= MAX_ANSWERS:
                raise ConfigError(
                    f"{name} for {enough}: give N of M, N from 1 to M and M at most {MAX_ANSWERS}, "
                    "such as 2 of 3"
                )
        if self.cooldown < 0:
            raise ConfigError(
                f"cooldown {float(self.cooldown):g} s is negative: give 0 or more seconds"
            )


class Hysteresis:
    """The life of one alert on one stream. Not thread-safe."""

    def __init__(
        self, rule: AlertRule, *, fired: bool = False, period: Fraction | None = None
    ) -> None:
        """fired: whether it has fired before. period: seconds from one asking to the next. With it,
        answers from before a gap are not counted: a change looks back `SLACK` periods for each of
        its answers, or `LONGEST_ANSWER` if that is more."""
        self.rule = rule
        # seconds that one answer adds to what is looked at
        self._reach = None if period is None else max(SLACK * period, LONGEST_ANSWER)
        self.fired = fired
        self._last: Fraction | None = None  # seconds, of the newest reading
        self._fired_at: Fraction | None = None  # seconds, when it fired last
        # since the last change, as many as the next one looks at
        self._readings: deque[AlertReading] = deque(maxlen=(rule.clear if fired else rule.fire).of)

    def add(self, at: Fraction, probability: float) -> Change | None:
        """Take the next answer, and return what it changes.

        at: seconds, of the newest frame that it saw. An answer that saw nothing newer than the one
        before is no new evidence and is left out. Raises ValueError for what is no probability.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        if self._last is not None and at <= self._last:
            return None
        self._last = at
        self._readings.append(AlertReading(at, probability))
        self._forget(at)
        if not self._is_met(at):
            return None
        return self._change(at)

    def _forget(self, at: Fraction) -> None:
        """What was read before a gap of the stream."""
        readings = self._readings
        enough = self.rule.clear if self.fired else self.rule.fire
        while self._reach is not None and readings[0].at < at - enough.of * self._reach:
            readings.popleft()

    def _is_met(self, at: Fraction) -> bool:
        rule, readings = self.rule, self._readings
        if self.fired:
            return sum(each.probability < rule.below for each in readings) >= rule.clear.count
        if self._fired_at is not None and at < self._fired_at + rule.cooldown:
            return False
        return sum(each.probability > rule.above for each in readings) >= rule.fire.count

    def _change(self, at: Fraction) -> Change:
        self.fired = not self.fired
        if self.fired:
            self._fired_at = at
        change = Change("fired" if self.fired else "cleared", tuple(self._readings))
        following = self.rule.clear if self.fired else self.rule.fire
        self._readings = deque(maxlen=following.of)
        return change
