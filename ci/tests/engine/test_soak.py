# SPDX-License-Identifier: Apache-2.0
"""One server, few requests, what it holds; `make soak` asks 2000. What is taken for growth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from proof import soak  # noqa: E402

COUNT = 60


@pytest.fixture(scope="module")
def should_do_global_cleanup_after_test() -> bool:
    return False


@pytest.mark.long
def test_short_soak() -> None:
    run = soak.soak(2026, COUNT, short=True)
    assert run.report.count == COUNT
    assert not run.report.faults, "\n".join(fault.show(2026) for fault in run.report.faults[:5])
    assert not run.wrong, "\n".join(run.wrong)
    assert len(run.rows) == soak.WINDOWS
    assert sum(run.rows[0]["probes"]) > 0
    # It is known from the inside, in both processes.
    assert run.rows[-1]["objects"] > 100_000
    assert run.rows[-1]["tensors"] > 100_000


def make_rows(**growth: float) -> list[dict[str, Any]]:
    """Windows of a server that keeps so much of each value a request."""
    values = {"objects": 5e5, "tensors": 1e6, "resident": 2e9}
    return [
        {
            "requests": n,
            "left": {},
            "probes": [3, 4],
            **{name: value + n * growth.get(name, 0) for name, value in values.items()},
        }
        for n in range(200, 2001, 200)
    ]


def test_a_flat_run_is_right() -> None:
    rows = make_rows()
    # Caches fill in the first quarter.
    rows[0]["resident"] -= 3e8
    rows[1]["objects"] -= 1e5
    assert soak.judge(rows) == []


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("objects", 1),  # one object for each request
        ("tensors", 18_816 / 8),  # 28 x 28 pixels for every eighth
        ("resident", 16_384),
    ],
)
def test_growth_is_wrong(name: str, growth: float) -> None:
    (what,) = soak.judge(make_rows(**{name: growth}))
    assert what.startswith(f"{name} grow by")


def test_what_is_left_is_wrong() -> None:
    rows = make_rows()
    rows[4]["left"] = {"KV blocks": 2}
    rows[7]["probes"] = [3, 3]
    assert soak.judge(rows) == [
        "after 1000 requests: 2 KV blocks left",
        "after 1600 requests: probes had [3, 3] accepted, not [3, 4]",
    ]


def test_the_kinds_that_grow_are_named() -> None:
    before, after = {"a": 5, "b": 7}, {"a": 9, "b": 7, "c": 1}
    assert soak.grown(before, after) == "a +4, c +1"
