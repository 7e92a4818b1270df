# SPDX-License-Identifier: Apache-2.0
"""`capabilities`: what works, and the tests that show it.

ci/capabilities.toml names the tests of each capability. Their outcomes are read from the reports of
`make test-model` and `make test-all`, which must be of the tree of series.lock. A capability
counts if all of its tests ran and passed; one that is named but did not run is an error, as is one
that failed or was skipped. How many cases each test had is kept in docs/evidence/data, for every
base; the page is made from that.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from series.command import Command
from series.config import ROOT, Base, parse_toml, reading
from series.errors import Exit

from . import evidence, outcomes
from .stages import Plan

LIST = ROOT / "ci/capabilities.toml"
HEAD = """\
# What works, and the tests that show it

*Works* and *refused* (with an error that says what to do) mean that every test named in the row ran
on the base and passed. File names are below `tests/` of the patched tree.
"""


@dataclass
class Capability:
    """One row: what, and the tests that show it.

    `tests` are pytest node ids; one without parameters stands for all of its cases. `on` holds
    other tests for a base, none if the base does not have the capability.
    """

    group: str
    name: str
    tests: list[str]
    refused: bool = False
    on: dict[str, list[str]] = field(default_factory=dict)

    def tests_on(self, base: str) -> list[str]:
        return self.on.get(base, self.tests)


def read_list(path: Path) -> list[Capability]:
    hint = "its head says what it holds"
    with reading(path, hint):
        data = parse_toml(path.read_text(encoding="utf-8"))
        capabilities = [Capability(**entry) for entry in data["capability"]]
    names = [(c.group, c.name) for c in capabilities]
    for c in capabilities:
        if names.count((c.group, c.name)) > 1:
            raise Exit.USAGE(f"{path} has {c.name!r} twice in {c.group!r}", hint)
        if not c.tests and not any(c.on.values()):
            raise Exit.USAGE(f"{path}: {c.name!r} has no test", hint)
    bases = {file.parent.name for file in (ROOT / "patches").glob("*/base.toml")}
    unknown = {base for c in capabilities for base in c.on} - bases
    if unknown:
        raise Exit.USAGE(f"{path} names {', '.join(sorted(unknown))}, which is no base", hint)
    return capabilities


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `capabilities`."""
    parser.add_argument("--check", action="store_true", help="compare, do not write")


def read_runs(command: Command) -> dict[str, bool]:
    """Whether each test passed, from the reports of whole runs."""
    base, logs = command.base, command.paths.state / "logs"
    passed: dict[str, bool] = {}
    long = any(stage.long_tests for stage in Plan.read(base.tests_file).stages())
    for name in ("test-model", "test-model-long") if long else ("test-model",):
        report = evidence.read(logs / name / "run.json", base, command="make test-all")
        if not report["whole"] or not report["ok"]:
            raise Exit.FAILED(
                f"{logs / name} is of a run that failed, or of one patch", "run make test-all"
            )
        for file in sorted((logs / name).glob("*.jsonl")):
            for outcome in outcomes.read(file):
                node = outcome.node.removeprefix("./")
                passed[node] = outcome.outcome == "passed" and passed.get(node, True)
    return passed


def count_cases(capabilities: list[Capability], base: str, passed: dict[str, bool]) -> Any:
    """How many cases each named test has; a SeriesError names each capability not shown."""
    cases: dict[str, int] = {}
    problems = []
    for c in capabilities:
        for node in c.tests_on(base):
            found = [one for one in passed if one == node or one.startswith(f"{node}[")]
            cases[node] = len(found)
            if not found:
                problems.append(f"{c.name}: {node} did not run")
            problems += [f"{c.name}: {one} did not pass" for one in found if not passed[one]]
    if problems:
        raise Exit.FAILED(
            f"{len(problems)} tests do not show what ci/capabilities.toml says: "
            + ", ".join(problems),
            "correct the list, or tests.toml, or the series",
        )
    return cases


def data_file(base: str) -> Path:
    return evidence.DATA / base / "capabilities.json"


def run(command: Command) -> None:
    """Write what the last run shows of this base; with --check compare."""
    base = command.base
    capabilities = read_list(LIST)
    cases = count_cases(capabilities, base.name, read_runs(command))
    file = data_file(base.name)
    report = {**evidence.about(base, command.paths), "cases": cases}
    if not command.args.check:
        evidence.write(file, report)
        command.say(f"{file}: {len(capabilities)} capabilities; run make pages")
        return
    committed = evidence.read(file, base, command="make capabilities")
    if committed["cases"] != cases:
        raise Exit.FAILED(f"{file} is not what the last run shows", "run make capabilities")
    command.say(f"{len(capabilities)} capabilities are shown by the last run")


# ---- the page ----


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(bases: list[Base]) -> str:
    """The page, from the committed data of every base."""
    data = {b.name: evidence.read_any(data_file(b.name), b) for b in bases}
    capabilities = read_list(LIST)

    def describe(node: str) -> str:
        count = max(one["cases"].get(node, 0) for one in data.values())
        short = cell(node.removeprefix("tests/"))
        return f"`{short}`" + (f" ({count} cases)" if count > 1 else "")

    lines = [HEAD, *(evidence.origin(one, b) for one, b in zip(data.values(), bases, strict=True))]
    for group in dict.fromkeys(c.group for c in capabilities):
        lines += ["", f"## {group}", "", f"| capability | {' | '.join(data)} | tests |"]
        lines.append("| --- |" + " --- |" * (len(data) + 1))
        for c in (c for c in capabilities if c.group == group):
            verdict = "refused" if c.refused else "works"
            verdicts = [verdict if c.tests_on(base) else "not there" for base in data]
            nodes = dict.fromkeys(node for base in data for node in c.tests_on(base))
            tests = "<br>".join(map(describe, nodes))
            lines.append(f"| {cell(c.name)} | {' | '.join(verdicts)} | {tests} |")
    return "\n".join(lines) + "\n"
