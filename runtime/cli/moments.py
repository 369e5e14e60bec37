"""Moments that people write, such as 10:05, and the seconds of the stream that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from vicort.runtime.core import MAX_SECONDS, Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.safe_text import shown
from vicort.runtime.sources.source import Source

MOMENT_FORMS = (
    "seconds of the stream (90), H:MM:SS of a file, and of a live source the time of day (10:05 or "
    "10:05:30) or a date and time (2026-11-30T10:05, with Z or +01:00 where it is not local)"
)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class ClockTime:
    """H:MM:SS or H:MM, of which a live source makes a time of day, and a file a place in it."""

    text: str
    seconds: Fraction  # since midnight, or since the start of a file
    exact: bool  # whether the seconds were written


@dataclass(frozen=True)
class DateAndTime:
    text: str
    moment: datetime  # with its time zone


Moment = Fraction | ClockTime | DateAndTime  # a Fraction is seconds of the stream


@dataclass(frozen=True)
class WrittenQuestion(Question):
    """A question whose range is written in moments, which depend on the source. `of_source` turns
    them into seconds."""

    first: Moment | None = None
    last: Moment | None = None

    @property
    def needs_start(self) -> bool:
        """Whether a live source must have begun before the range is known in seconds."""
        return any(isinstance(each, ClockTime | DateAndTime) for each in (self.first, self.last))

    def of_source(self, source: Source, now: Fraction) -> Question:
        """The question in seconds of this source's stream.

        now: seconds, of the newest frame. A time of day is the last one that is not after the
        question, but for `until` after a `since`: that is the next one. Raises QuestionError where
        the source's wall clock is not known, and for a range that ends before the stream begins.
        """
        check_moments(self, source)
        at = now if self.at is None else max(now, self.at)
        since = _seconds(self.first, source, at)
        until = _seconds(self.last, source, at, after=since)
        if until is not None and until < 0:
            raise QuestionError(
                f"until {_text(self.last)} is before the stream began, at {_began(source)}: give a "
                "later moment"
            )
        plain = {each.name: getattr(self, each.name) for each in fields(Question)}
        return replace(
            Question(**plain),
            since=None if since is None else max(since, Fraction(0)),
            until=until,
        )


def parse_moment(text: str, source_name: str) -> Moment:
    """Parse one of MOMENT_FORMS. source_name: start of the error text. Raises QuestionError."""
    if re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text):
        return Fraction(text)
    if match := re.fullmatch(r"(\d{1,9}):([0-5]\d)(?::([0-5]\d(?:\.\d{1,9})?))?", text):
        hours, minutes, seconds = match.groups()
        return ClockTime(
            text,
            Fraction(3600 * int(hours) + 60 * int(minutes)) + Fraction(seconds or 0),
            seconds is not None,
        )
    if re.match(r"\d{4}-\d\d-\d\d[T ]", text):
        try:
            return DateAndTime(text, datetime.fromisoformat(text).astimezone())
        except (ValueError, OverflowError, OSError):
            pass
    raise QuestionError(f"{source_name} {shown(text)} is no moment: give {MOMENT_FORMS}")


def check_moments(question: Question, source: Source) -> None:
    """Raises QuestionError if a source can never tell what a range means."""
    if not isinstance(question, WrittenQuestion):
        return
    for each in (question.first, question.last):
        if isinstance(each, DateAndTime) and not source.keeps_wall_clock:
            raise QuestionError(
                f"{each.text} is a date, and the wall clock of {source.name} is not known: give "
                "seconds or H:MM:SS of the stream"
            )
        if isinstance(each, ClockTime) and not source.keeps_wall_clock and not each.exact:
            raise QuestionError(
                f"{each.text} may be hours or minutes of {source.name}, whose wall clock is not "
                f"known: give 0:{each.text} or {each.text}:00"
            )
        if isinstance(each, ClockTime) and source.keeps_wall_clock and each.seconds >= 86_400:
            raise QuestionError(
                f"{each.text} is no time of day, and {source.name} is live: give 0:00 to 23:59"
            )


def _seconds(
    moment: Moment | None, source: Source, at: Fraction, after: Fraction | None = None
) -> Fraction | None:
    """Seconds of the stream, negative before its start. at: of the question; after: the time of day
    is the next one after that, None = the last one before the question."""
    if moment is None or isinstance(moment, Fraction):
        return moment
    if isinstance(moment, ClockTime) and not source.keeps_wall_clock:
        return moment.seconds
    began = source.began
    if began is None:
        raise QuestionError(
            f"{moment.text} is a moment of the wall clock, and {source.name} has no frame yet: ask "
            "again"
        )
    if isinstance(moment, DateAndTime):
        return _exact(moment.moment - began)
    base = at if after is None else after
    day = (began + timedelta(seconds=float(base))).astimezone()
    found = [_exact(_time_of_day(day + days * DAY, moment) - began) for days in (-1, 0, 1)]
    if after is None:
        return max(each for each in found if each <= base)
    return min(each for each in found if each >= base)


def _time_of_day(day: datetime, moment: ClockTime) -> datetime:
    """That time on that day, in the local time zone, whose offset may change within the day."""
    midnight = datetime(day.year, day.month, day.day)
    return (midnight + timedelta(seconds=float(moment.seconds))).astimezone()


def _exact(duration: timedelta) -> Fraction:
    seconds = Fraction(duration // timedelta(microseconds=1), 10**6)
    return max(min(seconds, Fraction(MAX_SECONDS)), Fraction(-MAX_SECONDS))


def _text(moment: Moment | None) -> str:
    return moment.text if isinstance(moment, ClockTime | DateAndTime) else str(moment)


def _began(source: Source) -> str:
    began = source.began or datetime.fromtimestamp(0, UTC)
    return began.astimezone().isoformat(" ", "seconds")
