"""What vicort says when it cannot go on: one line with the value, what is allowed, and the next
command to try."""


class VicortError(Exception):
    """A failure the user can act on.

    Its text is one line. `exit_code` is what a command line tool returns for it.
    """

    exit_code = 2


class EngineError(VicortError):
    """An engine set is missing, damaged, of another schema, or not what its manifest says."""


class ConfigError(VicortError):
    """A YAML file, a flag or an argument holds a value that is not allowed."""


class SourceError(VicortError):
    """A video source cannot be opened or holds no video. `brief`: only why, for those who know
    which and what next."""

    def __init__(self, line: str, brief: str = "") -> None:
        super().__init__(line)
        self.brief = brief or line


class TruncatedSource(SourceError):
    """A source broke off in the middle: what came before it is good, and was delivered."""

    exit_code = 3


class MemoryBudgetError(VicortError):
    """A page budget is too small for what must be kept."""


class DeviceError(VicortError):
    """A GPU is asked for that is not there, cannot be used, or has too little memory."""


class QuestionError(VicortError):
    """A question cannot be asked: empty, too long, or at a time that cannot be."""
