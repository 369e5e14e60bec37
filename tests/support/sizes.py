"""How much a test does in the default run, and how much where slow tests run too."""

from __future__ import annotations

import os

import pytest

THOROUGH = "VICORT_TEST_THOROUGH"  # set by conftest.py where slow tests run


def is_thorough() -> bool:
    return THOROUGH in os.environ


def examples(count: int) -> int:
    """hypothesis' max_examples: `count` where slow tests run, otherwise a third of it."""
    return count if is_thorough() else max(5, count // 3)


def slow(*values: object) -> list:
    """Cases of a parametrized test that run only where slow tests run; a tuple of several
    parameters is one case."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
