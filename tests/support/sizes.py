"""How much a test does in the default run, and how much where slow tests run too."""

from __future__ import annotations

import os

import pytest

THOROUGH = "VICORT_TEST_THOROUGH"  # set by conftest.py where slow tests run
EXPLORE = "VICORT_TEST_EXPLORE"  # set by conftest.py: how many times as many examples


def is_thorough() -> bool:
    return THOROUGH in os.environ


def explores() -> bool:
    """Whether property tests try new examples, not the same ones in each run."""
    return EXPLORE in os.environ


def examples(count: int) -> int:
    """hypothesis' max_examples: `count` where slow tests run, otherwise a third of it; a multiple
    where new ones are tried."""
    usual = count if is_thorough() else max(5, count // 3)
    return usual * int(os.environ.get(EXPLORE, 1))


def slow(*values: object) -> list:
    """Cases of a parametrized test that run only where slow tests run; a tuple of several
    parameters is one case."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
