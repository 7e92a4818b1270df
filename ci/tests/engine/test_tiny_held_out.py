# SPDX-License-Identifier: Apache-2.0
"""All held-out questions, of which test_tiny_engine.py asks some; `make test-long` runs this."""

import pytest

# The same tests.
from test_tiny_engine import (
    engine,
    reference,
    report,
    test_engine_answers,
    test_engine_equals_transformers,
)

from tiny import evaluate, task

__all__ = [
    "engine",
    "reference",
    "report",
    "test_engine_answers",
    "test_engine_equals_transformers",
]


@pytest.fixture(scope="module")
def questions() -> list[task.Question]:
    return [task.get_question("held-out", i) for i in range(550)]


def test_drafts_are_realistic(report: evaluate.Report) -> None:
    """The draft layer is right far more often than chance, and its last draft not always."""
    for verified, accepted in report.acceptance.values():
        rates = [count / verified for count in accepted]
        assert 0.3 < rates[-1] < 1
        assert rates == sorted(rates, reverse=True)


def test_first_drafts_miss_too(report: evaluate.Report) -> None:
    assert all(accepted[0] < verified for verified, accepted in report.acceptance.values())
