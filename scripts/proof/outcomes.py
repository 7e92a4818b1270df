# SPDX-License-Identifier: Apache-2.0
"""What each test of a pytest run gave: written as it happens, and read by every proof.

A line is a JSON object: {"collected": 12} when pytest knows its tests, then for each test
{"node": …, "outcome": …, "seconds": …}, last {"files": […]}, what was imported of the tests. A run
that crashes or hangs leaves the lines it got to.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ORDER = ("passed", "skipped", "failed")


class Recorder:
    """A plugin of pytest; the engine's environment has no more than pytest itself."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", buffering=1)
        self.running: dict[str, Any] = {}

    def line(self, **values: Any) -> None:
        self.file.write(json.dumps(values) + "\n")

    def pytest_collection_finish(self, session: Any) -> None:
        self.line(collected=len(session.items))

    def pytest_collectreport(self, report: Any) -> None:
        # A module that cannot be imported, or that skips itself.
        if report.outcome != "passed":
            self.line(node=report.nodeid, outcome=report.outcome, seconds=0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """The worst of a test's setup, call and teardown."""
        if report.when == "setup":
            self.running = {"node": report.nodeid, "outcome": "passed", "seconds": 0.0}
        self.running["outcome"] = max(self.running["outcome"], report.outcome, key=ORDER.index)
        self.running["seconds"] += report.duration
        if report.when == "teardown":
            self.running["seconds"] = round(self.running["seconds"], 2)
            self.line(**self.running)

    def pytest_sessionfinish(self, session: Any) -> None:
        # As text: there are some 5000 modules.
        root = f"{session.config.rootpath}{os.sep}"
        files = {getattr(m, "__file__", None) or "" for m in list(sys.modules.values())}
        inside = [f.removeprefix(root) for f in files if f.startswith(f"{root}tests{os.sep}")]
        self.line(files=sorted(inside))


class Outcome(NamedTuple):
    node: str
    outcome: str
    seconds: float


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run; none if it wrote nothing. The last line may be cut off."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def read(path: Path) -> list[Outcome]:
    """The tests of a run."""
    return [Outcome(**values) for values in _lines(path) if "node" in values]


def files(path: Path) -> list[str]:
    """What a run imported of the tree's tests, conftest.py included."""
    found: list[str] = next((v["files"] for v in _lines(path) if "files" in v), [])
    return found


def count(path: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped."""
    every = [outcome.outcome for outcome in read(path)]
    return {name: every.count(name) for name in ("passed", "failed", "skipped")}
