"""Messages of alerts, and a delivery to targets as an alert file has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from vicort.runtime.alerts.back_off import BackOff
from vicort.runtime.alerts.delivery import Delivery
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.targets import Target

SOON = BackOff(first=0.01, most=0.05)
TARGETS: TypeAdapter[list[Target]] = TypeAdapter(list[Target])


def message(
    number: int,
    picture: bytes | None = None,
    state: Literal["fired", "cleared"] = "fired",
    **body: Any,
) -> Message:
    return Message(f"key-{number}", "parcel", "front", state, {"n": number, **body}, picture)


class Said(list[str]):
    """The warnings of a delivery."""

    def __call__(self, line: str) -> None:
        assert line.isprintable()
        self.append(line)


@contextmanager
def delivering(
    folder: Path,
    *targets: dict[str, Any],
    warn: Said | None = None,
    starts: bool = True,
    close: float = 0.0,
    spool_bytes: int = 1 << 20,
    **options: Any,
) -> Iterator[Delivery]:
    """Of the alert `parcel`. options: of Delivery."""
    delivery = Delivery(
        {"parcel": TARGETS.validate_python(list(targets))},
        folder / "spool",
        spool_bytes=spool_bytes,
        warn=Said() if warn is None else warn,
        **{"back_off": SOON, **options},
    )
    try:
        if starts:
            delivery.start()
        yield delivery
    finally:
        delivery.close(close)


def count(delivery: Delivery, name: str, target: int = 0) -> Any:
    return list(delivery.state()["targets"].values())[target][name]
