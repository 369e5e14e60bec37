"""What the caller of a session knows of its device."""

from __future__ import annotations

from vicort.runtime.errors import DeviceError


class KnownFailures:
    """Whether the caller was given a DeviceError, by a method or as the failure of an answer: then
    `close` does not raise another one. Thread-safe."""

    def __init__(self) -> None:
        self.of_device = False

    def note(self, error: object) -> None:
        """Call before the caller is given the error: he may close the session at once."""
        if isinstance(error, DeviceError):
            self.of_device = True
