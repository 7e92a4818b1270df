# SPDX-License-Identifier: Apache-2.0
"""Planting errors, on a tree of one function."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/proof/mutants.py"
TEST = """\
from pathlib import Path
from vllm.double import double


def test_double():
    with Path({runs!r}).open("a") as file:
        file.write("run\\n")
    assert double(2) == 4
"""
ENTRY = """
[[mutation]]
name = "{name}"
error = "{name}"
file = "vllm/double.py"
old = "{old}"
new = "{new}"
test = "tests/test_double.py::test_double"
"""
NOTICED = ENTRY.format(name="tripled", old="2 * x", new="3 * x")
UNNOTICED = ENTRY.format(name="squared", old="2 * x", new="x * x")


class Project:
    """A tree, a table, and how often the test has run."""

    def __init__(self, root: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module
        self.tree = root / "state" / "vllm"
        self.runs = root / "runs"
        for part in ("vllm", "tests"):
            (self.tree / part).mkdir(parents=True)
            (self.tree / part / "__init__.py").touch()
        self.source = self.tree / "vllm" / "double.py"
        self.source.write_text("def double(x):\n    return 2 * x\n")
        (self.tree / "tests" / "test_double.py").write_text(TEST.format(runs=str(self.runs)))
        self.table = root / "mutations.toml"
        self.report = root / "docs" / "mutations.md"
        monkeypatch.setattr(module, "TABLE", self.table)
        monkeypatch.setattr(module, "REPORT", self.report)
        self.monkeypatch = monkeypatch

    def run(self, table: str, *options: str) -> int:
        self.table.write_text(table)
        command = ["mutate.py", "--tree", str(self.tree), *options]
        self.monkeypatch.setattr(sys, "argv", command)
        return int(self.module.main())

    def count_runs(self) -> int:
        return len(self.runs.read_text().split()) if self.runs.exists() else 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate", module)
    spec.loader.exec_module(module)
    return Project(tmp_path, module, monkeypatch)


def test_report_says_what_was_noticed(project: Project) -> None:
    before = project.source.read_text()
    assert project.run(NOTICED + UNNOTICED) == 1
    report = project.report.read_text()
    assert "1 of 2 were noticed" in report
    assert "| tripled | `double.py` | `test_double.py::test_double` |" in report
    assert "| squared | `double.py` | **nothing** |" in report
    assert project.source.read_text() == before
    assert project.run(NOTICED) == 0


def test_rerun_goes_on_where_it_was(project: Project) -> None:
    assert project.run(NOTICED) == 0
    runs = project.count_runs()
    assert runs == 2  # without an error, and with it
    assert project.run(NOTICED) == 0
    assert project.count_runs() == runs
    # What was not on record is tried, and only that.
    assert project.run(NOTICED + UNNOTICED) == 1
    assert project.count_runs() == runs + 2
    runs += 2
    assert project.run(NOTICED + UNNOTICED, "--fresh") == 1
    runs += 3
    assert project.count_runs() == runs
    project.source.write_text("def double(x):\n    y = 2 * x\n    return y\n")
    assert project.run(NOTICED + UNNOTICED) == 1
    runs += 3
    assert project.count_runs() == runs
    test = project.tree / "tests" / "test_double.py"
    test.write_text(test.read_text() + "\n")
    assert project.run(NOTICED + UNNOTICED) == 1
    assert project.count_runs() == runs + 3


def test_selection_writes_no_report(project: Project) -> None:
    assert project.run(NOTICED + UNNOTICED, "--only", "tripled") == 0
    assert not project.report.exists()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (NOTICED + NOTICED, [], "a name occurs twice"),
        (NOTICED.replace("2 * x", "5 * x"), [], "occurs 0 times in vllm/double.py"),
        (NOTICED.replace("double.py", "single.py"), [], "there is no vllm/single.py"),
        (NOTICED, ["--only", "halved"], "has no halved"),
    ],
)
def test_bad_table_is_refused(
    project: Project,
    capsys: pytest.CaptureFixture[str],
    table: str,
    options: list[str],
    message: str,
) -> None:
    assert project.run(table, *options) == 2
    assert message in capsys.readouterr().err
    assert project.count_runs() == 0


def test_test_that_fails_anyway_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.source.write_text("def double(x):\n    return 2 * x + 1\n")
    assert project.run(NOTICED) == 2
    assert "fail without any error planted" in capsys.readouterr().err
    assert not project.report.exists()
