# SPDX-License-Identifier: Apache-2.0
"""The page for two machines as `two-nodes` reads it, and how a run is judged."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from proof import stress, stress_requests, two_nodes
from proof.stress_requests import Request

ROW = {
    "way": "With Ray",
    "processes": 2,
    "failure": "switched off",
    "requests": 2,
    "wrong": [],
    "drafts": 30,
    "accepted": 9,
    "status": 1,
    "line": "a worker died",
    "answer": 500,
}
REPORT: dict[str, Any] = {
    "one": {"requests": 2, "pictures": 6, "drafts": 30, "accepted": 9},
    "rows": [ROW],
}


def test_the_page_has_what_each_machine_does() -> None:
    plain = two_nodes.blocks(two_nodes.WAYS["mp"])
    assert [number for number, _ in plain] == [1, 2]
    assert "--node-rank 0" in plain[0][1] and "--headless" in plain[1][1]
    ray = two_nodes.blocks(two_nodes.WAYS["ray"])
    assert [number for number, _ in ray] == [1, 2, 1]
    assert ["ray start" in commands for _, commands in ray] == [True, True, False]
    every = [commands for _, commands in plain + ray]
    assert sum(commands.count(two_nodes.MODEL) for commands in every) == 3
    # No fence of the page is left out.
    assert len(every) == two_nodes.PAGE.read_text().count("```bash")


def test_the_programs_of_the_page_get_the_small_model(tmp_path: Path) -> None:
    two_nodes.write_programs(tmp_path)
    script = (tmp_path / "vllm").read_text().replace("os.execv(", "print(")
    run = [sys.executable, "-c", script, "serve", two_nodes.MODEL, "--tensor-parallel-size", "2"]
    environment = {"TWO_NODES_SOCKET": "/s", "TWO_NODES_PROCESSES": "7"}
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(stress.FOLDER) in said and two_nodes.MODEL not in said
    # The last one holds.
    assert said.rindex("'--tensor-parallel-size', '7'") > said.index("'2'") and "'/s'" in said
    headless = [*run, "--headless"]
    said = subprocess.run(
        headless, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "--uds" not in said
    script = (tmp_path / "ray").read_text().replace("os.execv(", "print(")
    run = [sys.executable, "-c", script, "start", "--head"]
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert "'7', '--resources', '{\"NPU\": 7}'" in said and "include-dashboard" in said


def test_the_work_of_a_server_on_another_machine_is_known(tmp_path: Path) -> None:
    # Its start is waited for by that.
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        server = two_nodes.Remote(process, tmp_path / "no.sock", tmp_path / "log")
        deadline = time.monotonic() + 20
        while server.is_alive and not server.work() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.work() > 0
    finally:
        process.kill()
        process.wait()


class Counting:
    """A server whose counts come late, and in which a stop string costs drafts of chance."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.looks = 0

    async def post(self, path: str, body: dict[str, Any]) -> stress.Answer:
        self.asked.append("stop" in body)
        return stress.Answer(200, {})

    async def metrics(self) -> dict[str, float]:
        self.looks += 1
        drafts = 10 * self.asked.count(False) + 1000 * self.asked.count(True)
        return {
            two_nodes.RUNNING: float(self.looks < 3),
            two_nodes.DRAFTED: drafts - float(self.looks < 3),
            two_nodes.ACCEPTED: 3,
        }


def test_drafts_are_counted_where_the_engine_ends_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(seed: int, number: int, **_: Any) -> Request:
        body = {"stop": "e"} if number % 3 == 0 else {"stop_token_ids": [7]}
        return Request(number, "/v1/completions", body, "completion")

    monkeypatch.setattr(stress_requests, "make_request", make)
    server = Counting()
    answers, counts = asyncio.run(two_nodes.ask(cast("stress.Server", server)))
    plain = server.asked.count(False)
    assert len(answers) == two_nodes.COUNT == plain + 8
    assert counts == {"drafts": 10 * plain, "accepted": 3}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, ""),
        ({"wrong": ["request 3: differs"]}, "request 3: differs"),
        ({"accepted": 8}, "26.7% of the drafts accepted, one process 30.0%"),
        # Not one by one: they may differ by chance.
        ({"accepted": 10, "drafts": 32}, ""),
        ({"status": 0}, "ended with 0"),
        ({"status": None}, "ended with None"),
        ({"line": ""}, "no line"),
        ({"pictures": 1}, "1 requests with pictures"),
        ({"answer": 200}, "an answer came"),
    ],
)
def test_what_is_wrong_with_a_run(change: dict[str, Any], what: str) -> None:
    report = copy.deepcopy(REPORT)
    report["rows"][0] |= change
    report["one"] |= {key: change[key] for key in change if key == "pictures"}
    found = two_nodes.judge(report)
    assert len(found) == bool(what) and all(what in text for text in found)
