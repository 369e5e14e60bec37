"""Exceptions of vicort. Each text is one line: the value, what is allowed, and what to try next."""

import math


class VicortError(Exception):
    """A failure that the user can act on. `exit_code`: of the command line tools."""

    exit_code = 2


class EngineError(VicortError):
    """An engine set is missing, damaged, of another schema, or differs from its manifest."""


class ConfigError(VicortError):
    """A YAML file, an option or an argument has a value that is not allowed."""


class SourceError(VicortError):
    """A video source cannot be opened or contains no video.

    brief: the cause alone, for callers that add the source and the advice.
    """

    def __init__(self, line: str, brief: str = "") -> None:
        super().__init__(line)
        self.brief = brief or line


class TruncatedSource(SourceError):
    """A source broke off. All frames before that point were delivered."""

    exit_code = 3


class MemoryBudgetError(VicortError):
    """A page budget is too small for the pages that must be kept."""


class HostBudgetError(MemoryBudgetError):
    """The budget of the host tier is too small for a long-term memory."""

    def __init__(self, host_mb: float, smallest: int, what: str) -> None:
        """smallest: bytes that would be enough; what: that needs them."""
        self.smallest_mb = math.ceil(smallest / 1e4) / 100
        super().__init__(
            f"a host budget of {host_mb:g} MB is too small for {what}: give --host-memory "
            f"{self.smallest_mb:g}MB or more, or set memory.host_mb to at least "
            f"{self.smallest_mb:g}"
        )


class DeviceError(VicortError):
    """The requested GPU is missing, cannot be used, or has too little memory."""


class SessionClosed(VicortError):
    """A session was closed before or during the call."""


class QuestionError(VicortError):
    """A question cannot be asked: it is empty, too long, or has an invalid time."""
