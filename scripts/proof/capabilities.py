# SPDX-License-Identifier: Apache-2.0
"""`capabilities`: what works, and the tests that show it.

capabilities.toml of the base names the tests of each capability. Their outcomes are read from the
reports of `make test-model` and `make test-all`, which must be of the tree of series.lock. A
capability counts if all of its tests ran and passed; one that is named but did not run is an error,
as is one that failed or was skipped. How many cases each test had is kept in docs/evidence/data,
for every base; the page is made from that.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from series.command import Command
from series.config import Base, parse_toml, reading
from series.errors import Exit

from . import evidence, outcomes
from .stages import Plan

SHOWN = 5
HEAD = """\
# What works, and the tests that show it

*Works* and *refused* (with an error that says what to do) mean that every test named in the row ran
on the base and passed. File names are below `tests/` of the patched tree.
"""


@dataclass
class Capability:
    """One row: what, and the tests that show it.

    `tests` are pytest node ids; one without parameters stands for all of its cases, and a file or
    class for all of its tests.
    """

    group: str
    name: str
    tests: list[str]
    refused: bool = False


def list_file(base: Base) -> Path:
    return base.folder / "capabilities.toml"


def read_list(path: Path) -> list[Capability]:
    hint = "its head says what it holds"
    with reading(path, hint):
        data = parse_toml(path.read_text(encoding="utf-8"))
        capabilities = [Capability(**entry) for entry in data["capability"]]
    names = [(c.group, c.name) for c in capabilities]
    for c in capabilities:
        if names.count((c.group, c.name)) > 1:
            raise Exit.USAGE(f"{path} has {c.name!r} twice in {c.group!r}", hint)
        if not c.tests:
            raise Exit.USAGE(f"{path}: {c.name!r} has no test", hint)
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


def count_cases(path: Path, passed: dict[str, bool]) -> dict[str, int]:
    """How many cases each named test has; a SeriesError names each capability not shown."""
    cases: dict[str, int] = {}
    problems = []
    for c in read_list(path):
        for node in c.tests:
            found = [
                one for one in passed if one == node or one.startswith((f"{node}[", f"{node}::"))
            ]
            cases[node] = len(found)
            if not found:
                problems.append(f"{c.name}: {node} did not run")
            problems += [f"{c.name}: {one} did not pass" for one in found if not passed[one]]
    if problems:
        rest = len(problems) - SHOWN
        raise Exit.FAILED(
            f"{len(problems)} tests do not show what {path} says: {', '.join(problems[:SHOWN])}"
            + (f" and {rest} more" if rest > 0 else ""),
            "correct the list, or tests.toml, or the series",
        )
    return cases


def data_file(base: str) -> Path:
    return evidence.DATA / base / "capabilities.json"


def run(command: Command) -> None:
    """Write what the last run shows of this base; with --check compare."""
    base = command.base
    capabilities = read_list(list_file(base))
    cases = count_cases(list_file(base), read_runs(command))
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
    lines = [HEAD.rstrip("\n")]
    for base in bases:
        data, capabilities = (
            evidence.read_any(data_file(base.name), base),
            read_list(list_file(base)),
        )
        lines += ["", f"## {base.name}", "", evidence.origin(data, base)]

        def describe(node: str, cases: dict[str, int] = data["cases"]) -> str:
            count, short = cases.get(node, 0), cell(node.removeprefix("tests/"))
            return f"`{short}`" + (f" ({count} cases)" if count > 1 else "")

        for group in dict.fromkeys(c.group for c in capabilities):
            lines += ["", f"### {group}", "", "| capability | | tests |", "| --- | --- | --- |"]
            for c in (c for c in capabilities if c.group == group):
                verdict = "refused" if c.refused else "works"
                tests = "<br>".join(map(describe, c.tests))
                lines.append(f"| {cell(c.name)} | {verdict} | {tests} |")
    return "\n".join(lines) + "\n"
