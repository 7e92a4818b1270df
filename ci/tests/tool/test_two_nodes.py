# SPDX-License-Identifier: Apache-2.0
"""The page for two machines as `two-nodes` reads it, and how a run is judged."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proof import stress, two_nodes

ROW = {
    "way": "With Ray",
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
    environment = {"TWO_NODES_SOCKET": "/s"}
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(stress.FOLDER) in said and two_nodes.MODEL not in said
    # The last one holds.
    assert said.rindex("'--tensor-parallel-size', '1'") > said.index("'2'") and "'/s'" in said
    headless = subprocess.run([*run, "--headless"], capture_output=True, text=True, check=True)
    assert "--uds" not in headless.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, ""),
        ({"wrong": ["request 3: differs"]}, "request 3: differs"),
        ({"accepted": 8}, "8 accepted, one process 9"),
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
