# SPDX-License-Identifier: Apache-2.0
"""One server, few requests, what it holds; `make soak` asks 2000. What is taken for growth.

A second server has faults planted, each of which has to be found.
"""

from __future__ import annotations

import itertools
import linecache
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from proof import soak, stress  # noqa: E402

COUNT = 60
# Of the planted faults: objects that every request leaves, and when the other two happen.
KEPT = 1000
LOST_BLOCK = 30
STUCK_REQUEST = 90
# Seconds, after which a stuck request is given up; more than one takes on a busy machine.
PATIENCE = 20.0


class Plant(soak.Prepare):
    """In the server's processes: a list that grows, a block that is not freed, a lost request."""

    def __call__(self) -> None:
        super().__call__()
        from vllm.v1.core.block_pool import BlockPool
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.output_processor import OutputProcessor

        kept: list[Any] = []
        begin, free, schedule = (
            OutputProcessor.add_request,
            BlockPool.free_blocks,
            Scheduler.add_request,
        )
        freed, scheduled = itertools.count(1), itertools.count(1)

        def keep(front: Any, *args: Any, **kwargs: Any) -> None:
            kept.append([[] for _ in range(KEPT)])
            begin(front, *args, **kwargs)

        def free_all_but_one(pool: Any, blocks: Any) -> None:
            blocks = list(blocks)
            # Those that a window has left behind are null, and never free.
            last = next((block for block in blocks if not block.is_null), None)
            is_lost = last is not None and next(freed) == LOST_BLOCK
            free(pool, [block for block in blocks if not (is_lost and block is last)])

        def lose_one(scheduler: Any, request: Any) -> None:
            if next(scheduled) == STUCK_REQUEST:
                scheduler.requests[request.request_id] = request
            else:
                schedule(scheduler, request)

        OutputProcessor.add_request = keep
        BlockPool.free_blocks = free_all_but_one
        Scheduler.add_request = lose_one


# What pytest records of warnings, it keeps in the processes of the servers too.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "Prepare", Plant)
    monkeypatch.setattr(stress, "PATIENCE", PATIENCE)
    # The block is never free, so every window waits for as long.
    monkeypatch.setattr(soak, "SETTLED", 1.0)
    run = soak.run_requests(2026, COUNT, short=True)
    assert any("KV blocks left" in text for text in run.wrong), run.wrong
    assert any("KV references left" in text for text in run.wrong), run.wrong
    (grows,) = [text for text in run.wrong if text.startswith("objects grow by")]
    # Twice a request: half of what the server gets are probes.
    assert KEPT < float(grows.split()[3]) < 4 * KEPT
    stuck = [fault.what for fault in run.report.faults if fault.what.startswith("not answered")]
    assert stuck and all(f"no answer in {PATIENCE:.0f} s" in what for what in stuck)


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


def test_a_short_run_has_wider_limits() -> None:
    assert soak.judge(make_rows(objects=4, tensors=8_000, resident=2e5), short=True) == []
    found = soak.judge(make_rows(objects=100, tensors=30_000), short=True)
    assert [text.split()[0] for text in found] == ["objects", "tensors"]


@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_library_that_is_loaded_late_is_no_growth_of_a_short_run(at: int) -> None:
    rows = make_rows(objects=4)
    for row in rows[at:]:
        row["objects"] += 1e6
    assert soak.judge(rows, short=True) == []


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


def test_threads_of_a_pool_are_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ThreadPoolExecutor, "_adjust_thread_count", ThreadPoolExecutor._adjust_thread_count
    )
    soak.start_whole_pools()
    with ThreadPoolExecutor(5) as pool:
        for number in range(20):
            assert pool.submit(abs, -number).result() == number
            assert len(pool._threads) == 5
        assert list(pool.map(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_sources_of_tracebacks_are_no_growth() -> None:
    assert linecache.getlines(__file__)
    soak.count_objects()
    assert __file__ not in linecache.cache


def test_the_kinds_that_grow_are_named() -> None:
    before, after = {"a": 5, "b": 7}, {"a": 9, "b": 7, "c": 1}
    assert soak.grown(before, after) == "a +4, c +1"
