# SPDX-License-Identifier: Apache-2.0
"""Writes the table of what works, from the tests that show it: docs/evidence/capabilities.md.

    python ci/capabilities.py            # after make test-model
    python ci/capabilities.py --check    # compares only

`ci/capabilities.toml` names the tests of each capability. Their outcomes are read from the
reports that `make test-model` leaves in build/BASE/logs/test-model. A capability counts if all of
its tests ran and passed on the base; a test that is named but did not run is an error, as is one
that failed or was skipped.

Exit status: 0 if every capability is shown, 1 if one is not or the page differs with --check,
2 if the list or a report cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = """\
# What works, and the tests that show it

Written by `ci/capabilities.py` from `ci/capabilities.toml` and the reports of `make test-model`;
do not edit. *Works* and *refused* (with an error that says what to do) mean that every test named
in the row ran on the base and passed. File names are below `tests/` of the patched tree.
"""


class ListError(Exception):
    """The list or a report cannot be read."""


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
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        capabilities = [Capability(**entry) for entry in data["capability"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ListError(f"{path} cannot be read: {error!r}; its head says what it holds") from error
    names = [(c.group, c.name) for c in capabilities]
    for c in capabilities:
        if names.count((c.group, c.name)) > 1:
            raise ListError(f"{path} has {c.name!r} twice in {c.group!r}; rename or remove one")
        if not c.tests and not any(c.on.values()):
            raise ListError(f"{path}: {c.name!r} has no test; name one or remove it")
    return capabilities


def read_report(path: Path) -> dict[str, bool]:
    """Whether each test of a report passed, by node id."""
    outcomes: dict[str, bool] = {}
    try:
        cases = ElementTree.parse(path).getroot().iter("testcase")
        for case in cases:
            # Module and classes: tests.a.test_b or tests.a.test_b.TestC.
            parts = case.attrib["classname"].split(".")
            if parts == [""]:
                continue  # A test of this repository, outside of the tree.
            depth = next(i for i, part in enumerate(parts, 1) if part.startswith("test_"))
            node = "::".join(["/".join(parts[:depth]) + ".py", *parts[depth:], case.attrib["name"]])
            bad = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
            outcomes[node] = not bad and outcomes.get(node, True)
    except (OSError, ElementTree.ParseError, KeyError, StopIteration) as error:
        raise ListError(f"{path} cannot be read: {error!r}; run make test-model") from error
    return outcomes


def find_cases(node: str, outcomes: dict[str, bool]) -> list[str]:
    """The cases that a node id stands for."""
    return [case for case in outcomes if case == node or case.startswith(f"{node}[")]


def check(capability: Capability, base: str, outcomes: dict[str, bool]) -> list[str]:
    """What keeps a capability from being shown on a base."""
    problems = []
    for node in capability.tests_on(base):
        cases = find_cases(node, outcomes)
        if not cases:
            problems.append(
                f"{capability.name}, {base}: {node} did not run; correct it in capabilities.toml, "
                "or add its file to ci/stages.toml"
            )
        problems += [
            f"{capability.name}, {base}: {case} did not pass; mend it, or remove the capability"
            for case in cases
            if not outcomes[case]
        ]
    return problems


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def describe(node: str, reports: dict[str, dict[str, bool]]) -> str:
    count = max(len(find_cases(node, outcomes)) for outcomes in reports.values())
    short = cell(node.removeprefix("tests/"))
    return f"`{short}`" + (f" ({count} cases)" if count > 1 else "")


def write_table(capabilities: list[Capability], reports: dict[str, dict[str, bool]]) -> str:
    lines = [HEAD]
    for group in dict.fromkeys(c.group for c in capabilities):
        bases = list(reports)
        lines += [f"## {group}", "", f"| capability | {' | '.join(bases)} | tests |"]
        lines.append("| --- |" + " --- |" * (len(bases) + 1))
        for c in capabilities:
            if c.group != group:
                continue
            verdict = "refused" if c.refused else "works"
            verdicts = [verdict if c.tests_on(base) else "not there" for base in bases]
            nodes = dict.fromkeys(node for base in bases for node in c.tests_on(base))
            tests = "<br>".join(describe(node, reports) for node in nodes)
            lines.append(f"| {cell(c.name)} | {' | '.join(verdicts)} | {tests} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def run(args: argparse.Namespace) -> int:
    capabilities = read_list(args.list)
    reports: dict[str, dict[str, bool]] = {}
    for base in args.base:
        reports[base] = {}
        logs = args.build_dir / base / "logs" / "test-model"
        found = sorted(logs.glob("*.xml"))
        if not found:
            raise ListError(f"{logs} has no reports; run make test-model BASE={base}")
        for report in found:
            for case, passed in read_report(report).items():
                reports[base][case] = passed and reports[base].get(case, True)
    unknown = {base for c in capabilities for base in c.on} - set(reports)
    if unknown:
        raise ListError(f"{args.list} names {', '.join(sorted(unknown))}, which is no base here")
    problems = [
        p
        for base, outcomes in reports.items()
        for c in capabilities
        for p in check(c, base, outcomes)
    ]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1
    table = write_table(capabilities, reports)
    if not args.check:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table, encoding="utf-8")
        print(f"{args.out}: {len(capabilities)} capabilities")
    elif not args.out.is_file() or args.out.read_text(encoding="utf-8") != table:
        print(f"error: {args.out} is out of date; run ci/capabilities.py", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    bases = sorted(path.parent.name for path in REPOSITORY.glob("patches/*/base.toml"))
    parser.add_argument("--base", nargs="+", default=bases, help="columns (all of patches/)")
    parser.add_argument("--build-dir", type=Path, default=REPOSITORY / "build")
    parser.add_argument("--list", type=Path, default=REPOSITORY / "ci/capabilities.toml")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/evidence/capabilities.md")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    try:
        return run(parser.parse_args())
    except ListError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
