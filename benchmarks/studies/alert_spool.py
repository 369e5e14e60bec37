"""How long an alert's message holds up the thread that sends it.

    python -m vicort.benchmarks.studies.alert_spool --out benchmarks/results/alert_spool.json

`Delivery.send` writes a message to the spool and syncs it. In turns with it, the same number of
bytes is written to a file and synced, which is the least that any durable write takes on this disk.
One receiver takes everything at once; another one takes the connection and never answers.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish
from vicort.runtime.alerts.delivery import Delivery
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.targets import JsonlTarget, Target, WebhookTarget

SIZES = (0, 100_000)  # bytes of the picture
BUDGET = 1 << 30  # bytes
APART = 0.01  # seconds between two messages


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: temporary)")
    parser.add_argument("--messages", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    report = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
        "messages": options.messages,
        "ms": {
            name: {
                f"{size} bytes of picture": measured(
                    options.folder, receiver, size, options.messages
                )
                for size in SIZES
            }
            for name, receiver in RECEIVERS.items()
        },
    }
    return finish(report, options.out)


@contextmanager
def silent(folder: Path) -> Iterator[Target]:
    """A server that takes connections, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield WebhookTarget(webhook=f"http://127.0.0.1:{port}/", allow_private=True)


@contextmanager
def willing(folder: Path) -> Iterator[Target]:
    yield JsonlTarget(jsonl=str(folder / "alerts.jsonl"))


RECEIVERS = {"a file": willing, "a server that never answers": silent}


def measured(
    folder: Path | None, receiver: Callable[[Path], Any], size: int, count: int
) -> dict[str, Any]:
    """Milliseconds of `send`, and of a bare write and sync."""
    times: dict[str, list[float]] = {"send": [], "write and sync": []}
    with TemporaryDirectory(dir=folder) as name, receiver(Path(name)) as target:
        delivery = Delivery(
            {"a": [target]}, Path(name, "spool"), spool_bytes=BUDGET, warn=lambda line: None
        )
        delivery.start()
        bare = os.open(Path(name, "bare"), os.O_WRONLY | os.O_CREAT)
        for number in range(count):
            message = Message(str(number), "a", "front", "fired", {"n": number}, os.urandom(size))
            began = time.perf_counter()
            delivery.send(message)
            sent = time.perf_counter()
            os.write(bare, bytes(size + 400))
            os.fdatasync(bare)
            times["send"].append(sent - began)
            times["write and sync"].append(time.perf_counter() - sent)
            time.sleep(APART)
        os.close(bare)
        delivery.close(0)
    return {name: quantiles(each) for name, each in times.items()}


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    ranked = sorted(seconds)
    return {
        name: round(ranked[min(int(share * len(ranked)), len(ranked) - 1)] * 1e3, 2)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


if __name__ == "__main__":
    sys.exit(main())
