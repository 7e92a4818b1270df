# SPDX-License-Identifier: Apache-2.0
"""`without` on a toy vLLM: what runs on the pinned source, and what is said of it."""

import json
from pathlib import Path

import pytest

from conftest import call
from proof import evidence, without
from proof.outcomes import Outcome
from series.errors import Exit, SeriesError
from toy import PASSING, Toy, git, toy, warm

__all__ = ["toy", "warm"]

# Of what the first patch changes, of what none does, and a file that only the series can import.
FIRST = """\
import pytest, vllm
@pytest.mark.parametrize("least", [0, 1])
def test_count(least):
    assert vllm.COUNT >= least
def test_same():
    pass
"""
SECOND = "import vllm.second\n" + PASSING


@pytest.fixture
def tested(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    """The toy with tests that pass with the series, and their report."""
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    toy.amend({"tests/test_first.py": FIRST, "tests/test_second.py": SECOND})
    toy.replace("[patch.first]\ncount = 1", "[patch.first]\ncount = 3")
    toy.run("test-model")
    return toy


def compare(toy: Toy) -> Exit:
    return call("without", toy.base, toy.paths, "--stages", str(toy.plan), "--jobs", "2")


def test_each_test_without_and_with(tested: Toy) -> None:
    assert compare(tested) is Exit.OK
    data = json.loads(without.data_file(tested.base).read_text())
    assert data["patches"] == {
        "first": {
            "tests/test_first.py::test_count": {
                "without": {"passed": 1, "failed": 1},
                "with": {"passed": 2},
            },
            "tests/test_first.py::test_same": {"without": {"passed": 1}, "with": {"passed": 1}},
        },
        "second": {
            "tests/test_second.py::test_it": {"without": {"not run": 1}, "with": {"passed": 1}}
        },
    }
    page = without.page([tested.base])
    assert "| first | 3 | 1 | 0 |" in page
    assert "| first | `test_first.py::test_count` | 2 | 1 fail, 1 pass | pass |" in page
    assert "| second | `test_second.py::test_it` | 1 | not run | pass |" in page
    # Nothing of it stays in the user's tree.
    assert len(git(tested.paths.tree, "worktree", "list").splitlines()) == 1
    assert not git(tested.paths.tree, "status", "--porcelain")


def test_a_patch_that_no_test_needs(tested: Toy) -> None:
    tested.amend({"tests/test_second.py": PASSING})
    tested.run("test-model")
    with pytest.raises(SeriesError, match="no test of second fails without the series") as caught:
        compare(tested)
    assert caught.value.code is Exit.FAILED
    assert not without.data_file(tested.base).exists()


def test_the_report_has_to_be_whole_and_of_this_tree(tested: Toy) -> None:
    tested.run("test-model", "first")
    with pytest.raises(SeriesError, match="of a run that failed, or of one patch"):
        compare(tested)
    tested.run("test-model")
    tested.amend({"tests/test_first.py": FIRST + "\n"})
    with pytest.raises(SeriesError, match="says"):
        compare(tested)


def test_cases_are_counted_by_test() -> None:
    def ran(**cases: str) -> list[Outcome]:
        return [Outcome(f"./t.py::test[{name}]", what, 0.0) for name, what in cases.items()]

    table = without.compare(
        ran(a="failed", b="skipped", other="failed"), ran(a="passed", b="passed", c="passed")
    )
    assert table == {
        "t.py::test": {
            "without": {"failed": 1, "skipped": 1, "not run": 1},
            "with": {"passed": 3},
        }
    }
    assert without.failing(table, "without") == 3 and without.failing(table, "with") == 0
    assert without.words({"failed": 2}) == "fail"
    assert without.words({"passed": 1, "skipped": 2}) == "1 pass, 2 are skipped"
