"""Sends messages of an alert until it is killed: `python alert_sender.py SPOOL FIRST COUNT URL...`.

Prints the number of each message when `send` has returned, then the word `closed`.
"""

import sys
import time
from pathlib import Path

from support.alert_messages import SOON, TARGETS, message

from vicort.runtime.alerts.delivery import Delivery


def main(spool: str, first: str, count: str, *urls: str) -> None:
    targets = [{"webhook": url, "allow_private": True} for url in urls]
    delivery = Delivery(
        {"parcel": TARGETS.validate_python(targets)},
        Path(spool),
        spool_bytes=1 << 26,
        warn=lambda line: None,
        back_off=SOON,
    )
    delivery.start()
    print("started", flush=True)
    for number in range(int(first), int(first) + int(count)):
        delivery.send(message(number, bytes(20_000)))
        print(number, flush=True)
        time.sleep(0.002)
    delivery.close(30)
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
