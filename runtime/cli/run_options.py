"""A checked command line of vicort-run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vicort.runtime.alerts.alert_file import AlertFile
from vicort.runtime.cli.answer_form import AnswerForm
from vicort.runtime.cli.recurring import RecurringQuestion
from vicort.runtime.core import Freshness, Question, Sampling
from vicort.runtime.memory.budget import SHARE
from vicort.runtime.policies.system import DEFAULT_SYSTEM, System, load_system
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import IMAGE_FPS, Decode, Transport


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    sources: tuple[str | tuple[str, ...], ...]  # a tuple of images is one source
    alerts: AlertFile | None = None
    streams: tuple[str, ...] = ()  # of the alert file, one for each source
    deliver: bool = False  # alerts of recorded sources, too
    engine_dir: Path | None = None  # None = the engines of the tiny model
    verify_engines: bool = False
    system: str | System = DEFAULT_SYSTEM
    preset: str | None = None  # what the preset sets, and what options set instead
    system_prompt: str | None = None  # None = the chat template's own
    device_mb: float | None = None  # None = as the system says
    host_mb: float | None = None
    memory_share: float = SHARE  # of the machine's memory, for automatic budgets
    threads: int | None = None  # None = all that the process may use
    overlap: bool = True
    # frames per second; None = the rate that the model was trained with
    fps: Fraction | Literal["source"] | None = None
    stream: int | None = None
    input_format: str | None = None  # None = found out from the bytes
    decode: Decode = "auto"
    realtime: bool = False
    live: bool | None = None  # None = decided by the kind of source
    on_lag: Literal["wait", "drop-oldest"] | None = None  # None = wait, and warn if live
    freshness: Freshness = "complete"
    rtsp_transport: Transport = "tcp"
    isolate: bool = True
    patience: Patience = Patience()  # noqa: RUF009 (frozen)
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    questions: tuple[Question, ...] = ()
    recurring: tuple[RecurringQuestion, ...] = ()
    at_changes: tuple[Question, ...] = ()
    typed_questions: bool = False  # whether stdin brings more questions
    serve_socket: Path | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    form: AnswerForm = AnswerForm()  # noqa: RUF009 (frozen)
    dry_run: bool = False
    show_system: bool = False
    success_on_sigterm: bool = False
    format: str = "text"
    stats: bool = False
    trace: Path | None = None
    render: Path | None = None
    render_font: Path | None = None  # None = one of the system that has the letters
    log_level: str | None = None  # None = no log

    @property
    def chosen_system(self) -> System:
        return self.system if isinstance(self.system, System) else load_system(self.system)

    @property
    def sessions(self) -> int:
        """How many share the memory: one for each source, or for each zone that an alert names."""
        if self.alerts is None:
            return len(self.sources)
        alerts = self.alerts
        return sum(len({each.zone for each in alerts.of_stream(name)}) for name in self.streams)

    def of_sources(self) -> list[Options]:
        """The options of each source."""
        return [self.of_source(number) for number in range(len(self.sources))]

    def of_source(self, number: int) -> Options:
        """The same, with what the alert file says about this stream."""
        if self.alerts is None:
            return self
        entry = self.alerts.streams[self.streams[number]]
        fps = self.fps if entry.fps is None else entry.rate
        return replace(self, system=entry.system or self.system, fps=fps)

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `open_source` and `open_sound` that are the same however often a source is
        opened."""
        return {
            "stream": self.stream,
            "input_format": self.input_format,
            "patience": self.patience,
            "limits": self.limits,
            "isolate": self.isolate,
        }

    @property
    def image_fps(self) -> Fraction:
        """Images per second of a folder. It equals the sampling rate, so that no image is
        skipped."""
        return self.fps if isinstance(self.fps, Fraction) else Fraction(IMAGE_FPS)
