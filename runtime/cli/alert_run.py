"""What the streams of an alert file share in one run: where evidence goes, and delivery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from vicort.runtime.alerts.alert_event import DeliveryEvent
from vicort.runtime.alerts.alert_file import AlertFile
from vicort.runtime.alerts.alert_reporter import AlertReporter
from vicort.runtime.alerts.alert_session import AlertSession
from vicort.runtime.alerts.delivery import Delivery
from vicort.runtime.alerts.evidence_folder import EvidenceFolder
from vicort.runtime.alerts.last_states import LastStates
from vicort.runtime.cli.output import Output
from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.watch import RunContext, Watch
from vicort.runtime.sources import Source

# for messages that wait at the end, and after Ctrl-C; what is left is sent by the next run
CLOSING_SECONDS, INTERRUPTED_SECONDS = 5.0, 1.0


class AlertRun:
    def __init__(self, options: Options, alerts: AlertFile, output: Output) -> None:
        """Raises ConfigError if the evidence folder cannot be made."""
        self._options = options
        self._alerts = alerts
        self._output = output
        self._folder = EvidenceFolder(alerts.evidence, alerts.evidence_mb)
        self._states: LastStates | None = None
        self._delivery: Delivery | None = None

    @contextmanager
    def delivering(self, sources: dict[str, Source]) -> Iterator[None]:
        """Deliver in this context, if a stream does."""
        targets = {each.name: each.notify for each in self._alerts.alerts}
        if any(targets.values()) and any(map(self._delivers, sources.values())):
            self._delivery = Delivery(
                targets,
                self._alerts.spool_path,
                spool_bytes=int(self._alerts.spool_mb * 1e6),
                warn=self._output.warn,
                streams={
                    each.name: each.streams or tuple(self._alerts.streams)
                    for each in self._alerts.alerts
                },
            )
        elif any(targets.values()):
            self._output.tell(
                "the sources are recorded, so alerts are not sent to their targets: --deliver "
                "sends them"
            )
        if self._delivery is None:
            yield
            return
        self._states = LastStates(self._folder.path, self._output.warn)
        self._delivery.start()
        seconds = CLOSING_SECONDS
        try:
            yield
        except KeyboardInterrupt:
            seconds = INTERRUPTED_SECONDS
            raise
        finally:
            self._delivery.close(seconds)
            self._output.last_event(DeliveryEvent(self._delivery.state()))

    def watch(self, source: Source, number: int, context: RunContext, label: str) -> Watch:
        """One stream of the file. number: of its source."""
        name = self._options.streams[number]
        options = self._options.of_source(number)
        live = source.live or options.realtime
        if options.on_lag is None and live:  # an alert that comes late is none
            options = replace(options, on_lag="drop-oldest")
        warn = partial(self._output.warn, source=label)
        open_stream = partial(
            AlertSession.open,
            alerts=self._alerts,
            stream=name,
            live=live,
            warn=warn,
            answers=options.stats,
            reporter=AlertReporter.of_file(
                name,
                self._alerts,
                live=live,
                on_event=partial(self._output.event, source=label),
                send=self._delivery.send if self._delivery and self._delivers(source) else None,
                warn=warn,
                folder=self._folder,
                states=self._states,
            ),
        )
        return Watch(source, replace(context, options=options, open_session=open_stream), label)

    def _delivers(self, source: Source) -> bool:
        return source.live or self._options.deliver
