# SPDX-License-Identifier: Apache-2.0
"""`without`: the tests of each patch on the pinned source, beside the same tests with the series.

The pinned source gets the tests of the series, as they are after its last patch, and nothing else
of it. What they give with the series is read from the report of the last `make test-model`, which
must be of the tree of series.lock. A patch of which no test fails without the series proves
nothing, and is an error.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from series import patches
from series.command import Command, positive
from series.config import Base
from series.errors import Exit
from series.state import locked

from . import evidence, outcomes
from .stages import Plan, Runner, require_known_tests

MODEL = "make test-model"
# In place of an outcome: the file of the test could not be imported, or its process ended.
NOT_RUN = "not run"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `without`."""
    parser.add_argument("--jobs", type=positive, help="stages at a time, as for test-model")
    parser.add_argument("--stages", default="", help="the plan (tests.toml of the base)")


def data_file(base: Base) -> Path:
    return evidence.DATA / base.name / "without.json"


def name_of(node: str) -> str:
    """A test without its parameters."""
    return node.removeprefix("./").partition("[")[0]


def compare(
    without: Iterable[outcomes.Outcome], with_series: Iterable[outcomes.Outcome]
) -> dict[str, dict[str, dict[str, int]]]:
    """Test -> "without" and "with" -> how many of its cases had each outcome.

    A case that ran with the series alone was not run without it.
    """
    before = {one.node.removeprefix("./"): one.outcome for one in without}
    table: dict[str, dict[str, Counter[str]]] = {}
    for one in with_series:
        row = table.setdefault(name_of(one.node), {"without": Counter(), "with": Counter()})
        row["with"][one.outcome] += 1
        row["without"][before.get(one.node.removeprefix("./"), NOT_RUN)] += 1
    return {name: {k: dict(v) for k, v in row.items()} for name, row in table.items()}


def failing(tests: dict[str, dict[str, dict[str, int]]], side: str) -> int:
    """How many cases do not pass on this side."""
    return sum(n for row in tests.values() for what, n in row[side].items() if what != "passed")


def run(command: Command) -> None:
    """Run the tests without the series and write the comparison; Exit.FAILED if a patch has none
    that fails without it."""
    base, paths, args = command.base, command.paths, command.args
    names = patches.names(base)
    plan = Plan.read(Path(args.stages or base.tests_file), names)
    logs = paths.state / "logs/test-model"
    with locked(paths.state / ".lock", args.wait):
        evidence.require_tree(base, paths)
        require_known_tests(plan, paths)
        last = evidence.read(logs / "run.json", base, command=MODEL)
        if not last["whole"] or not last["ok"]:
            raise Exit.FAILED(f"{logs} is of a run that failed, or of one patch", f"run {MODEL}")
        runner = Runner(base, paths, plan, "without", args)
        ended = runner.without([plan.patches[name].short() for name in names])
        evidence.require_tree(base, paths)
    tables = {
        name: compare(outcomes.read(ended[name].outcomes), outcomes.read(logs / f"{name}.jsonl"))
        for name in names
    }
    report = {**evidence.about(base, paths), "patches": tables}
    command.report = report
    idle = [name for name, tests in tables.items() if not failing(tests, "without")]
    if idle:
        raise Exit.FAILED(
            f"no test of {', '.join(idle)} fails without the series",
            f"a test has to show what a patch is for; the logs are in {runner.logs}",
        )
    evidence.write(data_file(base), report)
    cases = sum(n for tests in tables.values() for r in tests.values() for n in r["with"].values())
    fail = sum(failing(tests, "without") for tests in tables.values())
    command.say(
        f"{cases} tests of {len(names)} patches: {fail} do not pass without the series; "
        f"wrote {data_file(base)}; run make pages"
    )


# ---- the page ----

HEAD = """\
# The tests of the patches, without and with them

Each patch's own tests, on the pinned source with nothing of the series but its tests, and on the
patched tree: `make test-model without BASE=<base>`. *Not run*: the file of the test imports what
only the series has, or the process of the tests ended.
"""


def words(counts: dict[str, int]) -> str:
    """The outcomes of the cases of a test."""
    if set(counts) == {"passed"}:
        return "pass"
    short = {"passed": "pass", "failed": "fail", "skipped": "are skipped", NOT_RUN: NOT_RUN}
    if len(counts) == 1:
        return short[next(iter(counts))]
    return ", ".join(f"{number} {short[name]}" for name, number in sorted(counts.items()))


def page(bases: list[Base]) -> str:
    """The page, from the committed data of every base."""
    lines = [HEAD.rstrip("\n")]
    for base in bases:
        data: dict[str, Any] = evidence.read_any(data_file(base), base)
        lines += ["", f"## {base.name}", "", evidence.origin(data, base), ""]
        lines += ["| patch | tests | do not pass without it | do not pass with the series |"]
        lines += ["| --- | --- | --- | --- |"]
        for name, tests in data["patches"].items():
            number = sum(sum(row["with"].values()) for row in tests.values())
            sides = failing(tests, "without"), failing(tests, "with")
            lines.append(f"| {name} | {number} | {sides[0]} | {sides[1]} |")
        lines += ["", f"### Test by test on {base.name}", ""]
        lines += ["| patch | test | cases | without | with |", "| --- | --- | --- | --- | --- |"]
        for name, tests in data["patches"].items():
            for test, row in tests.items():
                cells = (sum(row["with"].values()), words(row["without"]), words(row["with"]))
                short = test.removeprefix("tests/")
                lines.append(f"| {name} | `{short}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
