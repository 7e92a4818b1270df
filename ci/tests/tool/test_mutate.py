# SPDX-License-Identifier: Apache-2.0
"""Planting errors, in a toy of one function."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import call, git
from proof import evidence, mutants
from series.errors import Exit, SeriesError
from toy import PLAN, Shared, Toy, toy, warm

__all__ = ["toy", "warm"]

TEST = """\
from pathlib import Path
from tests.helper import SECONDS
from vllm.double import double


def test_double():
    with Path({runs!r}).open("a") as file:
        file.write("run\\n")
    assert double(2) == 4
"""
ENTRY = """
[[mutation]]
name = "{name}"
error = "{name} error"
file = "vllm/double.py"
old = "{old}"
new = "{new}"
test = "tests/test_double.py::test_double"
"""
DETECTED = ENTRY.format(name="tripled", old="2 * x", new="3 * x")
UNDETECTED = ENTRY.format(name="squared", old="2 * x", new="x * x")


@dataclasses.dataclass
class Project:
    """A toy tree, a table, and how often the test has run."""

    toy: Toy
    runs: Path

    @property
    def tree(self) -> Path:
        return self.toy.paths.tree

    def run(self, table: str, *options: str) -> None:
        (self.toy.base.folder / "mutations.toml").write_text(table)
        assert call("mutate", self.toy.base, self.toy.paths, "--jobs", "2", *options) is Exit.OK

    def fails(self, table: str, *options: str) -> SeriesError:
        with pytest.raises(SeriesError) as caught:
            self.run(table, *options)
        return caught.value

    def count_runs(self) -> int:
        """Since the last question."""
        found = len(self.runs.read_text().split()) if self.runs.exists() else 0
        self.runs.unlink(missing_ok=True)
        return found

    def page(self) -> str:
        return mutants.page([self.toy.base])

    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(mutants.data_file("v0.19.1").read_text())
        return data


@pytest.fixture
def project(toy: Toy, warm: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(mutants, "start", warm.start)
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    toy.base.tests_file.write_text(PLAN)
    runs = tmp_path / "runs"
    toy.amend(
        {
            "vllm/double.py": "def double(x):\n    return 2 * x\n",
            "tests/__init__.py": "",
            "tests/conftest.py": "import tests.more\n",
            "tests/more.py": "",
            "tests/helper.py": "SECONDS = 0\n",
            "tests/test_double.py": TEST.format(runs=str(runs)),
        }
    )
    return Project(toy, runs)


def test_page_says_what_was_detected(project: Project) -> None:
    assert project.fails(DETECTED + UNDETECTED).what == "not detected: squared"
    page = project.page()
    assert "1 of 2 were detected" in page
    assert "| tripled error | `double.py` | `test_double.py::test_double` |" in page
    assert "| squared error | `double.py` | **nothing** |" in page
    assert evidence.tree_of(project.toy.base)[:12] in page
    assert git(project.tree, "status", "--porcelain") == ""
    assert not list(project.toy.paths.state.glob("each/*"))
    project.run(DETECTED)
    assert "1 of 1 were detected" in project.page()


@pytest.mark.long
def test_a_test_that_hangs_has_detected_the_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "SECONDS_PER_TEST", 5)
    endless = ENTRY.format(name="endless", old="return 2 * x", new="while True: pass")
    project.run(endless)
    assert "hang" in capfd.readouterr().out
    assert "`test_double.py::test_double` (hangs)" in project.page()
    assert "1 of 1 were detected, 1 of them by a test that then hung" in project.page()


def test_a_test_that_fails_anyway_stops_no_other(project: Project) -> None:
    project.toy.amend({"tests/test_other.py": "def test_it():\n    assert False\n"})
    other = DETECTED.replace("tripled", "other").replace(
        "test_double.py::test_double", "test_other.py"
    )
    error = project.fails(other + DETECTED)
    assert "test_other.py fails without any error planted" in error.what
    kept = evidence.load(project.toy.paths.state / "mutations.json")
    assert [entry["name"] for entry in kept["outcomes"]] == ["tripled"]


def test_what_keeps_the_test_from_being_collected_is_not_detected(project: Project) -> None:
    broken = ENTRY.format(name="broken", old="def double", new="def triple")
    assert project.fails(broken).what == "not detected: broken"


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["vllm/double.py", "tests/test_double.py", "tests/helper.py", "tests/more.py"]
)
def test_an_outcome_is_kept_while_what_it_depends_on_is_the_same(
    project: Project, name: str
) -> None:
    project.run(DETECTED)
    assert project.count_runs() == 2  # without an error, and with it
    project.run(DETECTED)
    assert project.count_runs() == 0
    # The test's helpers, and what conftest.py imports, decide what it detects.
    project.toy.amend({name: f"{(project.tree / name).read_text()}\n"})
    project.run(DETECTED)
    assert project.count_runs() == 2
    # Another file of the tree does not count; but the page says where an outcome is from.
    assert "earlier trees" not in project.page()
    project.toy.amend({"vllm/more.py": ""})
    project.run(DETECTED)
    assert project.count_runs() == 0 and "1 outcomes are of earlier trees" in project.page()


def test_only_what_was_never_planted(project: Project) -> None:
    project.run(DETECTED)
    project.toy.amend({"vllm/double.py": f"{(project.tree / 'vllm/double.py').read_text()}\n"})
    project.count_runs()
    project.fails(DETECTED + UNDETECTED, "--not-yet")
    assert project.count_runs() == 2  # `squared`, without the error and with it
    kept, new = project.data()["outcomes"]
    assert (kept["by"], new["by"]) == ("failure", "nothing")
    assert kept["key"] == "" != new["key"]


def test_page_vouches_for_no_outcome_without_a_record(project: Project) -> None:
    project.run(DETECTED)
    data = project.data()
    data["outcomes"][0] |= {"key": "", "tree": "0" * 40}
    evidence.write(mutants.data_file("v0.19.1"), data)
    page = project.page()
    assert "1 outcomes are of an earlier tree, and whether their files have changed" in page
    assert "neither the changed file" not in page


@pytest.mark.long
def test_rerun_goes_on_where_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run(DETECTED)
    project.count_runs()
    # What is not known is tried, and only that.
    project.fails(DETECTED + UNDETECTED)
    assert project.count_runs() == 2
    project.fails(DETECTED + UNDETECTED, "--fresh")
    assert project.count_runs() == 3
    # A run that is cut off after its first outcome.
    write = evidence.write

    def cut_off(path: Path, report: dict[str, Any]) -> None:
        write(path, report)
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        project.run(UNDETECTED + DETECTED, "--fresh")
    monkeypatch.setattr(evidence, "write", write)
    mutants.data_file("v0.19.1").unlink()
    project.count_runs()
    project.fails(UNDETECTED + DETECTED)
    assert project.count_runs() == 2
    assert [entry["name"] for entry in project.data()["outcomes"]] == ["squared", "tripled"]


def test_a_number_of_jobs_that_is_none(project: Project) -> None:
    for number in ("0", "-3", "x"):
        assert "is not 1 or more" in project.fails(DETECTED, "--jobs", number).what


def test_a_selection_is_not_kept(project: Project) -> None:
    project.run(DETECTED + UNDETECTED, "--only", "tripled")
    assert not mutants.data_file("v0.19.1").exists()


def test_a_dirty_tree_is_refused(project: Project) -> None:
    (project.tree / "vllm/double.py").write_text("def double(x):\n    return 2 * x + 0\n")
    assert project.fails(DETECTED).code is Exit.DIRTY
    assert project.count_runs() == 0


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (DETECTED + DETECTED, [], "a name occurs twice"),
        (DETECTED.replace("2 * x", "5 * x"), [], "occurs 0 times in vllm/double.py"),
        (DETECTED.replace("double.py", "single.py"), [], "there is no vllm/single.py"),
        (DETECTED, ["--only", "halved"], "has no halved"),
        ("[[mutation]]\n", [], "cannot be read"),
    ],
)
def test_bad_table_is_refused(
    project: Project, table: str, options: list[str], message: str
) -> None:
    error = project.fails(table, *options)
    assert error.code is Exit.USAGE and message in error.what
    assert project.count_runs() == 0


def test_test_that_fails_anyway_is_refused(project: Project) -> None:
    project.toy.amend({"vllm/double.py": "def double(x):\n    return 2 * x + 1\n"})
    assert "fails without any error planted" in project.fails(DETECTED).what
    assert not mutants.data_file("v0.19.1").exists()
