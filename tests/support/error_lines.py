"""What an error says, checked for what a terminal shows."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The words of an error: one line that can be printed, not a long one."""
    assert str(error).isprintable()
    assert len(str(error)) < 2_000
    return str(error)
