# SPDX-License-Identifier: Apache-2.0
"""The table of clients: from what pytest reports to the page."""

from pathlib import Path

import pytest

from conftest import REPO, failing
from proof import clients
from series.errors import Exit
from test_docs import own_tests

FILE = "test_open_webui.py"
TESTS = [test for row in clients.CASES[FILE].values() for test in row]


def write_report(path: Path, *lines: str) -> Path:
    cases = [f'<testcase classname="" name="test_{test}"/>' for test in TESTS]
    path.write_text(f"<testsuites><testsuite>{''.join([*cases, *lines])}</testsuite></testsuites>")
    return path


def case(name: str, inner: str = "") -> str:
    return f'<testcase classname="" name="{name}">{inner}</testcase>'


def test_every_test_is_in_a_row_and_every_row_has_its_tests() -> None:
    for file, rows in clients.CASES.items():
        named = [f"test_{test}" for row in rows.values() for test in row]
        there = [n for n in own_tests(f"{clients.TESTS}/{file}") if n.startswith("test_")]
        assert sorted(named) == sorted(there)
        assert (REPO / clients.TESTS / file).is_file()


def test_cases_are_counted_and_a_failure_is_shown(tmp_path: Path) -> None:
    more = [case("test_pictures[one]", "<failure/>"), case("test_pictures[two]", "<skipped/>")]
    found = {FILE: clients.read_outcomes(FILE, write_report(tmp_path / "a.xml", *more))}
    assert found[FILE]["pictures"] == [1, 3] and found[FILE]["a_second_turn"] == [1, 1]
    assert "| **2 of 3 fail** |" in clients.row(FILE, "x", ("pictures",), found)
    both = clients.row(FILE, "x", ("a_second_turn", "stop_ends_the_request"), found)
    assert both.startswith(
        "| x | holds (2) | `test_open_webui.py::test_a_second_turn`<br>`test_open"
    )


@pytest.mark.parametrize("lost", [True, False])
def test_a_test_without_a_row_or_that_did_not_run_is_an_error(tmp_path: Path, lost: bool) -> None:
    report = write_report(tmp_path / "a.xml", *([] if lost else [case("test_new")]))
    if lost:
        first = f'name="test_{TESTS[0]}"'
        report.write_text(report.read_text().replace(first, f'name="test_{TESTS[1]}"'))
    says = f"{TESTS[0]} did not run" if lost else "new is in no row"
    with failing(Exit.FAILED, says):
        clients.read_outcomes(FILE, report)
