"""The sound of a file that a decoder process reads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import av

from vicort.runtime.sources.container import reason
from vicort.runtime.sources.decoder_host import HOST
from vicort.runtime.sources.decoder_link import LinkClosed
from vicort.runtime.sources.isolated import REPORT_SECONDS, surroundings
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.sound import Sound, received
from vicort.runtime.sources.source import Warn

SILENCE = "the process that reads it said nothing"
DIED = "the process that reads it died, or passed its limits"


class SoundLost(Exception):
    """The decoder process failed."""


def isolated_sound(
    name: str,
    request: dict[str, Any],
    files: Sequence[int],
    *,
    limits: Limits,
    seconds: float | None,
    warn: Warn,
) -> Sound | None:
    """The sound of a source; None if it has none, and with a warning if it cannot be read.

    request: for `decoder_worker`. seconds: until the process must have opened the source; None =
    for ever. Raises SourceError if no process can be started.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pipe = os.fdopen(reading, "rb", buffering=0)
    try:
        asked = request | surroundings(limits) | {"sound": True}
        link, lifeline = HOST.open(asked, [*files, writing])
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(writing)

    def close() -> None:
        lifeline.close()
        link.close()

    def next_message(kind: str, limit: float | None, say: Warn) -> list[Any]:
        """The next message of a kind; `say` gets the warnings before it. Raises SoundLost."""
        while limit is None or link.ready(limit - time.monotonic()):
            message, passed = link.receive()
            for file in passed:
                os.close(file)
            if message[0] == kind:
                return message
            if message[0] == "warning":
                say(str(message[1]))
            elif message[0] == "log":
                logging.getLogger(str(message[2])).log(int(message[1]), "%s", message[3])
            else:
                raise SoundLost((message[0] == "failed" and str(message[2])) or DIED)
        raise SoundLost(SILENCE)

    def ended() -> None:
        try:
            next_message("end", time.monotonic() + REPORT_SECONDS, warn)
        except (SoundLost, LinkClosed) as error:
            warn(f"{name}: its sound ends early ({error})")

    try:
        limit = None if seconds is None else time.monotonic() + seconds
        # warnings of opening it were given when its pictures were read
        _, there_is = next_message("sound", limit, lambda line: None)
        if there_is:
            return received(pipe, ended, close)
    except (SoundLost, LinkClosed, av.FFmpegError, ValueError, TypeError, IndexError) as error:
        why = reason(error) if isinstance(error, av.FFmpegError) else error
        warn(f"{name}: its sound is left out ({why})")
    except BaseException:
        close()
        pipe.close()
        raise
    close()
    pipe.close()
    return None
