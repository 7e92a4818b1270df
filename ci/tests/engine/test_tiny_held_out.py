# SPDX-License-Identifier: Apache-2.0
"""The held-out questions that test_tiny_engine.py leaves out; `make test-long` runs this."""

import pytest

# The same tests.
from test_tiny_engine import (
    ALL_QUESTIONS,
    NUM_QUESTIONS,
    engine,
    reference,
    report,
    test_drafts_are_realistic,
    test_engine_answers,
    test_engine_equals_transformers,
)

from tiny import task

__all__ = [
    "engine",
    "reference",
    "report",
    "test_drafts_are_realistic",
    "test_engine_answers",
    "test_engine_equals_transformers",
]


@pytest.fixture(scope="module")
def questions() -> list[task.Question]:
    return [task.get_question("held-out", i) for i in range(NUM_QUESTIONS, ALL_QUESTIONS)]
