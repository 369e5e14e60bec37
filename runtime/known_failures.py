"""What the caller of a session knows of its device."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

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


class _Knowing(Protocol):
    _known: KnownFailures


K = TypeVar("K", bound=_Knowing)
P = ParamSpec("P")
R = TypeVar("R")


def known_device_errors(
    method: Callable[Concatenate[K, P], R],
) -> Callable[Concatenate[K, P], R]:
    """A method of a session by whose DeviceError the caller knows that the device failed."""

    @wraps(method)
    def call(self: K, *args: P.args, **options: P.kwargs) -> R:
        try:
            return method(self, *args, **options)
        except DeviceError as error:
            self._known.note(error)
            raise

    return call
